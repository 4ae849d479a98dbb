"""The cluster environment of this process: a scheduler's, a launcher's, or none."""

import logging
import os
from collections.abc import Sequence

import torch
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

__all__ = ["cluster_environment", "is_one_device", "runs_on_cpu", "stand_alone"]

log = logging.getLogger(__name__)

OF_A_TASK = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
"""Variables of a process that srun has started; a shell inside a job may lack them."""


class Alone(LightningEnvironment):
    """Environment of a single process that ignores a scheduler's variables, as in a shell inside a SLURM job."""

    def __init__(self) -> None:
        super().__init__()
        self.set_global_rank(0)  # Lightning takes the first guess from SLURM_PROCID

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return 0


def is_one_device(devices: int | str | Sequence[int], num_nodes: int) -> bool:
    """Whether a Trainer's arguments ask for one device on one machine."""
    one = len(devices) == 1 if isinstance(devices, Sequence) and not isinstance(devices, str) else devices in (1, "1")
    return one and num_nodes == 1


def runs_on_cpu(accelerator: str) -> bool:
    """Whether a Trainer with this accelerator has no GPU."""
    return accelerator == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())


def lone_device(accelerator: str) -> torch.device:
    """The device of a run on one, with a Trainer's accelerator."""
    return torch.device("cpu") if runs_on_cpu(accelerator) else torch.accelerator.current_accelerator()


def stand_alone(devices: int | str | Sequence[int], num_nodes: int) -> Alone | None:
    """Environment of a run on one device, None for several; this process then has rank 0."""
    return Alone() if is_one_device(devices, num_nodes) and not TorchElasticEnvironment.detect() else None


def cluster_environment(devices: int | str | Sequence[int], num_nodes: int) -> list[ClusterEnvironment]:
    """Plugins of a Trainer for the cluster environment; empty where Lightning's own choice is right.

    One device runs alone in every SLURM shell. Several are launched by Lightning, where srun did not.
    """
    if alone := stand_alone(devices, num_nodes):
        return [alone]
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    missing = [name for name in OF_A_TASK if name not in os.environ]
    if missing:
        log.warning(
            "%s not set in this SLURM job: Lightning starts the processes on this node, without srun",
            ", ".join(missing),
        )
        return [LightningEnvironment()]
    # Lightning would requeue a SLURM job by itself, from a checkpoint in the middle of a step
    return [SLURMEnvironment(auto_requeue=False)]
