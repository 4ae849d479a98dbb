"""Inverse problems."""

from typing import NamedTuple

from deepinv.physics import Physics
from torch import Tensor

__all__ = ["Measurement", "MeasurementList"]


class Measurement(NamedTuple):
    """What is known about one image.

    Attributes:
        name: Names the folder of the results.
        y: The measurement, with shape :math:`(1, ...)`.
        physics: The operator :math:`A` and the noise model.
        truth: The clean image in [-1, 1] with shape :math:`(1, C, H, W)`, if it is known.
        series: Keys the particles' noise, which the measurements of one sequence share; the name if left out.
        start: Latents and images that the particles start from, each with shape :math:`(N, ...)`; drawn if left out.
    """

    name: str
    y: Tensor
    physics: Physics
    truth: Tensor | None = None
    series: str | None = None
    start: tuple[Tensor, Tensor] | None = None


class MeasurementList(list[Measurement]):
    """Measurements that are at hand, with their ``names``."""

    sequence = False
    """Whether each measurement starts from the particles of the previous one."""

    @property
    def names(self) -> list[str]:
        """The measurements' names."""
        return [measurement.name for measurement in self]
