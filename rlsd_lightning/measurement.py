"""A measurement and its operator: one inverse problem."""

import copy
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from deepinv.physics import Physics
from PIL import Image
from torch import Tensor

from rlsd_lightning.functional.noise import measurement_key

__all__ = ["Measurement", "MeasurementList", "Measurements", "Original", "SavedMeasurement", "moved_to"]


@runtime_checkable
class Original(Protocol):
    """The picture of a measurement at its own size, which is not that of the image that is solved."""

    def with_image(self, images: Iterable[Image.Image], physics: Physics) -> Iterable[Image.Image]:
        """Solved images at the picture's size, in it where only a part is solved or missing; they may be made one at a time.

        Raises:
            InputError: If the picture can't be read any more.
        """


class Measurement(NamedTuple):
    """One inverse problem: a measurement, its operator, and what else is known about the image.

    Attributes:
        name: Name of the results' folder.
        y: The measurement, with shape :math:`(1, ...)`.
        physics: The operator :math:`A` and the noise model.
        truth: The clean image in [-1, 1] with shape :math:`(1, C, H, W)`, if known.
        series: Key of the particles' noise, shared by the measurements of a sequence; the name by default.
        start: Initial latents and images of the particles, each with shape :math:`(N, ...)`; drawn by default.
        image_shape: Shape :math:`(C, H, W)` of the image; that of the prior's images by default.
        original: The picture at its own size, if that is another one.
    """

    name: str
    y: Tensor
    physics: Physics
    truth: Tensor | None = None
    series: str | None = None
    start: tuple[Tensor, Tensor] | None = None
    image_shape: tuple[int, ...] | None = None
    original: Original | None = None

    @property
    def noise_key(self) -> int:
        """The key of the particles' noise, for :func:`~rlsd_lightning.functional.noise.keyed_normal`."""
        return measurement_key(self.series or self.name)


def moved_to(device: torch.device, measurements: Sequence[Measurement]) -> list[Measurement]:
    """Copies on a device: the caller's operators stay where they are, and measurements that share one go on sharing."""
    operators = copy.deepcopy([each.physics for each in measurements])
    moved = zip(measurements, operators, strict=True)
    return [each._replace(y=each.y.to(device), physics=operator.to(device)) for each, operator in moved]


class Measurements(Protocol):
    """Measurements of a run, read on access.

    Attributes:
        names: The measurements' names.
        sequence: Whether each measurement starts from the particles of the previous one.
        available: Number of measurements before any limit.
    """

    @property
    def names(self) -> list[str]: ...

    @property
    def sequence(self) -> bool: ...

    @property
    def available(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Measurement: ...


class MeasurementList(list[Measurement]):
    """Measurements in memory, with their ``names``."""

    sequence = False

    @property
    def names(self) -> list[str]:
        return [measurement.name for measurement in self]

    @property
    def available(self) -> int:
        return len(self)


class SavedMeasurement(NamedTuple):
    """A finished measurement as it was read back from its folder.

    Attributes:
        name: Name of its folder.
        images: Particles, about in [-1, 1], with shape :math:`(N, C, H, W)`.
        metrics: Content of metrics.json.
        truth: Clean image with shape :math:`(1, C, H, W)`, if known.
        observed: Boolean mask of the values that the operator leaves unchanged, with shape :math:`(C, H, W)`.
        aligned: Particles in their equivalent forms nearest to the truth, or without one to the first particle, for
            operators with such forms.
        shared_variance: Variance of the error that all particles share, with shape :math:`(C, H, W)`, if estimated.
    """

    name: str
    images: Tensor
    metrics: dict
    truth: Tensor | None = None
    observed: Tensor | None = None
    aligned: Tensor | None = None
    shared_variance: Tensor | None = None
