"""Draws particles for measurements under a latent diffusion prior.

python train.py task=inpaint                                      # the embedded prior and one held-out face
python train.py task=inpaint data.images=photos data.limit=null   # your own images
python train.py task=inpaint data.measurement=y.png data.mask=mask.png
python train.py resume=outputs/inpaint/2026-11-24_12-00-00        # go on with a stopped run
python train.py task=inpaint --help                               # every choice, and the settings of this one
"""

import csv
import difflib
import errno
import glob
import inspect
import itertools
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import get_args

# composition errors are shown in one line by main(), not by Hydra in ten
os.environ.setdefault("HYDRA_FULL_ERROR", "1")

import diffusers
import hydra
import lightning as L
import transformers
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback as HydraCallback
from hydra.types import RunMode
from hydra.utils import get_object, instantiate
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlsd_lightning.checkpoints import AtomicCheckpointIO
from rlsd_lightning.errors import InputError, LostError, StoppedError
from rlsd_lightning.locking import only_run_in
from rlsd_lightning.particles import ParticleModule
from rlsd_lightning.ranks import Ranks
from rlsd_lightning.runner import run_measurements

PROJECT = Path(__file__).resolve().parent
OTHER_FILES = ("prior.pretrained", "features.pretrained", "physics.network", "physics.code")
STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOENT, errno.EIO, errno.ESTALE)
"""What a full, read-only or vanished disk says."""
CHOSEN = ("method", "physics", "prior", "features", "num_particles", "num_steps", "seed")
"""Settings, or groups of them, that say what a run's results are."""
MAY_CHANGE = (
    *OTHER_FILES,
    "prior.local_files_only",
    "prior.vae_tiling",
    "prior.decoder_checkpointing",
    "features.local_files_only",
    "method.particle_chunk",
)
"""Those of them that say where something is, or how it is computed."""
REQUEUE = 75
"""Exit code of a run that a signal stopped: start it again."""
failed: list[str] = []
"""The folders of those runs of a multirun in this process that have failed."""
log = logging.getLogger("train")


def run_folder(resume: str | None, ckpt_path: str | None, task: str, now: str) -> str:
    """The folder of a resumed run, of a checkpoint's run, or a new one."""
    if not resume and not ckpt_path:
        return f"outputs/{task}/{now}"
    if ckpt_path and not Path(ckpt_path).is_file():
        raise InputError(f"ckpt_path must be a checkpoint of a run, but there is no file '{ckpt_path}'")
    folder = Path(resume) if resume else Path(ckpt_path).resolve().parents[2]
    saved_settings(folder)  # before Hydra makes the folder
    return str(folder)


def saved_settings(folder: Path) -> DictConfig:
    """The settings a run was started with."""
    saved = folder / ".hydra" / "config.yaml"
    if not saved.is_file():
        raise InputError(
            f"a run's folder is expected, but '{folder}' has no .hydra/config.yaml; give the folder that holds the "
            "run's train.log, for example resume=outputs/inpaint/2026-11-24_12-00-00"
        )
    return OmegaConf.load(saved)


logging.raiseExceptions = False  # a log on a full disk is not worth a traceback a line
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
    started_with = OmegaConf.merge({"patience": cfg.patience}, saved_settings(folder))
    if started_with.method._target_ == "rlsd_lightning.module.RLSD":
        # what measurements not yet begun would have had
        for name, value in {"room": 0.0, "sampling_share": 0.0, "antithetic": False}.items():
            started_with.method.setdefault(name, value)
    names = [item.lstrip("+~").split("=")[0] for item in HydraConfig.get().overrides.task]
    for name in names:
        if "/" in name or name in HydraConfig.get().runtime.choices or name == "measurements_per_batch":
            raise InputError(f"'{name}' was chosen when the run was started and can't change; start a new run")
        before, asked = (OmegaConf.select(settings, name) for settings in (started_with, cfg))
        if name.split(".")[0] in CHOSEN and name not in MAY_CHANGE and before != asked:
            raise InputError(
                f"{name} was {before!r} when the run was started and can't change to {asked!r}: its results would be of two kinds; "
                "leave it out, or start a new run"
            )
        OmegaConf.update(started_with, name, OmegaConf.select(cfg, name), force_add=True)
    started_with.output_dir = str(folder)
    return started_with


def make_paths_absolute(cfg: DictConfig) -> None:
    """A run may be resumed from another folder than the one it was started in."""
    files = ("images", "measurement", "mask", "kernel")
    for name in (*(f"data.{name}" for name in files), *OTHER_FILES):
        value = OmegaConf.select(cfg, name)
        if isinstance(value, str) and (Path(value).exists() or glob.has_magic(value)):
            OmegaConf.update(cfg, name, os.path.abspath(value))


def accepted_parameters(target: Callable) -> dict[str, inspect.Parameter]:
    """What a target takes; a method hands on the keywords that it does not know to the class it is made from."""
    found = dict(inspect.signature(target).parameters)
    bases = target.__mro__[1:] if isinstance(target, type) and issubclass(target, ParticleModule) else ()
    for base in itertools.takewhile(lambda base: issubclass(base, ParticleModule), bases):
        rest = [name for name, parameter in found.items() if parameter.kind is parameter.VAR_KEYWORD]
        if not rest:
            break
        del found[rest[0]]
        found = {**inspect.signature(base).parameters, **found}
    return found


def check_settings(cfg: DictConfig) -> None:
    """Refuses what a target does not take: an unknown name, or a word where a number belongs."""
    for group in ("prior", "features", "physics", "data", "method"):
        target = get_object(cfg[group]._target_)
        parameters = accepted_parameters(target)
        open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        for name, value in OmegaConf.to_container(cfg[group], resolve=True).items():
            # make_physics turns the noise of a deepinv class into its noise_model
            turned = group == "physics" and isinstance(target, type) and name in ("sigma", "noise")
            if name.startswith("_") or turned or (open_ended and name not in parameters):
                continue
            if name not in parameters:
                near = difflib.get_close_matches(name, parameters, n=1)
                hint = f"did you mean {group}.{near[0]}?" if near else f"there are {', '.join(sorted(parameters))}"
                raise HydraException(f"there is no setting '{group}.{name}' with this {group}; {hint}")
            kinds = set(get_args(parameters[name].annotation) or (parameters[name].annotation,))
            if not kinds <= {int, float, bool, str, Path, type(None)}:
                continue
            accepted = kinds | {int} if float in kinds else kinds
            if type(value) not in accepted:
                expected = " or ".join(sorted("null" if kind is type(None) else kind.__name__ for kind in kinds))
                raise HydraException(f"{group}.{name} must be {expected}, got '{value}'")


def in_short(summary: Path) -> str:
    """The figures that a user looks for first, means over a run's measurements; empty if there are none."""
    if not summary.is_file():
        return ""
    with summary.open() as file:
        mean = list(csv.DictReader(file))[-1]
    names = ("psnr_mean", "psnr_best", "psnr_of_mean", "mode_total_variation", "diversity", "residual_sigmas")
    return ", ".join(f"{name} {float(mean[name]):.4g}" for name in names if mean.get(name))


def trainer_factory(cfg: DictConfig, run_folder: Path, ranks: Ranks) -> Callable[[Path], L.Trainer]:
    """Makes a fresh Trainer for every batch of measurements, whose folder it is called with: one can't be used twice.

    Each process has a Trainer of its own for its own device; what processes exchange is the particles' affair.
    """
    compared_in = instantiate(cfg.callbacks.results.features)  # once, not for every measurement

    def make(folder: Path) -> L.Trainer:
        callbacks = OmegaConf.merge(
            cfg.callbacks,
            {
                "checkpoint": {"dirpath": str(folder / cfg.callbacks.checkpoint.dirpath)},
                "results": {"folder": str(run_folder), "features": None},
                "stop": {"folder": str(folder / cfg.callbacks.stop.folder)},
            },
        )
        made = instantiate(callbacks)
        made["results"].features = compared_in
        writes = ranks.shard.position == 0
        if not ranks.is_first:
            made.pop("progress", None)
        try:
            return instantiate(cfg.trainer)(
                devices=[ranks.device.index] if ranks.device.type == "cuda" else 1,
                num_nodes=1,
                callbacks=list(made.values()),
                logger=instantiate(cfg.logger)(save_dir=folder) if writes else False,
                enable_progress_bar="progress" in made,
                default_root_dir=folder,
                plugins=[AtomicCheckpointIO(writes), LightningEnvironment()],
            )
        except (MisconfigurationException, ValueError) as error:
            raise InputError(f"these settings of the trainer can't be used: {error}") from error

    return make


def keep_settings(cfg: DictConfig, folder: Path) -> None:
    """Writes the settings of a new run, unless the folder holds a run with others."""
    saved = folder / ".hydra" / "config.yaml"
    if saved.is_file() and OmegaConf.load(saved) != cfg:
        raise InputError(
            f"'{folder}' holds a run with other settings; give another output_dir, or go on with that run by "
            f"resume={folder}"
        )
    saved.parent.mkdir(exist_ok=True)
    OmegaConf.save(cfg, saved)
    OmegaConf.save(HydraConfig.get().overrides.task, saved.with_name("overrides.yaml"))
    saved.with_name("command.txt").write_text(shlex.join(["python", "train.py", *sys.argv[1:]]) + "\n")


def run(cfg: DictConfig, folder: Path) -> int:
    """Solves the measurements of one configuration; returns the exit code."""
    asked, chosen = cfg, None
    if cfg.resume or cfg.ckpt_path:
        cfg = resumed(cfg)
        if cfg.ckpt_path:
            chosen = (Path(cfg.ckpt_path).resolve().parents[1].name, Path(cfg.ckpt_path))
    else:
        cfg.output_dir = str(folder)
        make_paths_absolute(cfg)
        if rank_zero_only.rank == 0:
            keep_settings(cfg, folder)
    check_settings(cfg)
    # all noise is keyed, so this only steadies what libraries draw; it takes 32 bits
    L.seed_everything(cfg.seed % 2**32, verbose=False)
    prior = instantiate(cfg.prior)
    features = instantiate(cfg.features)
    if cfg.compile:
        prior.compile_networks(fullgraph=True)
    method = instantiate(cfg.method)
    data = instantiate(cfg.data)(prior.image_shape, instantiate(cfg.physics))
    available = getattr(data, "available", len(data))
    if available > len(data) and rank_zero_only.rank == 0:
        log.info("%d of %d images, as data.limit says; data.limit=null takes all", len(data), available)
    if "strategy" in cfg.trainer:
        raise InputError(
            "trainer.strategy can't be set: Lightning's average gradients over devices, and particles are no replicas of "
            "each other; trainer.devices and parallel say how they are spread"
        )
    if HydraConfig.get().mode == RunMode.MULTIRUN and cfg.trainer.devices != 1 and "LOCAL_RANK" not in os.environ:
        raise InputError(
            "trainer.devices must be 1 in a multirun and a study, whose other processes would run all of it again, got "
            f"{cfg.trainer.devices}; start one run a command, or one job a run with hydra/launcher=submitit_slurm"
        )
    ranks = Ranks(cfg.trainer.accelerator, cfg.trainer.devices, cfg.trainer.num_nodes, cfg.patience)
    if ranks.is_first and ranks.device.type == "cpu" and cfg.trainer.precision == "16-mixed":
        log.warning("a CPU computes trainer.precision=16-mixed as bf16-mixed")  # Lightning's own warning is not shown
    try:
        folder = Path(ranks.broadcast(str(folder)))
        asked.output_dir = str(folder)  # what main() tells the user to go on with
        finished, missing = run_measurements(
            data,
            lambda measurements: method(prior, measurements, features),
            trainer_factory(cfg, folder, ranks),
            folder,
            chosen,
            cfg.measurements_per_batch,
            ranks,
            cfg.parallel,
        )
    except StoppedError as stop:
        if ranks.shard.position == 0 and not ranks.is_first:  # of its own group, which the first may not know of
            log.error("\nprocess %d: %s", ranks.rank, stop)
        ranks.leave()
        raise
    finally:
        ranks.end()
    if not ranks.is_first:
        return 0
    if figures := in_short(folder / "summary.csv"):
        log.info("mean figures: %s", figures)
    log.info("results of %d of %d measurements: %s", finished, len(data), folder / "report.html")
    return 1 if missing else 0


class Study(HydraCallback):
    """Puts the runs of a study into one table when the last has ended."""

    def on_multirun_end(self, config: DictConfig, **kwargs: object) -> None:
        from rlsd_lightning.study import gather  # draws, which no other run does

        folder = Path(config.hydra.sweep.dir)
        try:
            rows = gather(folder)
        except InputError as error:
            log.error("error: %s", error)
        else:
            log.info("%d runs: %s, %s", len(rows), folder / "study.csv", folder / "study.png")


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg: DictConfig) -> None:
    """Runs one configuration; what the user can mend becomes one line instead of a traceback."""
    folder = Path(cfg.output_dir)
    is_first = rank_zero_only.rank == 0
    who = "" if is_first else f"process {rank_zero_only.rank}: "
    try:
        if is_first:
            folder.mkdir(parents=True, exist_ok=True)
        with only_run_in(folder) if is_first else nullcontext():
            code = run(cfg, folder)
    except (InputError, HydraException, OmegaConfBaseException) as error:
        reason, code = explain(error)
        log.error("%serror: %s", who, reason)
    except LostError as error:
        code = 1
        log.error(
            "\n%serror: lost touch with the other processes (%s); go on with: python train.py resume=%s",
            who,
            error,
            cfg.output_dir,
        )
    except OSError as error:
        elsewhere = error.filename is not None and not Path(error.filename).resolve().is_relative_to(folder.resolve())
        if error.errno not in STORAGE or elsewhere:
            raise
        code = 1
        log.error(
            "\n%serror: '%s' can't be written to (%s); mend that, then: python train.py resume=%s",
            who,
            cfg.output_dir,
            error,
            cfg.output_dir,
        )
    except (StoppedError, KeyboardInterrupt) as stop:
        reason, code = str(stop) or "stopped", REQUEUE
        if not is_first:
            return  # the first process speaks for all
        log.error("\n%s; go on with: python train.py resume=%s", reason, cfg.output_dir)
    runs_in_turn = (
        HydraConfig.get().mode == RunMode.MULTIRUN and HydraConfig.get().runtime.choices["hydra/launcher"] == "basic"
    )
    if code and runs_in_turn and code != REQUEUE:
        failed.append(cfg.output_dir)  # the others go on
    elif code:
        sys.exit(code)


def explain(error: BaseException) -> tuple[str, int]:
    """An error in one line, and the exit code: 1 if an input can't be used, 2 if the command line is wrong."""
    unknown = re.match("Could not override '([^']+)'", str(error))
    if unknown:
        return f"there is no setting '{unknown[1]}' with these choices; the same command with --help lists them all", 2
    link, code = error, 2
    while link is not None:
        if isinstance(link, InputError):
            error, code = link, 1
            break
        link = link.__cause__ or link.__context__
    else:
        error = error.__cause__ or error
    return " ".join(str(error).split()), code


if __name__ == "__main__":
    try:
        main()
    except (HydraException, OmegaConfBaseException) as error:
        reason, code = explain(error)
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(code)
    if failed:
        sys.exit(f"error: {len(failed)} runs of this multirun have failed: {', '.join(failed)}")
