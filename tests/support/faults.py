"""What goes wrong in a run of several processes, as callbacks: ``+callbacks.fault._target_=support.faults.Fault``."""

import errno
import time

from lightning.pytorch.callbacks import Callback

FAULTS = {"bug": RuntimeError("a fault of its own"), "disk": OSError(errno.ENOSPC, "No space left on device")}


class Fault(Callback):
    """Raises before a step, in the process with this position in its group; only for one measurement if it is named."""

    def __init__(self, kind: str, position: int, step: int, measurement: str | None = None) -> None:
        self.kind, self.position, self.step, self.measurement = kind, position, step, measurement

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        named = self.measurement in (None, pl_module.name)
        if named and pl_module.shard.position == self.position and batch_idx == self.step:
            raise FAULTS[self.kind]


class Slow(Callback):
    """Makes every step take a tenth of a second longer."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        time.sleep(0.1)
