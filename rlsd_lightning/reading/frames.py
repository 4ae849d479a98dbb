"""How pictures of any size become images that a prior takes, and back."""

import math
from typing import NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

__all__ = ["FITS", "Frame", "next_multiple"]

FITS = ("keep", "crop", "pad")
"""What is done with a picture of another size, see :class:`Frame`."""
RESAMPLING = Image.Resampling.LANCZOS
"""The filter of pictures; real numbers are resized by a bicubic one. Both average where they reduce."""


class Frame(NamedTuple):
    """Where a picture lies in the image that is solved: a part of it is resized, and continued by its mirror image.

    Attributes:
        picture_size: The picture's height and width.
        part_size: Height and width of the part in the middle that is taken, in the picture's pixels.
        fitted_size: Height and width of this part in the image.
        image_size: The image's height and width.
    """

    picture_size: tuple[int, int]
    part_size: tuple[float, float]
    fitted_size: tuple[int, int]
    image_size: tuple[int, int]

    @classmethod
    def whole(
        cls, picture_size: tuple[int, int], fitted_size: tuple[int, int], image_size: tuple[int, int] | None = None
    ) -> Self:
        """The whole picture, resized and continued to a size."""
        return cls(tuple(picture_size), picture_size, fitted_size, image_size or fitted_size)

    @classmethod
    def cropped(cls, picture_size: tuple[int, int], image_size: tuple[int, int]) -> Self:
        """The largest part with an image's aspect ratio."""
        (rows, columns), (height, width) = picture_size, image_size
        part_size = picture_size
        if columns / rows > width / height:
            part_size = (rows, width / height * rows)
        elif columns / rows < width / height:
            part_size = (columns / (width / height), columns)
        return cls(tuple(picture_size), tuple(part_size), tuple(image_size), tuple(image_size))

    @classmethod
    def extended(cls, picture_size: tuple[int, int], multiple: int) -> Self:
        """The picture as it is, continued to the next multiples of a number."""
        return cls.whole(picture_size, picture_size, tuple(next_multiple(length, multiple) for length in picture_size))

    @property
    def is_trivial(self) -> bool:
        """Whether the image is the picture as it is."""
        return self.picture_size == self.image_size == self.fitted_size

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, upper, right and lower border of the part, in the picture's pixels."""
        top, left = ((whole - part) * 0.5 for whole, part in zip(self.picture_size, self.part_size, strict=True))
        return left, top, left + self.part_size[1], top + self.part_size[0]

    @property
    def pixel_box(self) -> tuple[int, int, int, int]:
        """The box in whole pixels."""
        height, width = (max(1, round(length)) for length in self.part_size)
        top, left = round((self.picture_size[0] - height) / 2), round((self.picture_size[1] - width) / 2)
        return left, top, left + width, top + height

    def reduced(self, factor: int) -> Self:
        """The same place in a picture and an image of both sides divided by a factor."""
        return type(self)(*(tuple(length // factor for length in pair) for pair in self))

    def at_size(self, size: tuple[int, int]) -> Self | None:
        """The same place in an image of another size; None if both sides are not divided by one factor, without a rest."""
        factor = max(1, self.image_size[0] // max(1, size[0]))
        smaller = self.reduced(factor) if factor > 1 else self
        is_exact = all(length % factor == 0 for length in (*self.picture_size, *self.fitted_size, *self.image_size))
        return smaller if is_exact and smaller.image_size == tuple(size) else None

    def describe(self) -> str:
        """What happens to the picture, for the log."""
        (rows, columns), (height, width) = self.picture_size, self.image_size
        done = "cropped and resized" if tuple(self.part_size) != self.picture_size else "resized"
        if self.fitted_size != self.image_size:
            done = "padded" if self.fitted_size == self.picture_size else f"{done} and padded"
        return f"{columns}x{rows}, {done} to {width}x{height}"

    def of_picture(self, picture: Image.Image, resampling: Image.Resampling = RESAMPLING) -> Image.Image:
        """The image of a picture."""
        if self.is_trivial:
            return picture
        height, width = self.fitted_size
        inner = picture.resize((width, height), resampling, box=self.box)
        if self.fitted_size == self.image_size:
            return inner
        values = np.asarray(inner)
        return Image.fromarray(np.pad(values, [*self._margins(), (0, 0)][: values.ndim], mode="symmetric"))

    def of_values(self, values: Tensor) -> Tensor:
        """The image of values in [-1, 1] with shape :math:`(1, C, H, W)`."""
        if self.is_trivial:
            return values
        left, top, right, bottom = self.pixel_box
        inner = values[..., top:bottom, left:right]
        if inner.shape[-2:] != self.fitted_size:
            inner = interpolate(inner, size=self.fitted_size, mode="bicubic", antialias=True).clamp(-1, 1)
        if self.fitted_size == self.image_size:
            return inner
        return torch.from_numpy(np.pad(inner.numpy(), [(0, 0), (0, 0), *self._margins()], mode="symmetric"))

    def to_picture(self, image: Image.Image, resampling: Image.Resampling = RESAMPLING) -> Image.Image:
        """The picture's part of an image, at the picture's own size."""
        left, top, right, bottom = self.pixel_box
        inner = image.crop((0, 0, self.fitted_size[1], self.fitted_size[0]))
        return inner.resize((right - left, bottom - top), resampling)

    def _margins(self) -> list[tuple[int, int]]:
        """Rows below and columns right of the picture that continue it."""
        return [(0, size - inner) for size, inner in zip(self.image_size, self.fitted_size, strict=True)]


def next_multiple(length: int, multiple: int) -> int:
    """The least multiple of a number that is not below a length."""
    return math.ceil(length / multiple) * multiple
