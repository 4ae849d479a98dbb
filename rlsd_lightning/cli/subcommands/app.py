"""Opens a page to try reconstructions on, for a browser on this machine.

rlsd app
rlsd app --port 8000 prior=sd15 prior.pretrained=/models/my-finetune prior.weights=float16

Settings are those of a run, and hold for all runs of the page; a prior among them is one more to choose there.
docs/app.md says more.
"""

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from rlsd_lightning.app.choices import name_of
from rlsd_lightning.cli.literal import as_typed
from rlsd_lightning.cli.messages import Formatter, explain
from rlsd_lightning.cli.settings import check_settings, with_present_names, without_null_groups
from rlsd_lightning.cli.subcommands.parser import Parser, in_one_line
from rlsd_lightning.errors import InputError, StoppedError, printable, require
from rlsd_lightning.resources import CONFIGS

__all__ = ["Solver", "main"]

WITHOUT = ("~logger", "~callbacks.checkpoint", "~callbacks.progress")
"""Parts of a run that the page does without; none changes a result."""
FAMILIES = {
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3",
    "LatentConsistencyModelPipeline": "lcm",
    "DDPMPipeline": "pixel",
    "FluxPipeline": "flux",
    "LDMPipeline": "ldm",
    "SanaPipeline": "sana",
}
"""Priors by the class of their pipelines, beside Stable Diffusion 1 and 2."""
KEPT_NETWORKS = 4
"""Networks that stay loaded: prior, features of the kernel and of the diversity, and one more."""


class Solver:
    """Solves the page's runs as the command does, with networks that stay loaded.

    Args:
        given: Settings of all runs, as ``name=value``.

    Raises:
        Exception: What composing a command's settings raises, if they can't be used.
    """

    def __init__(self, given: Sequence[str] = ()) -> None:
        from rlsd_lightning.distributed.environment import is_one_device  # with torch

        given = without_null_groups(with_present_names(list(given)))
        self.given = tuple(item for item in given if _group(item) != "prior")
        """Settings of all runs, without those of the prior."""
        self.prior = tuple(item for item in given if _group(item) == "prior")
        self._networks: dict[str, Any] = {}
        cfg = self._composed([*self.given, *self.prior])
        if not is_one_device(cfg.trainer.devices, cfg.trainer.num_nodes):
            raise InputError(
                f"trainer.devices and trainer.num_nodes must be 1 in the app, got {cfg.trainer.devices} and "
                f"{cfg.trainer.num_nodes}; start one app for each device"
            )
        self.gamma = float(cfg.method.gamma)
        """Strength of the repulsion by default."""

    def __call__(
        self,
        settings: Sequence[str],
        folder: Path,
        command: str,
        callbacks: Sequence,
        warn: Callable[[str], None],
    ) -> None:
        """Solve one run; see :data:`rlsd_lightning.app.runs.Solve`.

        Raises:
            InputError: If it can't be solved, with the command's own line.
            StoppedError: If a callback ends it.
        """
        from rlsd_lightning.cli.train import run  # with torch and Lightning
        from rlsd_lightning.results.store import read_failures

        with _logged(folder / "train.log", warn), _in_one_line() as known:
            known.append(cfg := self._composed([*settings, *WITHOUT, f"output_dir={folder}"]))
            if run(cfg, folder, self._network, callbacks, command):
                raise InputError(next((row["reason"] for row in read_failures(folder)), "the run has no result"))

    @staticmethod
    def family(folder: str) -> str:
        """Name of the prior that takes a checkpoint's folder; that of Stable Diffusion 1 if it does not tell its kind."""
        from rlsd_lightning.priors.loading.folders import INDEX, pipeline_folder, read_config

        index = pipeline_folder(Path(folder)) / INDEX
        return FAMILIES.get(read_config(index).get("_class_name", "") if index.is_file() else "", "sd15")

    @staticmethod
    def _composed(settings: Sequence[str]) -> DictConfig:
        """A checked configuration, composed as for a run of the command."""
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            cfg = compose("train", as_typed(settings), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        check_settings(cfg)
        return cfg

    def _network(self, part: DictConfig | None) -> Any:
        """The prior or features of a part of a configuration, None of no part; the last used are kept."""
        from hydra.utils import instantiate

        if part is None:
            return None
        key = OmegaConf.to_yaml(part, resolve=True)
        network = self._networks.pop(key, None) or instantiate(part)
        self._networks[key] = network  # the newest is last
        while len(self._networks) > KEPT_NETWORKS:
            del self._networks[next(iter(self._networks))]
        return network


def _group(item: str) -> str:
    return name_of(item).split(".")[0]


@contextmanager
def _in_one_line() -> Iterator[list[DictConfig]]:
    """Turn what the user can mend into an InputError with the command's line; the list takes the configuration."""
    known: list[DictConfig] = []
    try:
        yield known
    except StoppedError:
        raise
    except Exception as error:
        said = explain(error, known[0] if known else None)
        if said is None:
            raise
        raise InputError(said[0]) from error


@contextmanager
def _logged(file: Path, warn: Callable[[str], None]) -> Iterator[None]:
    """Write what this thread logs to a file, as the command does, and pass warnings on."""
    own = threading.get_ident()
    writes = logging.FileHandler(file, encoding="utf-8", errors="surrogateescape")
    writes.setFormatter(Formatter("%(message)s"))
    passes = _Passes(warn)
    loggers = [logging.getLogger(name) for name in ("rlsd_lightning", "train")]
    for handler in (writes, passes):
        handler.addFilter(lambda record: record.thread == own)
        for each in loggers:
            each.addHandler(handler)
    try:
        yield
    finally:
        for handler in (writes, passes):
            for each in loggers:
                each.removeHandler(handler)
        writes.close()


class _Passes(logging.Handler):
    """Passes the text of warnings on."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._warn = warn

    def emit(self, record: logging.LogRecord) -> None:
        self._warn(printable(record.getMessage()))


@in_one_line
def main(arguments: list[str] | None = None) -> int:
    """Serve the page until Ctrl-C, and return the exit code."""
    options = Parser("app", __doc__)
    options.add_argument("--port", type=int, default=7860, help="port of the page (7860)")
    options.add_argument(
        "--host", default="127.0.0.1", help="address that it listens on (127.0.0.1); 0.0.0.0 opens it to the network"
    )
    options.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="settings of all runs")
    given = options.parse_args(arguments)
    require(lambda port: 1 <= port <= 65535, "from 1 to 65535", port=given.port)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was uploaded is removed
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.WARNING)  # what a run says is in its train.log
    for name in ("rlsd_lightning", "train"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    solver = Solver(given.settings)
    with tempfile.TemporaryDirectory(prefix="rlsd-app-") as root:
        return _serve(solver, Path(root), given.host, given.port)


def _serve(solver: Solver, root: Path, host: str, port: int) -> int:
    """Serve the page with a folder for all that it keeps; returns the exit code."""
    # before gradio is imported
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(root / "cache")}
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        from rlsd_lightning.app.page import serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise InputError("the page needs gradio, which is not installed: pip install 'rlsd-lightning[app]'") from error
    serve(solver, root, host, port)
    return 0
