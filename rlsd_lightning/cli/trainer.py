"""What the Trainer of a run may be told, checked before networks and data are loaded."""

import os

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from rlsd_lightning.cli.settings import near_miss, signature_of
from rlsd_lightning.errors import InputError

__all__ = ["check_trainer"]

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


def check_trainer(cfg: DictConfig) -> None:
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
            f"{cfg.trainer.devices}; start one run a command, or one job a run with hydra/launcher=submitit_slurm"
        )
