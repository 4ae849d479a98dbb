"""The processes of a run: who works on which measurements and on which particles.

R processes form G groups of P. Batches of measurements go to the groups in turn; the particles of a batch are spread over
the processes of its group, each of which holds all particles' latents and optimiser state, works on its own rows and
exchanges rows with the others.
"""

import logging
import os
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import lightning as L
import lightning_utilities
import torch
from lightning.fabric.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero as lightning_rank_zero
from torch import Tensor, distributed

from rlsd_lightning.errors import InputError

__all__ = ["Ranks", "Shard", "groups_of"]

log = logging.getLogger(__name__)

PATIENCE = timedelta(minutes=10)
"""A process that says nothing for so long in the middle of a step is lost."""


@dataclass(frozen=True)
class Shard:
    """One process's share of a batch's particles.

    Attributes:
        position: The process's place in its group, from 0 to ``size - 1``.
        size: The number :math:`P` of processes in the group.
        group: What they exchange rows in.
        control: What they agree in, on the CPU.
    """

    position: int = 0
    size: int = 1
    group: Any = None
    control: Any = None

    def rows(self, total: int) -> slice:
        """The process's rows of all particles; shares differ by one row at most, and some may be empty."""
        return slice(self._start(self.position, total), self._start(self.position + 1, total))

    def _start(self, position: int, total: int) -> int:
        return position * total // self.size

    def gather(self, mine: Tensor, total: int) -> Tensor:
        """All processes' rows, in their order, from this process's; no gradient goes through it."""
        if self.size == 1:
            return mine
        counts = [self._start(p + 1, total) - self._start(p, total) for p in range(self.size)]
        padded = mine.new_zeros(max(counts), *mine.shape[1:])
        padded[: len(mine)] = mine.detach()
        received = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(received, padded, group=self.group)
        return torch.cat([rows[:count] for rows, count in zip(received, counts, strict=True)])

    def sum(self, mine: Tensor) -> Tensor:
        """The sum of all processes' values."""
        if self.size == 1:
            return mine
        total = mine.detach().clone()
        distributed.all_reduce(total, group=self.group)
        return total

    def any(self, mine: bool) -> bool:
        """Whether it is so in any process; does not wait for a device."""
        if self.size == 1:
            return mine
        flag = torch.tensor([float(mine)])
        distributed.all_reduce(flag, op=distributed.ReduceOp.MAX, group=self.control)
        return bool(flag.item())


def groups_of(parallel: str, ranks: int, batches: int) -> tuple[int, str]:
    """The number of groups, and why.

    Args:
        parallel: ``auto``, ``measurements``, ``particles``, or ``GxP`` for G groups of P processes.
        ranks: The number of processes.
        batches: The number of batches of measurements.

    Raises:
        InputError: If ``parallel`` is none of these, or does not fit the number of processes.
    """
    if parallel == "measurements":
        return ranks, "parallel=measurements"
    if parallel == "particles":
        return 1, "parallel=particles"
    if parallel == "auto":
        groups = max(count for count in range(1, ranks + 1) if ranks % count == 0 and count <= max(batches, 1))
        return groups, f"parallel=auto with {batches} batches of measurements"
    asked = re.fullmatch(r"(\d+)x(\d+)", parallel)
    if asked is None or int(asked[1]) * int(asked[2]) != ranks:
        raise InputError(
            "parallel must be auto, measurements, particles, or GxP for G groups of P processes with G times P = "
            f"{ranks}, got '{parallel}'"
        )
    return int(asked[1]), f"parallel={parallel}"


class Ranks:
    """The processes of a run, one a device, as Lightning's launcher, torchrun or SLURM start them.

    Args:
        accelerator: As in the Trainer.
        devices: As in the Trainer.
        num_nodes: As in the Trainer.

    Raises:
        InputError: If these devices are not there, or the processes that were started are not as many.
    """

    def __init__(self, accelerator: str = "auto", devices: int | str | Sequence[int] = 1, num_nodes: int = 1) -> None:
        strategy = DDPStrategy(timeout=PATIENCE)
        try:
            self._fabric = L.Fabric(accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy=strategy)
            self.size = self._fabric.world_size
            if self.size > 1:
                self._fabric.launch()
        except (RuntimeError, ValueError) as error:  # Lightning's own for settings that can't be used
            raise InputError(f"these settings of the trainer can't be used: {error}") from error
        self.rank = self._fabric.global_rank
        self.device = self._fabric.device
        self.shard = Shard()
        self.group, self.groups = 0, 1
        self._store = None if self.size == 1 else self._make_store()

    def _make_store(self) -> distributed.TCPStore:
        # counts who has finished: a collective would give up on those that work for long
        address = os.environ["MASTER_ADDR"]
        if self.is_first:
            store = distributed.TCPStore(address, 0, is_master=True, wait_for_workers=False)
            self._fabric.broadcast(store.port)
            return store
        port = self._fabric.broadcast(None)
        return distributed.TCPStore(address, port, is_master=False, wait_for_workers=False)

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def share(self, parallel: str, batches: int) -> None:
        """Forms the groups."""
        self.groups, reason = groups_of(parallel, self.size, batches)
        if self.size == 1:
            return
        size = self.size // self.groups
        self.group = self.rank // size
        if self.is_first:
            log.info("%d processes: %d groups of %d, as %s", self.size, self.groups, size, reason)
        if size > 1:
            for first in range(0, self.size, size):  # every process makes every group
                members = list(range(first, first + size))
                made = [distributed.new_group(members, timeout=PATIENCE, backend=b) for b in (None, "gloo")]
                if self.rank in members:
                    self.shard = Shard(self.rank - first, size, *made)
        # what Lightning leaves to rank 0, the first of each group does
        for module in (lightning_rank_zero, lightning_utilities.core.rank_zero):
            module.rank_zero_only.rank = self.shard.position

    def broadcast(self, value: Any) -> Any:
        """The first process's value."""
        return value if self.size == 1 else self._fabric.broadcast(value)

    def sum_of_all(self, value: int) -> int:
        """The sum of every process's value, once each has come here or has left, however long that takes."""
        if self._store is None:
            return value
        self._store.add("sum", value)
        self._store.add("arrived", 1)
        self._wait_until("arrived", self.size)
        total = self._store.add("sum", 0)
        if self.is_first:  # which others still ask
            self._wait_until("left", self.size - 1)
        else:
            self._store.add("left", 1)
        return total

    def leave(self) -> None:
        """Tells the others not to wait for this process."""
        if self._store is not None and not self.is_first:
            self._store.add("arrived", 1)
            self._store.add("left", 1)

    def _wait_until(self, counter: str, count: int) -> None:
        while self._store.add(counter, 0) < count:
            time.sleep(0.05)

    def end(self, grace: float = 10.0) -> None:
        """Sees to it that no process that this one started outlives it: asks those to stop that don't end by themselves."""
        for process in getattr(self._fabric.strategy.launcher, "procs", []):
            try:
                process.wait(grace)
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
        if self.size > 1:
            distributed.destroy_process_group()
