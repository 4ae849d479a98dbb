"""The Trainers of a run, and the check of what they may be told, before networks and data are loaded."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from rlsd_lightning.cli.settings import near_miss, signature_of
from rlsd_lightning.distributed.processes import Processes
from rlsd_lightning.engine.checkpoints import AtomicCheckpointIO
from rlsd_lightning.engine.chosen import chosen, keep_chosen, use_precision
from rlsd_lightning.engine.pace import Pace
from rlsd_lightning.errors import InputError

__all__ = ["check_trainer_settings", "trainer_factory"]

log = logging.getLogger("train")

COMPILE = ("auto", "regional", True, False)
"""Values of the setting ``compile``."""
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed", "32", "bf16", "16")
"""Values of ``trainer.precision``; the last three are Lightning's short names."""
OWN = {
    "strategy": "particles are no replicas that gradients could be averaged over; choose parallel and trainer.devices",
    "callbacks": "a run has those of the group callbacks; add +callbacks.mine._target_=module.Class",
    "logger": "a run has that of the group logger; choose logger=csv or logger=null",
    "enable_progress_bar": "the callback progress is the bar; set callbacks.progress=null",
    "enable_checkpointing": "the callback checkpoint saves; set callbacks.checkpoint=null",
    "default_root_dir": "each measurement has a folder in the run's; set output_dir",
    "plugins": "the run's own write checkpoints and find the processes; choose trainer.devices and trainer.num_nodes",
}
"""Arguments that a run gives to its Trainer by itself: the reason, and what to set instead."""


def check_trainer_settings(cfg: DictConfig) -> None:
    """Refuse what a run can't use or would ignore.

    Raises:
        HydraException: If the Trainer does not take a setting.
        InputError: If a setting is the run's own, ``compile`` or the precision has another value, or a multirun has
            several devices.
    """
    if cfg.compile not in COMPILE:
        raise InputError(f"compile must be auto, regional, true or false, got {cfg.compile}")
    for name, remedy in OWN.items():
        if name in cfg.trainer:
            raise InputError(f"trainer.{name} can't be set, as {remedy} instead")
    taken = signature_of(cfg.trainer._target_, "trainer._target_")
    for name in cfg.trainer:
        if not (name.startswith("_") or name in taken.annotations or taken.open_ended):
            near = near_miss(f"trainer.{name}", taken.annotations)
            hint = f"did you mean {near}?" if near else "leave it out; lightning.Trainer's documentation lists all"
            raise HydraException(f"there is no setting 'trainer.{name}'; {hint}")
    if str(cfg.trainer.precision) not in PRECISIONS:
        raise InputError(
            "trainer.precision must be auto, 32-true, bf16-mixed or 16-mixed, as particles are float32, got "
            f"{cfg.trainer.precision}"
        )
    if HydraConfig.get().mode == RunMode.MULTIRUN and cfg.trainer.devices != 1 and "LOCAL_RANK" not in os.environ:
        raise InputError(
            "trainer.devices must be 1 in a multirun and a study, whose other processes would run all of it again, got "
            f"{cfg.trainer.devices}; start one run per command, or one job per run with hydra/launcher=submitit_slurm"
        )


def trainer_factory(
    cfg: DictConfig,
    run_folder: Path,
    processes: Processes,
    make_network: Callable = instantiate,
    more: Sequence[Callback] = (),
) -> Callable[..., L.Trainer]:
    """Function that makes a new Trainer; arguments as ``make_trainer`` in :func:`run_measurements`.

    Raises:
        InputError: If a callback or the Trainer can't be made with these settings.
    """
    precision = precision_of(cfg.trainer.precision, run_folder, processes)
    # once, not for every batch
    features = make_network(cfg.callbacks.results.features) if cfg.callbacks.get("results") else None
    logger = None if cfg.get("logger") is None else instantiate(cfg.logger)
    paces: list[Pace] = []

    def make(folder: Path, position: str = "", batches: int = 1, probe: bool = False) -> L.Trainer:
        checkpoints = str(folder / "checkpoints")
        own = {
            "pace": {"batches": batches, "compiles": cfg.compile == "auto"},
            "progress": {"position": position},
            "checkpoint": {"dirpath": checkpoints},
            "results": {"folder": str(run_folder), "features": features},
            "stop": {"folder": checkpoints},
        }
        callbacks = {
            name: _callback(name, callback, **own.get(name, {}))
            for name, callback in cfg.callbacks.items()
            if callback and not probe and (name != "progress" or processes.is_first)  # null: switched off
        }
        if any(pace.is_known for pace in paces):
            callbacks.pop("pace", None)
        paces.extend(callback for callback in callbacks.values() if isinstance(callback, Pace))
        try:
            return instantiate(cfg.trainer)(
                precision=precision,
                strategy=processes.strategy(),
                callbacks=[*callbacks.values(), *more],
                logger=False if probe or logger is None else logger(save_dir=folder),
                enable_progress_bar="progress" in callbacks,
                enable_checkpointing="checkpoint" in callbacks,
                default_root_dir=folder,
                plugins=[AtomicCheckpointIO(), *processes.environment],
                **({"max_steps": 1} if probe else {}),
            )
        except (MisconfigurationException, ValueError) as error:
            raise InputError(f"these settings of the trainer can't be used: {error}") from error

    make(run_folder)  # settings that can't be used end the run before its first measurement
    return make


def precision_of(asked: str, folder: Path, processes: Processes) -> str:
    """Precision of the run's Trainers; what ``auto`` has chosen is kept for a resumed run."""
    precision = use_precision(asked, processes.device)
    if asked == "auto":
        kept = processes.broadcast(chosen(folder, "precision") if processes.is_first else None)
        if kept is None and processes.is_first:
            keep_chosen(folder, "precision", precision)
        precision = kept or processes.broadcast(precision)
    if processes.is_first and processes.device.type == "cpu" and precision == "16-mixed":
        log.warning("a CPU computes trainer.precision=16-mixed as bf16-mixed")  # Lightning's own warning is not shown
    return precision


def _callback(name: str, settings: DictConfig, **own: Any) -> Callback:
    """The callback of a run that the group ``callbacks`` has under a name; ``own`` are the run's arguments.

    Raises:
        InputError: If there is no such class, or it refuses its settings.
    """
    try:
        return instantiate(settings, **own)
    except InstantiationException as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise InputError(f"callbacks.{name} can't be made with these settings: {reason}") from error
