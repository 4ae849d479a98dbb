"""One run of the command line: instantiates the parts of a composed configuration and solves its measurements.

Its imports take seconds, so :mod:`rlsd_lightning.cli.command` imports it when a command line is composed and right.
"""

import logging
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import diffusers
import lightning as L
import transformers
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from rlsd_lightning.cli.messages import REQUEUE, failure
from rlsd_lightning.cli.resume import changed_inputs, resumed
from rlsd_lightning.cli.settings import check_settings, keep_settings, make_paths_absolute
from rlsd_lightning.cli.trainer import check_trainer_settings, trainer_factory
from rlsd_lightning.data import ImageSizes
from rlsd_lightning.distributed.environment import runs_on_cpu, stand_alone
from rlsd_lightning.distributed.processes import Processes
from rlsd_lightning.engine.chosen import chosen, keep_chosen
from rlsd_lightning.engine.compiling import compile_if_possible
from rlsd_lightning.engine.locking import only_run_in
from rlsd_lightning.engine.runner import run_measurements
from rlsd_lightning.engine.signals import signals_noted
from rlsd_lightning.errors import STORAGE, InputError, PeerError, StoppedError
from rlsd_lightning.features import Features
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.priors import Prior
from rlsd_lightning.priors.latent import PipelinePrior
from rlsd_lightning.priors.measured.calibration import calibrations_in
from rlsd_lightning.results.store import mean_line, read_failures

log = logging.getLogger("train")

MOST_ON_CPU = 256
"""Most pixels of an image's longer side on a CPU, where larger ones take hours, unless image_size is set."""
CALIBRATIONS = "calibrations"
"""Name of a run's choice: the prior's scales by image size."""
TINY = "has_tiny_decoder"
"""Name of a run's choice: whether ``prior.tiny_decoder=auto`` has found one."""
SHOWN_FAILURES = 10
"""Failed measurements that the end of a run names."""


def _report_thread(args: threading.ExceptHookArgs) -> None:
    """Leave a disk's error in TensorBoard's writer thread to the main thread, which raises it again."""
    if getattr(args.exc_value, "errno", None) not in STORAGE:
        threading.__excepthook__(args)


threading.excepthook = _report_thread
logging.raiseExceptions = False  # no traceback for each line of a log on a full disk
warnings.filterwarnings("ignore", module="lightning")
warnings.filterwarnings("ignore", message=".*LeafSpec.*")
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()


def prior_of(cfg: DictConfig, folder: Path, make_network: Callable = instantiate) -> Prior:
    """The prior of a new or a resumed run.

    A resumed run has the scales that it began with, and by ``tiny_decoder=auto`` the kind of decoder.

    Raises:
        InputError: If a resumed run began with a tiny decoder that can't be loaded now.
    """
    settings = cfg.prior
    began_with = chosen(folder, TINY) if settings.get("tiny_decoder") == "auto" else None
    if began_with is False:
        settings = OmegaConf.merge(settings, {"tiny_decoder": None})
    prior = make_network(settings)
    prior.calibrations |= calibrations_in(chosen(folder, CALIBRATIONS) or {})
    if began_with and not prior.has_tiny_decoder:
        name = prior.usual_tiny_decoder if isinstance(prior, PipelinePrior) else None
        fetch = f"fetch it with `hf download {name}`" if name else f"put it back into '{settings.pretrained}'"
        raise InputError(
            f"the run in '{folder}' was started with the tiny decoder {name or 'of its prior'}, which can't be loaded now; "
            f"{fetch} and resume again, or start a new run"
        )
    return prior


def settings_of(cfg: DictConfig, folder: Path, command: str | None = None) -> DictConfig:
    """Checked settings of a new run, which are kept in its folder, or of a resumed one."""
    if cfg.resume or cfg.ckpt_path:
        cfg = resumed(cfg)
        check_settings(cfg)
        check_trainer_settings(cfg)
    else:
        cfg.output_dir = str(folder)
        make_paths_absolute(cfg)
        check_trainer_settings(cfg)
        if rank_zero_only.rank == 0:
            keep_settings(cfg, folder, command)
    if rank_zero_only.rank == 0:
        for file in changed_inputs(cfg, Path(cfg.output_dir)):
            log.warning(
                "'%s' is newer than this run, whose finished results stay; another output_dir solves it anew", file
            )
    return cfg


def parts_of(cfg: DictConfig, folder: Path, make_network: Callable = instantiate) -> tuple:
    """Prior, features, the method's factory, and measurements."""
    if rank_zero_only.rank:
        logging.getLogger("rlsd_lightning.priors").setLevel(logging.ERROR)  # the first process says it for all
    prior, features = prior_of(cfg, folder, make_network), make_network(cfg.features)
    is_told = cfg.prior.get("image_size") is not None
    most = None if is_told or not runs_on_cpu(cfg.trainer.accelerator) else MOST_ON_CPU
    sizes = ImageSizes(prior.image_shape, prior.multiple, prior.trained_size, most)
    data = instantiate(cfg.data)(sizes, instantiate(cfg.physics))
    if data.available > len(data) and rank_zero_only.rank == 0:
        log.info("%d of %d images, as data.limit says; data.limit=null takes all", len(data), data.available)
    return prior, features, instantiate(cfg.method), data


def module_factory(
    method: Callable[..., ParticleModule], prior: Prior, features: Features, folder: Path, keeps: bool
) -> Callable[..., ParticleModule]:
    """Function that makes a module of measurements of one size.

    Args:
        folder: The run's folder.
        keeps: Whether this process keeps the prior's scales there, so that a resumed run has them.
    """

    def make(measurements: Sequence[Measurement], **forced: int) -> ParticleModule:
        module = method(prior.resized(measurements[0].image_shape), measurements, features, **forced)
        scales = {size: each._asdict() for size, each in prior.calibrations.items()}
        if keeps and scales.keys() > (chosen(folder, CALIBRATIONS) or {}).keys():
            keep_chosen(folder, CALIBRATIONS, scales)
        return module

    return make


def run(
    cfg: DictConfig,
    folder: Path,
    make_network: Callable = instantiate,
    more: Sequence[Callback] = (),
    command: str | None = None,
) -> int:
    """Solve the measurements of one configuration and return the exit code.

    Args:
        cfg: The configuration.
        folder: Folder of the results.
        make_network: What makes the prior and the features of their parts of the configuration.
        more: Callbacks beside those of the configuration.
        command: Command line that is kept with the results; this process's own if left out.
    """
    asked, cfg = cfg, settings_of(cfg, folder, command)
    checkpoint = Path(cfg.ckpt_path).resolve() if cfg.ckpt_path else None
    one = checkpoint and (checkpoint.parent.parent.name, checkpoint)
    L.seed_everything(cfg.seed % 2**32, verbose=False)  # for what libraries draw; noise is keyed by the whole seed
    prior, features, method, data = parts_of(cfg, folder, make_network)
    processes = Processes(cfg.trainer.accelerator, cfg.trainer.devices, cfg.trainer.num_nodes, cfg.patience)
    prior.to(processes.device)  # where an unmeasured one is measured
    if cfg.compile in (True, "regional"):
        compile_if_possible(prior, processes.device, regional=cfg.compile == "regional")

    is_stopped = False
    try:
        folder = Path(processes.broadcast(str(folder)))
        if processes.is_first and chosen(folder, TINY) is None:
            keep_chosen(folder, TINY, prior.has_tiny_decoder)
        asked.output_dir = str(folder)  # what main() tells the user to go on with
        with signals_noted() if cfg.callbacks.get("stop") else nullcontext():
            finished, missing = run_measurements(
                data,
                module_factory(method, prior, features, folder, processes.is_first),
                trainer_factory(cfg, folder, processes, make_network, more),
                folder,
                one,
                cfg.measurements_per_batch,
                processes,
                cfg.parallel,
            )
    except StoppedError as stop:
        is_stopped = True
        if processes.shard.position == 0 and not processes.is_first:  # the first may be in another group
            log.error("\nprocess %d: %s", processes.rank, stop)
        processes.leave()
        raise
    finally:
        processes.end(ask=is_stopped)
    if not processes.is_first:
        return 0
    log_results(folder, finished, len(data))
    return 1 if missing else 0


def log_results(folder: Path, finished: int, asked: int) -> None:
    """Log the mean metrics, where the results are, and which measurements have failed."""
    if figures := mean_line(folder / "summary.csv"):
        log.info("mean metrics: %s", figures)
    log.info("results of %d of %d measurements: %s", finished, asked, folder / ("report.html" if finished else ""))
    failures = read_failures(folder) if asked > 1 else []  # the only one was named when it failed
    for row in failures[:SHOWN_FAILURES]:
        log.error("failed: %s: %s", row["name"], row["reason"])
    if failures[SHOWN_FAILURES:]:
        log.error("%d more are in %s", len(failures) - SHOWN_FAILURES, folder / "failed.csv")


def main(cfg: DictConfig) -> int:
    """Run one configuration and return the exit code; errors that the user can mend become one line."""
    folder = Path(cfg.output_dir)
    stand_alone(cfg.trainer.devices, cfg.trainer.num_nodes)
    rank = rank_zero_only.rank  # in a group it is the rank in the group
    is_first = rank == 0
    try:
        if is_first:
            folder.mkdir(parents=True, exist_ok=True)
        with only_run_in(folder) if is_first else nullcontext():
            return run(cfg, folder)
    except PeerError:
        return 0  # the first process says what has failed
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit):
            error = KeyboardInterrupt()  # Lightning ends its process on a second Ctrl-C
        said = failure(error, cfg, "" if is_first else f"process {rank}: ")
        if said is None:
            raise
        line, code = said
        if isinstance(error, OSError):
            logging.getLogger("rlsd_lightning").debug("%s", line, exc_info=True)  # to the log's file only
        if code == REQUEUE and not is_first:
            return 0  # the first process speaks for all
        log.error("%s", line)
        return code
