"""Random numbers of the checks, the same on any device and in any process."""

import torch
from torch import Tensor

from rlsd_lightning.functional.noise import keyed_normal
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.base import ParticleModule

__all__ = ["Draws"]


class Draws:
    """Standard normal draws for a measurement's particles, another in each call.

    Args:
        module: Method, whose seed counts.
        measurement: The measurement, whose key counts.
        count: Number of rows.
        first: Number of the first draw.
    """

    def __init__(self, module: ParticleModule, measurement: Measurement, count: int, first: int = 0) -> None:
        self.keys = {"seed": module.seed, "measurement": measurement.noise_key, "stream": "checks"}
        self.count, self.number = count, first

    def __call__(self, like: Tensor) -> Tensor:
        """Draws with the shape, type and device of a tensor's rows; complex ones have two independent parts."""
        shape = tuple((torch.view_as_real(like) if like.is_complex() else like).shape[1:])
        drawn = keyed_normal(shape, range(self.count), step=self.number, **self.keys)
        self.number += 1
        return (torch.view_as_complex(drawn) if like.is_complex() else drawn).to(like)
