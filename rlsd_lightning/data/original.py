"""Pictures at their own size, with what was solved in them."""

from collections.abc import ItemsView, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from deepinv.physics import Decolorize, Physics
from PIL import Image
from torch import Tensor

from rlsd_lightning.images import Reader, to_pil
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.operators.pixels import observed_in_picture
from rlsd_lightning.reading.frames import Frame
from rlsd_lightning.reading.values import Range

__all__ = ["FilePicture", "FullSize"]


class FilePicture:
    """A picture of a file, and where it lies in the image that is solved; see :class:`~rlsd_lightning.measurement.Original`.

    Args:
        reader: Reader of the file.
        path: The file.
        key: The array in the file, if it holds several.
        page: The picture's place in the file.
        frame: Where the picture lies in the image.
        factor: Pixels of the image to one pixel of the file's picture, along each side.
        limits: Values that mean black and white, of a measured picture; None: they follow from the file.
    """

    def __init__(
        self,
        reader: Reader,
        path: Path,
        key: str | None,
        page: int,
        frame: Frame,
        factor: int = 1,
        limits: Range | None = None,
    ) -> None:
        self._reader, self._place, self._frame, self._factor = reader, (path, key, page), frame, factor
        self._limits = limits

    def with_image(self, images: Iterable[Image.Image], physics: Physics) -> Iterator[Image.Image]:
        """Images at the picture's own size, one after the other.

        They are enlarged by a Lanczos filter. Where the operator hides pixels, they are pasted into the picture, whose own
        pixels stay. Where it measures brightness, they have the picture's own.

        Args:
            images: Pictures of the solved images.
            physics: The operator.

        Raises:
            InputError: If the file can't be read any more.
        """
        seen = observed_in_picture(physics, self._frame) if self._factor == 1 else None
        if seen is None and (self._factor != 1 or not isinstance(physics, Decolorize)):
            yield from map(self._frame.to_picture, images)
            return
        own = self._reader.picture(*self._place, self._limits)
        for image in images:
            yield self._in_picture(own, image, seen)

    def _in_picture(self, own: Image.Image, image: Image.Image, seen: Image.Image | None) -> Image.Image:
        """An image in the part of the picture that it is of."""
        box, enlarged = self._frame.pixel_box, self._frame.to_picture(image)
        part = own.crop(box)
        if seen is None:
            return with_brightness(enlarged, part)
        whole = own.copy()
        whole.paste(Image.composite(part, enlarged, seen), box)
        return whole


class FullSize(Mapping[str, Image.Image]):
    """Images at the size of the user's own picture, each made when it is asked for: all of a large photograph fill gigabytes.

    Args:
        measurement: The measurement; without an original there are no pictures.
        images: Solved images in [-1, 1], with shape :math:`(C, H, W)`, by their file names.
    """

    def __init__(self, measurement: Measurement, images: Mapping[str, Tensor]) -> None:
        self._original, self._physics = measurement.original, measurement.physics
        self._images = {} if measurement.original is None else dict(images)

    def __getitem__(self, name: str) -> Image.Image:
        return next(self.made(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._images)

    def __len__(self) -> int:
        return len(self._images)

    def items(self) -> ItemsView[str, Image.Image]:
        """Names and pictures, for which the user's file is read once."""
        return _Items(self)

    def made(self, *names: str) -> Iterator[Image.Image]:
        """Pictures one after the other.

        Raises:
            InputError: If the user's file can't be read any more.
        """
        return iter(self._original.with_image((to_pil(self._images[name]) for name in names), self._physics))


class _Items(ItemsView[str, Image.Image]):
    def __iter__(self) -> Iterator[tuple[str, Image.Image]]:
        return zip(self._mapping, self._mapping.made(*self._mapping), strict=True) if self._mapping else iter(())


def with_brightness(image: Image.Image, other: Image.Image) -> Image.Image:
    """An image with another's mean of the channels at every pixel, up to clipping."""
    values, wanted = (torch.from_numpy(np.array(each)).float() for each in (image, other))
    values += wanted.mean(dim=-1, keepdim=True) - values.mean(dim=-1, keepdim=True)
    return Image.fromarray(values.clamp(0, 255).round().to(torch.uint8).numpy())
