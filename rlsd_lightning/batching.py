"""How many measurements fit on a device."""

from collections.abc import Callable, Sequence

import torch

from rlsd_lightning.measurement import Measurement
from rlsd_lightning.particles import ParticleModule

__all__ = ["largest_batch"]


def largest_batch(
    make_module: Callable[[Sequence[Measurement]], ParticleModule],
    measurement: Measurement,
    most: int,
    device: torch.device,
) -> int:
    """The largest number of measurements whose first step, the one that takes the most memory, does not run out of it.

    Doubles until a step fails, then halves the gap.

    Args:
        make_module: Called with the measurements of a batch.
        measurement: One like the others.
        most: How many there are.
        device: Where they are solved.

    Returns:
        At least 1, at most ``most``.
    """
    fits, fails = 1, most + 1
    while fits + 1 < fails:
        tried = min(2 * fits, most) if fails > most else (fits + fails) // 2
        if _fits(make_module, [measurement._replace(name=f"{index}") for index in range(tried)], device):
            fits = tried
        else:
            fails = tried
    return fits


def _fits(make_module: Callable, measurements: list[Measurement], device: torch.device) -> bool:
    module = make_module(measurements).to(device)
    module.on_fit_start()
    try:
        module.training_step((0, module.timesteps[0]), 0).backward()
    except torch.OutOfMemoryError:
        return False
    finally:
        module.zero_grad()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True
