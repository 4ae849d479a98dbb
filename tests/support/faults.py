"""What goes wrong in a run of several processes, as callbacks: ``+callbacks.fault._target_=support.faults.Fault``."""

import errno
import time

from lightning.pytorch.callbacks import Callback

FAULTS = {"bug": RuntimeError("a fault of its own"), "disk": OSError(errno.ENOSPC, "No space left on device")}


class Fault(Callback):
    """Raises in one process, before a step."""

    def __init__(self, kind: str, position: int, step: int) -> None:
        self.kind, self.position, self.step = kind, position, step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        if pl_module.shard.position == self.position and batch_idx == self.step:
            raise FAULTS[self.kind]


class Slow(Callback):
    """Makes every step take a tenth of a second longer."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        time.sleep(0.1)
