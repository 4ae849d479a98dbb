"""The processes of a run: who works on which measurements and on which particles.

R processes form G groups of P. Batches of measurements go to the groups in turn; the particles of a batch are spread over
the processes of its group, each of which holds all particles' latents and optimiser state, works on its own rows and
exchanges rows with the others.
"""

import logging
import math
import os
import re
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import lightning as L
import lightning_utilities
import torch
from lightning.fabric.accelerators import MPSAccelerator
from lightning.fabric.strategies import DDPStrategy
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero as lightning_rank_zero
from torch import Tensor, distributed

from rlsd_lightning.distributed.heartbeat import Attendance
from rlsd_lightning.errors import InputError, LostError

__all__ = ["Ranks", "Shard", "groups_of"]

log = logging.getLogger(__name__)

STARTER = "RLSD_STARTER"
"""The environment variable that says which process started the others, should it be gone before they look."""

START = timedelta(minutes=10)
"""Processes may come so long after each other, and may wait so long for the first to find out how much it can hold."""


@contextmanager
def _in_touch() -> Iterator[None]:
    """Turns what an exchange raises when another process is gone or silent into a LostError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # of no class of its own
        reason = re.sub(r"^\[\S+:\d+\] ", "", str(error))  # without its place in gloo's source, and its advice
        raise LostError(reason.split(". ")[0]) from error


@contextmanager
def _ending_with_its_starter() -> Iterator[None]:
    """While processes look for each other, ends this one when that which started it is gone.

    Nothing else would tell it within minutes: it waits for others to come, of which the one that is gone may be the first.
    """
    is_started = "LOCAL_RANK" in os.environ  # by Lightning, torchrun and their like, and not by a shell
    if not is_started:
        os.environ[STARTER] = str(os.getpid())
    starter = int(os.environ.get(STARTER, os.getppid()))
    launched = threading.Event()

    def watch() -> None:
        while not launched.wait(0.5):
            if os.getppid() != starter:
                log.error("process %s: error: the process that started it is gone", os.environ.get("RANK", ""))
                os._exit(1)

    if is_started:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        launched.set()
        os.environ.pop(STARTER, None)


@dataclass(frozen=True)
class Shard:
    """One process's share of a batch's particles.

    Attributes:
        position: The process's place in its group, from 0 to ``size - 1``.
        size: The number :math:`P` of processes in the group.
        groups: What they exchange ``rows`` in, and what they ``agree`` in on the CPU. Nothing else may refer to these:
            their connections close with the last reference.
    """

    position: int = 0
    size: int = 1
    groups: dict[str, Any] = field(default_factory=dict)

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
        with _in_touch():
            distributed.all_gather(received, padded, group=self.groups["rows"])
        return torch.cat([rows[:count] for rows, count in zip(received, counts, strict=True)])

    def sum(self, mine: Tensor) -> Tensor:
        """The sum of all processes' values."""
        if self.size == 1:
            return mine
        total = mine.detach().clone()
        with _in_touch():
            distributed.all_reduce(total, group=self.groups["rows"])
        return total

    def any(self, mine: bool) -> bool:
        """Whether it is so in any process; does not wait for a device."""
        if self.size == 1:
            return mine
        flag = torch.tensor([float(mine)])
        with _in_touch():
            distributed.all_reduce(flag, op=distributed.ReduceOp.MAX, group=self.groups["agree"])
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
        patience: Seconds after which a process that others wait for, and that says nothing, is lost.

    Raises:
        InputError: If these devices are not there, or the processes that were started are not as many.
    """

    def __init__(
        self,
        accelerator: str = "auto",
        devices: int | str | Sequence[int] = 1,
        num_nodes: int = 1,
        patience: float = 600,
    ) -> None:
        if not isinstance(patience, int | float) or not 1 <= patience < math.inf:
            raise InputError(f"patience must be a number of seconds, at least 1, got {patience}")
        self._patience = timedelta(seconds=patience)
        # Lightning has no DDP for Apple's GPU, of which a machine has one
        on_apple = accelerator in ("auto", "gpu", "mps") and MPSAccelerator.is_available()
        strategy = "auto" if on_apple else DDPStrategy(timeout=max(START, self._patience))
        try:
            self._fabric = L.Fabric(accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy=strategy)
            self.size = self._fabric.world_size
            if self.size > 1:
                with _ending_with_its_starter():
                    self._fabric.launch()
        except distributed.DistError as error:
            raise InputError(
                f"the {self.size} processes of this run did not find each other ({str(error).splitlines()[0]}); start all "
                "of them, with the same MASTER_ADDR and MASTER_PORT, and where each can be reached by the others"
            ) from error
        except (
            RuntimeError,
            ValueError,
            MisconfigurationException,
        ) as error:  # Lightning's own for settings that can't be used
            raise InputError(f"these settings of the trainer can't be used: {error}") from error
        self.rank = self._fabric.global_rank
        self.device = self._fabric.device
        self.shard = Shard()
        self.group, self.groups = 0, 1
        self._attendance = None
        if self.size > 1:
            with _in_touch():
                self._attendance = Attendance(self._make_store(), self.rank, self.size, self._patience)

    def _make_store(self) -> distributed.TCPStore:
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
                with _in_touch():
                    groups = {
                        name: distributed.new_group(members, timeout=self._patience, backend=backend)
                        for name, backend in (("rows", None), ("agree", "gloo"))
                    }
                if self.rank in members:
                    self.shard = Shard(self.rank - first, size, groups)
        # what Lightning leaves to rank 0, the first of each group does
        for module in (lightning_rank_zero, lightning_utilities.core.rank_zero):
            module.rank_zero_only.rank = self.shard.position

    def broadcast(self, value: Any) -> Any:
        """The first process's value."""
        if self.size == 1:
            return value
        with _in_touch():
            return self._fabric.broadcast(value)

    def sum_of_all(self, value: int) -> int:
        """The sum of every process's value, once each has come here or has left, however long that takes."""
        return value if self._attendance is None else self._attendance.sum_of_all(value)

    def leave(self) -> None:
        """Tells the others not to wait for this process."""
        if self._attendance is not None:
            self._attendance.leave()

    def end(self, grace: float = 10.0) -> None:
        """Ends what this process exchanges with others, and sees to it that none that it started outlives it.

        Those that wait for this process in the middle of a step hear of its end at once, as its connections are closed.
        """
        started = getattr(self._fabric.strategy.launcher, "procs", [])
        processes = started.copy()
        started.clear()  # when one fails, Lightning kills this process too, be it about to say why
        self.shard.groups.clear()
        if self.size > 1:
            distributed.destroy_process_group()
        if self._attendance is not None:
            self._attendance.close()
        for process in processes:
            for stop in (process.terminate, process.kill):
                try:
                    process.wait(grace)
                except subprocess.TimeoutExpired:
                    stop()
            process.wait()
