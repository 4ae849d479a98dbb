"""Stopping between two steps: on a signal the run saves what it has and ends with a code that asks to be started again."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
from lightning.pytorch.callbacks import Callback

from rlsd_lightning.distributed.shard import Shard
from rlsd_lightning.distributed.strategy import STOP
from rlsd_lightning.engine.callbacks import not_finite
from rlsd_lightning.engine.checkpoints import LAST
from rlsd_lightning.errors import StoppedError
from rlsd_lightning.methods.base import ParticleModule

__all__ = ["StopOnSignal", "signals_noted", "stop_if_asked"]

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Ctrl-C, a scheduler's wish to end the job, and SLURM's warning before its time is up."""


class StopOnSignal(Callback):
    """Saves a checkpoint after the step in which a signal came, and stops; before the next run, if it came while results were made.

    The handler only sets a flag, so it never interrupts a save. A second signal has the effect that the first had
    without this callback. Particles that are no longer finite are not saved: the last checkpoint is still good.

    Args:
        folder: Folder of the checkpoint, which is called last.ckpt.

    Raises:
        StoppedError: When it stops a run.
    """

    came: ClassVar[signal.Signals | None] = None
    """The signal that no run has obeyed yet: it is sent to the process, which has a Trainer for each measurement."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._before: dict[signal.Signals, Any] = {}

    def _note(self, number: int, frame: Any) -> None:
        StopOnSignal.came = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def setup(self, trainer: L.Trainer, pl_module: ParticleModule, stage: str) -> None:
        # before Lightning sets its own, whose handler of SIGTERM broadcasts to processes that don't listen
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            self._before = {number: signal.getsignal(number) for number in SIGNALS}

    def on_train_start(self, trainer: L.Trainer, pl_module: ParticleModule) -> None:
        for number in self._before:
            signal.signal(number, self._note)
        stop_if_asked(f"before '{pl_module.name}'", pl_module.shard)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: ParticleModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        def save() -> None:
            if not not_finite(pl_module):
                trainer.save_checkpoint(self.folder / LAST)

        stop_if_asked(f"after step {batch_idx + 1} of '{pl_module.name}'", pl_module.shard, save)

    def teardown(self, trainer: L.Trainer, pl_module: ParticleModule, stage: str) -> None:
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: ParticleModule, exception: BaseException) -> None:
        self._restore()


def stop_if_asked(where: str, shard: Shard | None = None, save: Callable[[], None] = lambda: None) -> None:
    """Stop all processes of a group if a signal has come to one of them.

    Args:
        where: What follows "stopped by SIGTERM" in the error.
        shard: This process in its group; None: it alone is asked.
        save: What each process does before.

    Raises:
        StoppedError: If one has come.
    """
    if not (shard or Shard()).any(StopOnSignal.came is not None):
        return
    save()
    came, StopOnSignal.came = StopOnSignal.came, None
    raise StoppedError(f"stopped by {came.name if came else 'a signal to another process'} {where}")


@contextmanager
def signals_noted() -> Iterator[None]:
    """Notes a signal between two Trainers with a StopOnSignal; a second signal has its usual effect."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: Any) -> None:
        if StopOnSignal.came is None or number == STOP:  # which a stopped first process sends to all
            StopOnSignal.came = StopOnSignal.came or signal.Signals(number)
        else:
            StopOnSignal.came = None
            restore()
            signal.raise_signal(number)

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield
    finally:
        restore()
