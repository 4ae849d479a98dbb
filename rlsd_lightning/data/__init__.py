"""Measurements from files: clean images with simulated measurements, or measured data without a truth."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from deepinv.physics import Physics

from rlsd_lightning.data.datasets import folder_of
from rlsd_lightning.data.measured import MeasuredData, load_measured
from rlsd_lightning.data.simulated import ImageMeasurements, measure
from rlsd_lightning.data.sizes import AnySize, ImageSizes
from rlsd_lightning.errors import InputError
from rlsd_lightning.measurement import Measurement, MeasurementList
from rlsd_lightning.operators.compose import make_physics

__all__ = [
    "AnySize",
    "ImageMeasurements",
    "ImageSizes",
    "MeasuredData",
    "load_measured",
    "measure",
    "measurements",
    "point_measurement",
    "unobserved",
]


def measurements(
    sizes: ImageSizes | tuple[int, ...],
    physics: Callable[..., Physics],
    images: str | Path | None = None,
    limit: int | None = None,
    measurement: str | Path | None = None,
    fit: str = "keep",
    seed: int = 0,
    sequence: bool = False,
    tile: int | None = None,
    range: str | Sequence[float] | None = None,
    axes: str | None = None,
) -> ImageMeasurements | MeasuredData:
    """Measurements of a run: the measured files if given, else simulated ones of images.

    Args:
        sizes: Sizes of images that the prior takes, or the shape of the largest.
        physics: Factory of the operator, see :func:`~rlsd_lightning.operators.make_physics`.
        images: Clean images, like the further arguments as in :class:`ImageMeasurements`; ``deepinv:Kodak24`` is a data
            set of ``deepinv.datasets``.
        measurement: Measured files, as in :class:`MeasuredData`.
        fit: What is done with pictures of another size: ``keep``, ``crop`` or ``pad``, see :class:`AnySize`.

    Raises:
        InputError: If images and measurement are missing or can't be read.
    """
    sizes = as_sizes(sizes)
    if measurement is not None and tile is not None:
        raise InputError("tile must be left out with measured files, as it makes mosaics of clean images")
    if images is None and measurement is None:
        raise InputError("images=null and measurement=null give nothing to solve; set one of them")
    operators = AnySize(sizes, physics, fit)
    if measurement is not None:
        return MeasuredData(sizes.image_shape, operators, measurement, limit, sequence, range, axes)
    return ImageMeasurements(sizes.image_shape, operators, folder_of(images), limit, seed, sequence, tile, range, axes)


def as_sizes(sizes: ImageSizes | tuple[int, ...]) -> ImageSizes:
    """Sizes of images, from those or from the shape of the largest."""
    return sizes if isinstance(sizes, ImageSizes) else ImageSizes(tuple(sizes))


def unobserved(
    sizes: ImageSizes | tuple[int, ...], physics: Callable[..., Physics], name: str = "generated"
) -> MeasurementList:
    """A measurement without data, for particles of the prior and its prompt; ``name`` is the key of the noise."""
    image_shape = as_sizes(sizes).image_shape
    operator = make_physics(physics, image_shape)
    return MeasurementList([Measurement(name, operator.A(torch.zeros(1, *image_shape)), operator)])


def point_measurement(
    sizes: ImageSizes | tuple[int, ...], physics: Callable[..., Physics], value: float = 0.0
) -> MeasurementList:
    """One measurement of the first coordinate of a point with shape :math:`(d,)`."""
    image_shape = as_sizes(sizes).image_shape
    y = torch.zeros(1, *image_shape)
    y[0, 0] = value
    return MeasurementList([Measurement("toy", y, physics(image_shape))])
