"""Which measurements can be solved side by side, and how many fit on a device."""

import gc
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning as L
import torch

from rlsd_lightning.engine.chosen import chosen, keep_chosen
from rlsd_lightning.errors import LostError, StoppedError, first_line, is_out_of_memory
from rlsd_lightning.measurement import Measurement, Measurements
from rlsd_lightning.methods.base import ParticleModule

__all__ = ["batch_size", "batches_of", "by_size", "label_of", "largest_batch"]

log = logging.getLogger(__name__)


def batches_of(names: Sequence[str], size: int) -> dict[str, range]:
    """Indices of every batch's measurements, by the name of its folder."""
    ranges = [range(first, min(first + size, len(names))) for first in range(0, len(names), size)]
    return {label_of(names, indices): indices for indices in ranges}


def label_of(names: Sequence[str], indices: Sequence[int]) -> str:
    """Name of a batch's folder."""
    return names[indices[0]] if len(indices) == 1 else f"batch_{indices[0]:04d}-{indices[-1]:04d}"


def batch_size(
    folder: Path,
    device: torch.device,
    make_module: Callable[[Sequence[Measurement]], ParticleModule],
    data: Measurements,
    make_trainer: Callable[..., L.Trainer],
) -> int:
    """Number of measurements solved side by side in the run of a folder, chosen once by the device's memory."""
    size = chosen(folder, "measurements_per_batch")
    if size is None:
        # a process that exceeds a CPU's memory is killed without an error, and larger batches are no faster there
        size = 1 if device.type == "cpu" else largest_batch(make_module, data, make_trainer)
        log.info("measurements_per_batch=auto: %d on %s", size, device)
        keep_chosen(folder, "measurements_per_batch", size)
    return size


def by_size(measurements: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    """Measurements whose images have the same size, by this size, WIDTHxHEIGHT; empty where it is the prior's own."""
    parts: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        shape = measurement.image_shape
        size = "" if shape is None else f"{shape[2]}x{shape[1]}"
        parts.setdefault(size, []).append(measurement)
    return parts


def largest_batch(
    make_module: Callable[[Sequence[Measurement]], ParticleModule],
    data: Measurements,
    make_trainer: Callable[..., L.Trainer],
) -> int:
    """Largest number of measurements whose first step, the one that needs the most memory, fits; at least 1.

    Doubles the number of copies of the first readable measurement until a step fails, then bisects.
    """
    measurement = _first_readable(data)
    if measurement is None:
        return 1  # each is reported when it is its turn
    fits, fails = 1, len(data) + 1
    while fits + 1 < fails:
        tried = min(2 * fits, len(data)) if fails > len(data) else (fits + fails) // 2
        copies = [measurement._replace(name=f"{index}") for index in range(tried)]
        fits, fails = (tried, fails) if _fits(make_module, copies, make_trainer) else (fits, tried)
    return fits


def _first_readable(data: Measurements) -> Measurement | None:
    for index in range(len(data)):
        with suppress(Exception):  # any library's
            return data[index]
    return None


def _fits(make_module: Callable, measurements: list[Measurement], make_trainer: Callable) -> bool:
    """Whether the first step of a fit has enough memory."""
    with TemporaryDirectory() as scratch:
        try:
            make_trainer(Path(scratch), probe=True).fit(make_module(measurements))
        except (LostError, StoppedError):
            raise
        except Exception as error:  # noqa: BLE001  this measurement's own, or of its size
            if not is_out_of_memory(error):
                log.warning("the probe of measurements_per_batch=auto failed: %s", first_line(error))
            return False
        except SystemExit as stop:  # which Lightning makes of Ctrl-C
            raise KeyboardInterrupt from stop
        finally:
            gc.collect()  # module and Trainer know each other
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return True
