"""Draws particles for measurements under a latent diffusion prior.

python train.py task=inpaint                                      # the embedded prior and one held-out face
python train.py task=inpaint data.images=photos data.limit=null   # your own images
python train.py task=inpaint data.measurement=y.png data.mask=mask.png
python train.py resume=outputs/inpaint/2026-11-24_12-00-00        # go on with a stopped run
python train.py task=inpaint --help                               # every choice, and the settings of this one
"""

import csv
import errno
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

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
from hydra.utils import instantiate
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlsd_lightning.cli.settings import (
    check_settings,
    keep_settings,
    make_paths_absolute,
    near_miss,
    resumed,
    run_folder,
)
from rlsd_lightning.distributed.processes import Processes
from rlsd_lightning.engine.checkpoints import AtomicCheckpointIO
from rlsd_lightning.engine.locking import only_run_in
from rlsd_lightning.engine.runner import run_measurements
from rlsd_lightning.errors import InputError, LostError, StoppedError

PROJECT = Path(__file__).resolve().parents[2]
STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOENT, errno.EIO, errno.ESTALE)
"""What a full, read-only or vanished disk says."""
REQUEUE = 75
"""Exit code of a run that a signal stopped: start it again."""
failed: list[str] = []
"""The folders of those runs of a multirun in this process that have failed."""
log = logging.getLogger("train")


logging.raiseExceptions = False  # a log on a full disk is not worth a traceback a line
warnings.filterwarnings("ignore", module="lightning")
warnings.filterwarnings("ignore", message=".*LeafSpec.*")
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()
OmegaConf.register_new_resolver("project", lambda path: str(PROJECT / path), replace=True)
OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)


def in_short(summary: Path) -> str:
    """The figures that a user looks for first, means over a run's measurements; empty if there are none."""
    if not summary.is_file():
        return ""
    with summary.open() as file:
        mean = list(csv.DictReader(file))[-1]
    names = ("psnr_mean", "psnr_best", "psnr_of_mean", "mode_total_variation", "diversity", "residual_sigmas")
    return ", ".join(f"{name} {float(mean[name]):.4g}" for name in names if mean.get(name))


def trainer_factory(cfg: DictConfig, run_folder: Path, processes: Processes) -> Callable[[Path], L.Trainer]:
    """Function that makes a new Trainer for a batch of measurements, whose folder is its argument."""
    # once, not for every batch
    features = instantiate(cfg.callbacks.results.features) if "results" in cfg.callbacks else None
    # Lightning would requeue a SLURM job by itself, from a checkpoint in the middle of a step
    in_slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    environment = [SLURMEnvironment(auto_requeue=False)] if in_slurm else []

    def make(folder: Path) -> L.Trainer:
        own = {
            "checkpoint": lambda callback: {"dirpath": str(folder / callback.dirpath)},
            "results": lambda callback: {"folder": str(run_folder), "features": features},
            "stop": lambda callback: {"folder": str(folder / callback.folder)},
        }
        callbacks = {
            name: instantiate(callback, **own[name](callback) if name in own else {})
            for name, callback in cfg.callbacks.items()
            if name != "progress" or processes.is_first
        }
        try:
            return instantiate(cfg.trainer)(
                strategy=processes.strategy(),
                callbacks=list(callbacks.values()),
                logger=instantiate(cfg.logger)(save_dir=folder),
                enable_progress_bar="progress" in callbacks,
                enable_checkpointing="checkpoint" in callbacks,
                default_root_dir=folder,
                plugins=[AtomicCheckpointIO(), *environment],
            )
        except (MisconfigurationException, ValueError) as error:
            raise InputError(f"these settings of the trainer can't be used: {error}") from error

    return make


def check_devices(cfg: DictConfig) -> None:
    """Refuses settings that processes can't be launched with."""
    if "strategy" in cfg.trainer:
        raise InputError(
            "trainer.strategy can't be set: a run's is ParticleStrategy, and Lightning's average the gradients of "
            "different particles; trainer.devices and parallel say how the work is shared"
        )
    if HydraConfig.get().mode == RunMode.MULTIRUN and cfg.trainer.devices != 1 and "LOCAL_RANK" not in os.environ:
        raise InputError(
            "trainer.devices must be 1 in a multirun and a study, whose other processes would run all of it again, got "
            f"{cfg.trainer.devices}; start one run a command, or one job a run with hydra/launcher=submitit_slurm"
        )


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
    check_devices(cfg)
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
    processes = Processes(cfg.trainer.accelerator, cfg.trainer.devices, cfg.trainer.num_nodes, cfg.patience)
    if processes.is_first and processes.device.type == "cpu" and cfg.trainer.precision == "16-mixed":
        log.warning("a CPU computes trainer.precision=16-mixed as bf16-mixed")  # Lightning's own warning is not shown
    try:
        folder = Path(processes.broadcast(str(folder)))
        asked.output_dir = str(folder)  # what main() tells the user to go on with
        finished, missing = run_measurements(
            data,
            lambda measurements: method(prior, measurements, features),
            trainer_factory(cfg, folder, processes),
            folder,
            chosen,
            cfg.measurements_per_batch,
            processes,
            cfg.parallel,
        )
    except StoppedError as stop:
        if processes.shard.position == 0 and not processes.is_first:  # the first may be in another group
            log.error("\nprocess %d: %s", processes.rank, stop)
        processes.leave()
        raise
    finally:
        processes.end()
    if not processes.is_first:
        return 0
    if figures := in_short(folder / "summary.csv"):
        log.info("mean figures: %s", figures)
    log.info("results of %d of %d measurements: %s", finished, len(data), folder / "report.html")
    return 1 if missing else 0


class Study(HydraCallback):
    """Puts the runs of a study into one table when the last has ended."""

    def on_multirun_end(self, config: DictConfig, **kwargs: object) -> None:
        from rlsd_lightning.cli.study import gather  # draws, which no other run does

        folder = Path(config.hydra.sweep.dir)
        try:
            rows = gather(folder)
        except InputError as error:
            log.error("error: %s", error)
        else:
            log.info("%d runs: %s, %s", len(rows), folder / "study.csv", folder / "study.png")


@hydra.main(version_base="1.3", config_path=str(PROJECT / "configs"), config_name="train")
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


def hint(name: str, reason: BaseException | None) -> str:
    """What to do about a setting that does not exist, for a reason that OmegaConf gave."""
    found = getattr(reason, "full_key", None) or name  # as much of the name as has been looked for
    siblings = list(getattr(reason, "parent_node", None) or ())
    if "." not in found:
        siblings += [group.name for group in (PROJECT / "configs").iterdir() if group.is_dir()]
    near = near_miss(found, siblings)
    listed = "the same command with --help lists all settings"
    return f"did you mean {near}{name.removeprefix(found)}? If not, {listed}" if near else listed


def explain(error: BaseException) -> tuple[str, int]:
    """An error in one line, and the exit code: 1 if an input can't be used, 2 if the command line is wrong."""
    unknown = re.match("Could not override '([^']+)'", str(error))
    if unknown:
        return f"there is no setting '{unknown[1]}' with these choices; {hint(unknown[1], error.__cause__)}", 2
    link, code = error, 2
    while link is not None:
        if isinstance(link, InputError):
            error, code = link, 1
            break
        link = link.__cause__ or link.__context__
    else:
        error = error.__cause__ or error
    return " ".join(str(error).split()), code


def command() -> None:
    """The command line: ``python train.py``."""
    try:
        main()
    except (HydraException, OmegaConfBaseException) as error:
        reason, code = explain(error)
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(code)
    if failed:
        sys.exit(f"error: {len(failed)} runs of this multirun have failed: {', '.join(failed)}")
