"""A process's share of the particles, and the collectives that exchange their rows."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from rlsd_lightning.errors import LostError

__all__ = ["Shard", "collective"]


@contextmanager
def collective() -> Iterator[None]:
    """Turns the error of a failed exchange with other processes into a LostError; also a decorator."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # torch has no class of its own for a lost connection
        reason = re.sub(r"^\[\S+:\d+\] ", "", str(error))  # gloo's source line
        raise LostError(reason.split(". ")[0]) from error


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
        with collective():
            distributed.all_gather(received, padded)
        return torch.cat([rows[:count] for rows, count in zip(received, counts, strict=True)])

    def sum(self, mine: Tensor) -> Tensor:
        """Sum over all processes, without a gradient."""
        if self.size == 1:
            return mine
        total = mine.detach().clone()
        with collective():
            distributed.all_reduce(total)
        return total

    def any(self, mine: bool) -> bool:
        """Whether the flag is set in any process. Exchanged on the CPU, so a GPU is not waited for."""
        if self.size == 1:
            return mine
        flag = torch.tensor([float(mine)])
        with collective():
            distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
        return bool(flag.item())
