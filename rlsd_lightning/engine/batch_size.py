"""Probe for the number of measurements that fit on a device."""

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning as L
import torch

from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.base import ParticleModule

__all__ = ["largest_batch"]


def largest_batch(
    make_module: Callable[[Sequence[Measurement]], ParticleModule],
    measurement: Measurement,
    most: int,
    make_trainer: Callable[[Path], L.Trainer],
) -> int:
    """Largest number of measurements whose first step, the one that needs the most memory, fits.

    Doubles the number until a step fails, then bisects.

    Args:
        make_module: Module of the measurements of a batch.
        measurement: A measurement like the others.
        most: Number of measurements, the upper limit.
        make_trainer: New Trainer that writes to a folder, with the run's device and precision.

    Returns:
        At least 1, at most ``most``.
    """
    fits, fails = 1, most + 1
    while fits + 1 < fails:
        tried = min(2 * fits, most) if fails > most else (fits + fails) // 2
        if _fits(make_module, [measurement._replace(name=f"{index}") for index in range(tried)], make_trainer):
            fits = tried
        else:
            fails = tried
    return fits


def _fits(make_module: Callable, measurements: list[Measurement], make_trainer: Callable) -> bool:
    """Whether the first step of a fit has enough memory."""
    with TemporaryDirectory() as scratch:
        trainer = make_trainer(Path(scratch))
        trainer.callbacks, trainer.loggers = [], []
        trainer.fit_loop.epoch_loop.max_steps = 1
        try:
            trainer.fit(make_module(measurements))
        except torch.OutOfMemoryError:
            return False
        except SystemExit as stop:  # which Lightning makes of Ctrl-C
            raise KeyboardInterrupt from stop
        finally:
            gc.collect()  # module and Trainer know each other
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return True
