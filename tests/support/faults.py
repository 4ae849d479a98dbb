"""What goes wrong in a run of several processes, as callbacks: ``+callbacks.fault._target_=support.faults.Fault``."""

import errno
import os
import resource
import shutil
import time

import torch
from lightning.pytorch.callbacks import Callback

FAULTS = {
    "bug": RuntimeError("a fault of its own"),
    "disk": OSError(errno.ENOSPC, "No space left on device"),
    "memory": torch.OutOfMemoryError("CUDA out of memory."),
}


class Fault(Callback):
    """Raises before a step, in the process with this position in its group; only for one measurement if it is named.

    The step ``after 2`` is the end of that step, and ``end`` is after the last one, when results are written.
    """

    def __init__(self, kind: str, position: int, step: int | str, measurement: str | None = None) -> None:
        self.kind, self.position, self.step, self.measurement = kind, position, step, measurement

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        self._raise_at(batch_idx, pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        self._raise_at(f"after {batch_idx}", pl_module)

    def on_train_end(self, trainer, pl_module) -> None:
        self._raise_at("end", pl_module)

    def _raise_at(self, step: int | str, module) -> None:
        named = self.measurement in (None, module.name)
        if named and module.shard.position == self.position and step == self.step:
            raise FAULTS[self.kind]


class Slow(Callback):
    """Makes every step take longer."""

    def __init__(self, seconds: float = 0.1) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:  # a signal does not end it
            time.sleep(0.1)


class Signal(Callback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        if batch_idx == self.step:
            os.kill(os.getpid(), self.number)


class SmallFiles(Callback):
    """No file of a process with the variable SMALL_FILES may grow beyond 4 kB, so a checkpoint finds a full disk."""

    def __init__(self) -> None:
        if "SMALL_FILES" in os.environ:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


class Deletion(Callback):
    """Deletes a folder before a step."""

    def __init__(self, folder: str, step: int) -> None:
        self.folder, self.step = folder, step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        if batch_idx == self.step:
            shutil.rmtree(self.folder)
