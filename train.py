"""Draws particles for measurements under a latent diffusion prior.

python train.py task=inpaint                                      # the embedded prior and one held-out face
python train.py task=inpaint data.images=photos data.limit=null   # your own images
python train.py task=inpaint data.measurement=y.png data.mask=mask.png
python train.py resume=outputs/inpaint/2026-11-24_12-00-00        # go on with a stopped run
python train.py --help                                            # every task and setting
"""

import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

# composition errors are shown in one line by main(), not by Hydra in ten
os.environ.setdefault("HYDRA_FULL_ERROR", "1")

import diffusers
import hydra
import lightning as L
import transformers
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlsd_lightning.callbacks import AtomicCheckpointIO
from rlsd_lightning.errors import InputError
from rlsd_lightning.runner import run_measurements

PROJECT = Path(__file__).resolve().parent
log = logging.getLogger("train")


def run_folder(resume: str | None, ckpt_path: str | None, task: str, now: str) -> str:
    """The folder of a resumed run, of a checkpoint's run, or a new one."""
    if resume:
        return str(resume)
    if ckpt_path:
        return str(Path(ckpt_path).resolve().parents[2])
    return f"outputs/{task}/{now}"


warnings.filterwarnings("ignore", module="lightning")
warnings.filterwarnings("ignore", message=".*LeafSpec.*")
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()
OmegaConf.register_new_resolver("project", lambda path: str(PROJECT / path), replace=True)
OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)


def resumed(cfg: DictConfig) -> DictConfig:
    """The settings a run was started with, and on top of them what this command line asks for."""
    folder = Path(cfg.output_dir)
    saved = folder / ".hydra" / "config.yaml"
    if cfg.ckpt_path and not Path(cfg.ckpt_path).is_file():
        raise InputError(f"ckpt_path must be a checkpoint of a run, but there is no file '{cfg.ckpt_path}'")
    if not saved.is_file():
        raise InputError(
            f"a run's folder is expected, but '{folder}' has no .hydra/config.yaml; give the folder that holds the "
            "run's train.log, for example resume=outputs/inpaint/2026-11-24_12-00-00"
        )
    started_with = OmegaConf.load(saved)
    names = [item.lstrip("+~").split("=")[0] for item in HydraConfig.get().overrides.task]
    for name in names:
        value = OmegaConf.select(cfg, name)
        if not OmegaConf.is_config(value):  # a group was chosen when the run was started
            OmegaConf.update(started_with, name, value, force_add=True)
    started_with.output_dir = str(folder)
    return started_with


def trainer_factory(cfg: DictConfig) -> Callable[[Path], L.Trainer]:
    """Makes a fresh Trainer for every measurement: one can't be used twice."""

    def make(folder: Path) -> L.Trainer:
        callbacks = OmegaConf.merge(
            cfg.callbacks,
            {
                "checkpoint": {"dirpath": str(folder / cfg.callbacks.checkpoint.dirpath)},
                "results": {"folder": str(folder)},
            },
        )
        return instantiate(cfg.trainer)(
            callbacks=list(instantiate(callbacks).values()),
            logger=instantiate(cfg.logger)(save_dir=folder),
            default_root_dir=folder,
            plugins=[AtomicCheckpointIO()],
        )

    return make


def run(cfg: DictConfig) -> int:
    """Solves the measurements of one configuration; returns the exit code."""
    folder = Path(cfg.output_dir)
    chosen = None
    if cfg.resume or cfg.ckpt_path:
        cfg = resumed(cfg)
        if cfg.ckpt_path:
            chosen = (Path(cfg.ckpt_path).resolve().parents[1].name, Path(cfg.ckpt_path))
    else:
        (folder / ".hydra").mkdir(parents=True, exist_ok=True)
        cfg.output_dir = str(folder)
        OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
        OmegaConf.save(HydraConfig.get().overrides.task, folder / ".hydra" / "overrides.yaml")
        (folder / ".hydra" / "command.txt").write_text(shlex.join(["python", "train.py", *sys.argv[1:]]) + "\n")
    L.seed_everything(cfg.seed, verbose=False)
    prior = instantiate(cfg.prior)
    features = instantiate(cfg.features)
    method = instantiate(cfg.method)
    data = instantiate(cfg.data)(prior.image_shape, instantiate(cfg.physics))
    failed = run_measurements(
        data, lambda measurement: method(prior, measurement, features), trainer_factory(cfg), folder, chosen
    )
    log.info("results of %d of %d measurements: %s", len(data) - failed, len(data), folder / "report.html")
    return 1 if failed else 0


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg: DictConfig) -> None:
    """Runs one configuration; what the user can mend becomes one line instead of a traceback."""
    try:
        code = run(cfg)
    except (InputError, HydraException, OmegaConfBaseException) as error:
        reason = error if isinstance(error, InputError) else (error.__cause__ or error)
        log.error("error: %s", one_line(reason))
        code = 1 if isinstance(reason, InputError) else 2
    except SystemExit:
        log.error("stopped; go on with: python train.py resume=%s", cfg.output_dir)
        raise
    if code:
        sys.exit(code)


def one_line(error: BaseException) -> str:
    """An error's message without its line breaks."""
    return " ".join(str(error).split())


if __name__ == "__main__":
    try:
        main()
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
