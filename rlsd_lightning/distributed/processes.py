"""The processes of a run over many measurements, which form groups.

R processes form G groups of P. Batches of measurements are dealt to the groups; the processes of a group share the
particles of a batch, see :class:`~rlsd_lightning.distributed.strategy.ParticleStrategy`.
"""

import json
import logging
import os
import re
from collections.abc import Callable, Sequence

import lightning as L
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import distributed

from rlsd_lightning.distributed.environment import cluster_environment, is_one_device
from rlsd_lightning.distributed.heartbeat import Heartbeat
from rlsd_lightning.distributed.shard import Shard, collective
from rlsd_lightning.distributed.strategy import ParticleStrategy, join_group, leave_group
from rlsd_lightning.errors import InputError

__all__ = ["Processes", "groups_of"]

log = logging.getLogger(__name__)


def groups_of(parallel: str, processes: int, batches: int) -> tuple[int, str]:
    """Number of groups, and the reason.

    Raises:
        InputError: If ``parallel`` is none of ``auto``, ``measurements``, ``particles`` and ``GxP`` (G groups of P
            processes), or does not fit the number of processes.
    """
    if parallel == "measurements":
        return processes, "parallel=measurements"
    if parallel == "particles":
        return 1, "parallel=particles"
    if parallel == "auto":
        groups = max(n for n in range(1, processes + 1) if processes % n == 0 and n <= max(batches, 1))
        return groups, f"parallel=auto with {batches} batches of measurements"
    asked = re.fullmatch(r"(\d+)x(\d+)", parallel)
    if asked is None or int(asked[1]) * int(asked[2]) != processes:
        raise InputError(
            "parallel must be auto, measurements, particles, or GxP for G groups of P processes with G times P = "
            f"{processes}, got '{parallel}'"
        )
    return int(asked[1]), f"parallel={parallel}"


class Processes:
    """All processes of a run, one per device, each alone until they form groups.

    They are launched before the run's first Trainer, by the launcher of one that never fits: the batch size, the
    output folder and the groups must be agreed on before Trainers are made, of which a group may have any number.

    Args:
        patience: Timeout of exchanges and of the heartbeat, in seconds, at least 1; the others are the Trainer's.

    Raises:
        InputError: If these devices don't exist, or not all processes were started, or torchrun has started another number.
    """

    def __init__(
        self,
        accelerator: str = "auto",
        devices: int | str | Sequence[int] = 1,
        num_nodes: int = 1,
        patience: float = 600,
    ) -> None:
        self._strategy = ParticleStrategy(patience)
        self.environment = cluster_environment(devices, num_nodes)
        """Plugins of a Trainer for the cluster environment."""
        self._alone = is_one_device(devices, num_nodes)
        try:
            trainer = L.Trainer(
                accelerator=accelerator,
                devices=devices,
                num_nodes=num_nodes,
                strategy="auto" if self._alone else self._strategy,
                plugins=self.environment,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            started = int(os.environ["WORLD_SIZE"]) if TorchElasticEnvironment.detect() else trainer.world_size
            if started != trainer.world_size:
                raise InputError(
                    f"devices and num_nodes of the Trainer must ask for as many processes as torchrun has started, {started}, "
                    f"got {trainer.world_size}; set devices to torchrun's --nproc-per-node"
                )
            self.rank, self.size, self.device = trainer.global_rank, trainer.world_size, trainer.strategy.root_device
            self._store = self._strategy.launcher.launch(self._strategy.rendezvous) if self.size > 1 else None
        except InputError:
            raise
        except (RuntimeError, ValueError, MisconfigurationException) as error:
            raise InputError(f"these settings of the trainer can't be used: {error}") from error
        self.shard, self.group, self.groups, self._broadcasts = Shard(), 0, 1, 0
        self._heartbeat = None
        if self.size > 1:
            self._heartbeat = Heartbeat(self._store, self.rank, self.size, self._strategy.patience)
            self._join(f"process {self.rank}")

    @property
    def is_first(self) -> bool:
        """Whether this is the first process of the run."""
        return self.rank == 0

    def strategy(self) -> Strategy | str:
        """Strategy of a new Trainer; Lightning's own for one device, as a ParticleStrategy can't use Apple's GPU."""
        return "auto" if self._alone else ParticleStrategy(self._strategy.patience.total_seconds())

    def form_groups(self, parallel: str, batches: int) -> None:
        """Form the groups; arguments as those of :func:`groups_of`."""
        self.groups, reason = groups_of(parallel, self.size, batches)
        if self.size == 1:
            return
        size = self.size // self.groups
        self.group, position = divmod(self.rank, size)
        self.shard = Shard(position, size)
        if self.is_first:
            log.info("%d processes: %d groups of %d, as %s", self.size, self.groups, size, reason)
        if size > 1:
            leave_group()
            self._join(f"group {self.group}")

    def _join(self, name: str) -> None:
        store = distributed.PrefixStore(name, self._store)
        join_group(store, self.shard.position, self.shard.size, self.device, self._strategy.patience)

    def broadcast(self, value: str | int | None) -> str | int:
        """Value of the first process."""
        if self.size == 1:
            return value
        self._broadcasts += 1
        key = f"broadcast {self._broadcasts}"
        if not self.is_first:
            self._heartbeat.wait_for(key, [0])  # a probe of the batch size takes longer than any timeout
        with collective():
            if self.is_first:
                self._store.set(f"{key} value", json.dumps(value))
                self._store.add(f"{key} 0", 1)
            return json.loads(self._store.get(f"{key} value"))

    def sum(self, value: int, check: Callable[[], None] = lambda: None) -> int:
        """Sum over all processes, once each has called this or has left, however long that takes.

        Args:
            value: This process's.
            check: Called again and again while others are waited for; what it raises ends this.
        """
        return value if self._heartbeat is None else self._heartbeat.sum(value, check)

    def leave(self) -> None:
        """Tell the others not to wait for this process."""
        if self._heartbeat is not None:
            self._heartbeat.leave()

    def end(self, ask: bool = False) -> None:
        """Leave the group and end the processes that this one launched; those that wait for it get an error at once.

        Args:
            ask: Let them save after their step.
        """
        self._strategy.end(ask=ask)
        if self._heartbeat is not None:
            self._heartbeat.close()
