"""How long a run will take, from its first steps; and whether compiled networks pay for themselves."""

import logging
import sys
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from rlsd_lightning.engine.compiling import compile_if_possible
from rlsd_lightning.methods.base import ParticleModule

try:
    import resource
except ImportError:  # not on Windows
    resource = None

__all__ = ["Pace", "duration", "peak_memory"]

log = logging.getLogger(__name__)

TIMED = 3
"""Steps that are timed, after the first, which also fills caches."""
WORTH_COMPILING = 300.0
"""Seconds left from which a GPU's networks are compiled, which takes some twenty seconds."""


class Pace(Callback):
    """Says once what a run will take, in time and memory, from its second to fourth step.

    Args:
        batches: Batches of measurements that this process has yet to solve, this one among them.
        compiles: Whether the networks are compiled if the run is long enough and on a GPU.
    """

    def __init__(self, batches: int = 1, compiles: bool = False) -> None:
        self.batches, self.compiles = batches, compiles
        self.is_known = False
        """Whether the line was logged."""
        self._from: int | None = None
        self._start = 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: ParticleModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._from is None:
            self._from, self._start = batch_idx, _now(pl_module.device)
        elif batch_idx == self._from + TIMED:
            self._estimate(pl_module, (_now(pl_module.device) - self._start) / TIMED, batch_idx + 1)

    def _estimate(self, module: ParticleModule, seconds: float, done: int) -> None:
        self.is_known, steps = True, len(module.timesteps)
        own, left = seconds * steps, seconds * (steps * self.batches - done)
        whole = f", {duration(left)} left for {self.batches} like it" if self.batches > 1 else ""
        said = "%s: about %s for %d steps%s (%.3g s a step, measured over steps %d to %d); %s"
        span = (done - TIMED + 1, done)
        log.info(said, module.name, duration(own), steps, whole, seconds, *span, peak_memory(module.device))
        is_worth_it = left > WORTH_COMPILING and not module.prior.is_tiled  # compiled networks see tiles apart
        if self.compiles and module.device.type == "cuda" and is_worth_it:
            log.info("%s: the networks' repeated blocks are compiled, as the run is long", module.name)
            compile_if_possible(module.prior, module.device, regional=True)


def duration(seconds: float) -> str:
    """A time in its two largest units."""
    if seconds < 60:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_memory(device: torch.device) -> str:
    """The peak of the memory so far, and whose it is."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.2g} GiB of the GPU's memory at most so far"
    if resource is None:
        return "memory is unknown on this system"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2g} GiB of memory at most so far"
