"""Pictures at their own size, with what was solved in them."""

from pathlib import Path

import numpy as np
import torch
from deepinv.physics import Decolorize, Physics
from PIL import Image

from rlsd_lightning.images import Reader
from rlsd_lightning.operators.pixels import observed_in_picture
from rlsd_lightning.reading.frames import Frame
from rlsd_lightning.reading.values import Range

__all__ = ["FilePicture"]


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

    def with_image(self, images: list[Image.Image], physics: Physics) -> list[Image.Image]:
        """Images at the picture's own size.

        They are enlarged by a Lanczos filter. Where the operator hides pixels, they are pasted into the picture, whose own
        pixels stay. Where it measures brightness, they have the picture's own.

        Args:
            images: Pictures of the solved images.
            physics: The operator.

        Raises:
            InputError: If the file can't be read any more.
        """
        if self._factor != 1:
            return [self._frame.to_picture(image) for image in images]
        seen = observed_in_picture(physics, self._frame)
        if seen is None and not isinstance(physics, Decolorize):
            return [self._frame.to_picture(image) for image in images]
        own = self._reader.picture(*self._place, self._limits)
        return [self._in_picture(own, image, seen) for image in images]

    def _in_picture(self, own: Image.Image, image: Image.Image, seen: Image.Image | None) -> Image.Image:
        """An image in the part of the picture that it is of."""
        box, enlarged = self._frame.pixel_box, self._frame.to_picture(image)
        part = own.crop(box)
        if seen is None:
            return with_brightness(enlarged, part)
        whole = own.copy()
        whole.paste(Image.composite(part, enlarged, seen), box)
        return whole


def with_brightness(image: Image.Image, other: Image.Image) -> Image.Image:
    """An image with another's mean of the channels at every pixel, up to clipping."""
    values, wanted = (torch.from_numpy(np.array(each)).float() for each in (image, other))
    values += wanted.mean(dim=-1, keepdim=True) - values.mean(dim=-1, keepdim=True)
    return Image.fromarray(values.clamp(0, 255).round().to(torch.uint8).numpy())
