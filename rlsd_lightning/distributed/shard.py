"""A process's share of the particles, and the collectives that exchange their rows."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from rlsd_lightning.errors import LostError, PeerError

__all__ = ["Shard", "agree", "collective"]

FINE, FLAG, FAILED, NO_MEMORY = range(4)
"""States of a process before an exchange: ready, ready with a flag set, failed, and failed with a full memory."""


@contextmanager
def collective() -> Iterator[None]:
    """Turn the error of a failed exchange with other processes into a LostError; also a decorator."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # torch has no class of its own for a lost connection
        reason = re.sub(r"^\[\S+:\d+\] ", "", str(error))  # gloo's source line
        raise LostError(reason.split(". ")[0]) from error


def agree(state: int = FINE) -> int:
    """Exchange the processes' states, before each exchange of values: a failed process takes part in no other.

    Exchanged on the CPU, so a GPU is not waited for.

    Returns:
        The highest state of all processes.

    Raises:
        PeerError: If another process has failed, unless this one has.
    """
    states = torch.tensor([float(state)])
    with collective():
        distributed.all_reduce(states, op=distributed.ReduceOp.MAX)
    highest = int(states.item())
    if highest >= FAILED > state:
        raise PeerError(highest == NO_MEMORY)
    return highest


@dataclass(frozen=True)
class Shard:
    """One process's rows of the particles, in torch's default process group.

    Attributes:
        position: Rank of the process in its group, from 0 to ``size - 1``.
        size: Number of processes in the group; a single one exchanges nothing.
    """

    position: int = 0
    size: int = 1

    def rows(self, total: int) -> slice:
        """Rows of this process. Shares differ by one row at most; some may be empty."""
        return slice(self._start(self.position, total), self._start(self.position + 1, total))

    def _start(self, position: int, total: int) -> int:
        return position * total // self.size

    def gather(self, mine: Tensor, total: int) -> Tensor:
        r"""Rows of all processes in their order, without a gradient.

        Args:
            mine: Rows of this process, with shape :math:`(n, \dots)`.
            total: Number of rows of all processes.
        """
        if self.size == 1:
            return mine
        counts = [self._start(p + 1, total) - self._start(p, total) for p in range(self.size)]
        padded = mine.new_zeros(max(counts), *mine.shape[1:])
        padded[: len(mine)] = mine.detach()
        received = [torch.empty_like(padded) for _ in counts]
        agree()
        with collective():
            distributed.all_gather(received, padded)
        return torch.cat([rows[:count] for rows, count in zip(received, counts, strict=True)])

    def sum(self, mine: Tensor) -> Tensor:
        """Sum over all processes, without a gradient."""
        if self.size == 1:
            return mine
        total = mine.detach().clone()
        agree()
        with collective():
            distributed.all_reduce(total)
        return total

    def any(self, mine: bool) -> bool:
        """Whether the flag is set in any process."""
        return mine if self.size == 1 else agree(FLAG if mine else FINE) == FLAG

    def agree(self) -> None:
        """Wait for all processes.

        Raises:
            PeerError: If another one has failed.
        """
        self.any(False)

    def announce_failure(self, out_of_memory: bool) -> bool:
        """Tell the others at their next exchange that this process has failed; returns whether any memory is full."""
        state = NO_MEMORY if out_of_memory else FAILED
        return out_of_memory if self.size == 1 else agree(state) == NO_MEMORY

    def first_text(self, mine: str | None) -> str:
        """The text of the first process that has one, after all know of a failure."""
        return next(text for text in self.objects(mine) if text is not None)

    def objects(self, mine: Any) -> list[Any]:
        """Picklable values of all processes, in their order."""
        values = [mine] * self.size
        if self.size > 1:
            with collective():
                distributed.all_gather_object(values, mine)
        return values
