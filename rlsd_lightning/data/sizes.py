"""Sizes of the images that are solved, and an operator for each."""

import functools
import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from deepinv.physics import Decolorize, Demosaicing, Downsampling, Physics
from deepinv.physics.forward import ComposedPhysics

from rlsd_lightning.errors import InputError, require_one_of
from rlsd_lightning.operators import colorization, compose, demosaicing, super_resolution
from rlsd_lightning.operators.compose import build_physics, make_physics
from rlsd_lightning.reading.frames import FITS, Frame

__all__ = ["AnySize", "ImageSizes", "OneSize"]

OF_SOME_SIZES = (super_resolution, demosaicing, colorization, compose, Downsampling, Demosaicing, Decolorize)
"""Operators that are made once on trial: they tell which sizes they take, and whether measured pictures may be reduced."""
KEPT = 16
"""Sizes of images whose operators stay in memory."""


class ImageSizes(NamedTuple):
    """Sizes of images that a prior takes.

    Attributes:
        image_shape: Shape :math:`(C, H, W)` of the largest image that a picture becomes.
        multiple: Number of pixels that must divide both sides; None: images have ``image_shape`` only.
        trained: Longer side of the images of the prior's training, to which smaller pictures are enlarged; None: they
            are not.
        most: Largest side of an image that a picture becomes, if it is below H or W.
    """

    image_shape: tuple[int, ...]
    multiple: int | None = 1
    trained: int | None = None
    most: int | None = None


class OneSize:
    """One operator for images of one size; pictures are cropped in the middle."""

    measures_pixels = False

    def __init__(self, image_shape: tuple[int, ...], physics: Physics) -> None:
        self.typical_shape, self._physics = tuple(image_shape), physics
        self.largest = self.typical_shape[-2:]

    def frame(self, picture_size: tuple[int, int]) -> Frame:
        """Where a picture of some height and width lies in the image."""
        return Frame.cropped(picture_size, self.typical_shape[-2:])

    def measured_frame(self, picture_size: tuple[int, int]) -> Frame:
        """Where a measured picture lies in the image.

        Raises:
            InputError: If it has another size.
        """
        return _only(picture_size, self.typical_shape[-2:])

    def physics(self, frame: Frame | None = None) -> Physics:
        """The operator."""
        return self._physics


class AnySize:
    """Operators for images of any size.

    Args:
        sizes: Sizes that the prior takes.
        factory: What makes the operator for a size, see :func:`~rlsd_lightning.operators.make_physics`.
        fit: What is done with pictures. ``keep``: they keep their aspect ratio, up to the nearest multiples, and are
            reduced to the largest size. ``crop``: the largest part in the middle fills the largest size. ``pad``: they are
            reduced to fit into the largest size, and continued to it by their mirror image.

    Attributes:
        largest: Height and width of the largest image that a picture becomes; that of a measurement may be larger.
        measures_pixels: Whether pixels are measured one by one, by a mask that depends on the picture's place in the image.

    Raises:
        InputError: If there is no such fit.
    """

    def __init__(self, sizes: ImageSizes, factory: Callable[..., Physics], fit: str = "keep") -> None:
        require_one_of(FITS, fit=fit)
        if len(sizes.image_shape) != 3:
            raise InputError(
                f"a prior of images of shape (C, H, W) is expected for pictures, got one of points of shape "
                f"{sizes.image_shape}; choose another prior, or task=toy"
            )
        self._trained, self._fit = sizes.trained, fit
        self._one_size = sizes.multiple is None
        if self._one_size:
            sizes, self._fit = sizes._replace(multiple=1, most=None), "crop"
        typical = self._typical(sizes, factory)
        if isinstance(typical, Downsampling) and _function(factory) is super_resolution:
            factory = partial(factory, factor=typical.factor)  # the same for pictures of all sizes
        self._takes_frame = takes_frame(factory)
        self.measures_pixels = self._takes_frame and _function(factory) is not compose
        # a measured picture may be reduced where pixels are measured one by one
        self._reducible = self.measures_pixels or isinstance(typical, Decolorize)
        self._multiple = math.lcm(sizes.multiple, multiple_of(typical))
        channels, *size = sizes.image_shape
        share = min(1.0, (sizes.most or max(size)) / max(size))
        self.largest = tuple(self._within(share * length) for length in size)
        self.typical_shape = (channels, *map(self._within, size))
        self._made = functools.lru_cache(KEPT)(partial(make_physics, factory))

    def _within(self, length: float) -> int:
        """The largest multiple up to a length."""
        return max(1, int(length) // self._multiple) * self._multiple

    @staticmethod
    def _typical(sizes: ImageSizes, factory: Callable[..., Physics]) -> Physics:
        """An operator of the size of the training; a plain one where its kind does not matter."""
        if _function(factory) not in OF_SOME_SIZES:
            return Physics()
        factor = factory.keywords.get("factor") if isinstance(factory, partial) else None
        side = 4 * factor if isinstance(factor, int) else sizes.trained or min(sizes.image_shape[-2:])
        try:
            return build_physics(factory, (*sizes.image_shape[:-2], side, side))
        except InputError:  # it is raised again for the size of a picture
            return Physics()

    def frame(self, picture_size: tuple[int, int]) -> Frame:
        """Where a picture of some height and width lies in the image."""
        if self._fit == "crop":
            return Frame.cropped(picture_size, self.largest)
        fitting = min(most / length for most, length in zip(self.largest, picture_size, strict=True))
        scale = min(fitting, max(1.0, (self._trained or 1) / max(picture_size)))
        if self._fit == "pad":
            return Frame.whole(
                picture_size, tuple(max(1, round(scale * length)) for length in picture_size), self.largest
            )
        size = [
            min(max(1, round(scale * length / self._multiple)) * self._multiple, most)
            for length, most in zip(picture_size, self.largest, strict=True)
        ]
        return Frame.whole(picture_size, tuple(size))

    def measured_frame(self, picture_size: tuple[int, int]) -> Frame:
        """Where a measured picture lies in the image: as it is, continued to the next multiples, or reduced if it may be.

        Raises:
            InputError: If the prior takes images of one size only, and this is another.
        """
        if self._one_size:
            return _only(picture_size, self.typical_shape[-2:])
        if self._reducible and any(length > most for length, most in zip(picture_size, self.largest, strict=True)):
            return self.frame(picture_size)
        return Frame.extended(picture_size, self._multiple)

    def physics(self, frame: Frame | None = None) -> Physics:
        """The operator for an image; for one of ``typical_shape`` if left out."""
        size = self.typical_shape[-2:] if frame is None else frame.image_size
        return self._made((self.typical_shape[0], *size), frame if self._takes_frame else None)


def takes_frame(factory: Callable[..., Physics]) -> bool:
    """Whether an operator, or one of a composition, depends on the picture's place in the image."""
    if _function(factory) is compose:
        operators = factory.keywords.get("operators", ()) if isinstance(factory, partial) else ()
        return any(takes_frame(each) for each in operators if not isinstance(each, Physics))
    return "frame" in inspect.signature(factory).parameters


def multiple_of(physics: Physics) -> int:
    """Number of pixels that must divide the sides of the images that an operator takes."""
    if isinstance(physics, ComposedPhysics):
        return math.prod(multiple_of(each) for each in physics.physics_list)
    if isinstance(physics, Downsampling):
        return physics.factor
    return 2 if isinstance(physics, Demosaicing) else 1


def _only(picture_size: tuple[int, int], size: tuple[int, int]) -> Frame:
    if tuple(picture_size) != tuple(size):
        raise InputError(
            f"a measurement of an image of {size[1]}x{size[0]} pixels is expected, the only size that is solved here, got one "
            f"of {picture_size[1]}x{picture_size[0]}; crop and resize it"
        )
    return Frame.whole(picture_size, picture_size)


def _function(factory: Callable[..., Physics]) -> Callable[..., Physics]:
    return factory.func if isinstance(factory, partial) else factory
