"""Images in [-1, 1]: from files of every kind, and to pictures."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rlsd_lightning.errors import InputError, printable, require_at_least_one
from rlsd_lightning.reading.frames import Frame
from rlsd_lightning.reading.paths import find_images, split_key
from rlsd_lightning.reading.shapes import check_axes
from rlsd_lightning.reading.stacks import Stack
from rlsd_lightning.reading.values import Range, as_range, picture_range, scaled
from rlsd_lightning.signatures import typed

__all__ = ["ROUNDING", "Notes", "Reader", "find_images", "load_image", "to_pil", "with_channels"]

log = logging.getLogger(__name__)

ROUNDING = 1 / 255
"""Largest rounding error of a picture of 8 bits, in units of an image in [-1, 1]."""


class Notes:
    """Logs what was inferred about files; what holds for several is logged once, with the name of the first."""

    def __init__(self) -> None:
        self._noted: set[str] = set()

    def __call__(self, path: Path, text: str, level: int = logging.INFO) -> None:
        if text and text not in self._noted:
            self._noted.add(text)
            log.log(level, "%s: %s", printable(path.name), text)


class Reader:
    """Reads files as images, with one meaning of their values and axes.

    Args:
        range: Values that mean black and white, as ``"0,255"`` or ``[0, 255]``; by default they follow from the file.
        axes: Order of an array's axes: N pictures, C channels, H height, W width; told by their sizes by default.

    Raises:
        InputError: If range or axes are not such.
    """

    def __init__(self, range: str | Sequence[float] | None = None, axes: str | None = None) -> None:
        self.asked, self.axes = as_range(range), check_axes(axes)
        self.notes = Notes()
        self._last: Stack | None = None

    def stack(self, path: Path, key: str | None = None, expected: tuple[int, ...] | None = None) -> Stack:
        """Pictures of a file, see :class:`~rlsd_lightning.reading.stacks.Stack`; the last file is kept for its next picture.

        Raises:
            InputError: If an array can't be read, or its axes are not clear.
        """
        if self._last is None or (self._last.path, self._last.key) != (path, key):
            self._last = Stack(path, key, self.axes, expected)
        return self._last

    def picture(self, path: Path, key: str | None = None, page: int = 0, limits: Range | None = None) -> Image.Image:
        """A picture of any kind at its own size, with 8 bits and three channels.

        Args:
            path: The file.
            key: The array in the file, if it holds several.
            page: The picture's place in the file.
            limits: Values that mean black and white, if they are known; values that are not finite are then grey.

        Raises:
            InputError: If the file is missing or can't be read, or the meaning of its values or axes is not clear.
        """
        picture = self.stack(path, key).page(page)
        if self.asked is None and isinstance(picture, Image.Image):
            return picture
        if limits is not None:
            return to_pil(torch.from_numpy(np.nan_to_num(scaled(np.asarray(picture), limits))).movedim(-1, 0))
        return to_pil(self._of_values(np.asarray(picture), path, key)[0])

    def size(self, path: Path, key: str | None = None, page: int = 0) -> tuple[int, int]:
        """Height and width of a picture.

        Raises:
            InputError: If it can't be read.
        """
        return size_of(self.stack(path, key).page(page))

    def image(
        self, path: Path, frame_of: Callable[[tuple[int, int]], Frame], key: str | None = None, page: int = 0
    ) -> tuple[Tensor, Frame]:
        """The image of a picture of any size and kind.

        Args:
            path: The file.
            frame_of: What gives the place of a picture in the image, by its height and width.
            key: The array in the file, if it holds several.
            page: The picture's place in the file.

        Returns:
            An image in [-1, 1] with shape :math:`(1, 3, H, W)`; and where the picture lies in it.

        Raises:
            InputError: If the file is missing or can't be read, or the meaning of its values or axes is not clear.
        """
        picture = self.stack(path, key).page(page)
        frame = frame_of(size_of(picture))
        if not frame.is_trivial:
            self.notes(path, frame.describe())
        if self.asked is None and isinstance(picture, Image.Image):
            pixels = torch.from_numpy(np.array(frame.of_picture(picture))).movedim(-1, 0)[None]
            if pixels.max() == 1:  # as masks and labels are stored
                self.notes(path, "nearly black; if its largest value is white, set range=0,1", logging.WARNING)
            return pixels.float() / 127.5 - 1, frame
        return frame.of_values(self._of_values(np.asarray(picture), path, key)).expand(1, 3, -1, -1), frame

    def _of_values(self, values: np.ndarray, path: Path, key: str | None) -> Tensor:
        """Values of a picture in [-1, 1], with shape :math:`(1, C, H, W)`."""
        stack = self.stack(path, key)
        decide = partial(picture_range, asked=self.asked or stack.range, what=path)
        return self._within(values, stack.limits(decide, values), path)

    def _within(self, values: np.ndarray, limits: Range, path: Path) -> Tensor:
        """Values in [-1, 1], with shape :math:`(1, C, H, W)`."""
        image = torch.from_numpy(scaled(values, limits)).movedim(-1, 0)[None]
        outside = (image.abs() > 1).float().mean().item() if limits.asked else 0.0
        self.notes(path, limits.note + (f"; {100 * outside:.2g} % of them are outside and clipped" if outside else ""))
        return image.clamp(-1, 1)


@typed
def load_image(
    path: str | Path,
    height: int,
    width: int,
    range: str | Sequence[float] | None = None,
    axes: str | None = None,
    page: int = 0,
) -> Tensor:
    """Picture or array of any size and kind, centre-cropped and resized.

    Args:
        path: A file; ``file.h5:key`` chooses one of several arrays.
        height: Height of the image.
        width: Width of the image.
        range: Black and white, like ``axes`` as in :class:`Reader`.
        axes: Order of an array's axes.
        page: Number of the picture in a file with several.

    Returns:
        Values in [-1, 1], with shape :math:`(1, 3, H, W)`.

    Raises:
        InputError: If the file is missing or can't be read, or the meaning of its values or axes is not clear.
    """
    require_at_least_one(height=height, width=width)
    file, key = split_key(path)
    return Reader(range, axes).image(file, partial(Frame.cropped, image_size=(height, width)), key, page)[0]


def to_pil(image: Tensor) -> Image.Image:
    """A picture of an image in [-1, 1] with shape :math:`(C, H, W)` and one or three channels; values are clipped."""
    pixels = ((image.detach().cpu().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(pixels.movedim(0, -1).expand(*pixels.shape[1:], 3).numpy())


def size_of(picture: Image.Image | np.ndarray) -> tuple[int, int]:
    """Height and width."""
    return picture.size[::-1] if isinstance(picture, Image.Image) else picture.shape[:2]


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Images of shape :math:`(n, 3, H, W)` with the channels of a prior's images: the same, or their mean for one.

    Raises:
        InputError: If there are neither one nor three channels, which no picture has.
    """
    if channels == images.shape[1]:
        return images
    if channels == 1:
        return images.mean(dim=1, keepdim=True)
    raise InputError(
        f"images: a prior of 1 or 3 channels is expected for pictures, got one of {channels}; give the measurement itself"
    )
