"""A measurement and its operator: one inverse problem."""

from typing import NamedTuple

from deepinv.physics import Physics
from torch import Tensor

__all__ = ["Measurement", "MeasurementList"]


class Measurement(NamedTuple):
    """What is known of one image.

    Attributes:
        name: Name of the results' folder.
        y: The measurement, with shape :math:`(1, ...)`.
        physics: The operator :math:`A` and the noise model.
        truth: The clean image in [-1, 1] with shape :math:`(1, C, H, W)`, if known.
        series: Key of the particles' noise, shared by the measurements of a sequence; the name by default.
        start: Initial latents and images of the particles, each with shape :math:`(N, ...)`; drawn by default.
    """

    name: str
    y: Tensor
    physics: Physics
    truth: Tensor | None = None
    series: str | None = None
    start: tuple[Tensor, Tensor] | None = None


class MeasurementList(list[Measurement]):
    """Measurements in memory, with their ``names``."""

    sequence = False
    """Whether each measurement starts from the particles of the previous one."""

    @property
    def names(self) -> list[str]:
        """The measurements' names."""
        return [measurement.name for measurement in self]

    @property
    def available(self) -> int:
        """Number of measurements before any limit."""
        return len(self)
