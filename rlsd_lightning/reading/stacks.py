"""The pictures of one file, which share a range."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from rlsd_lightning.errors import InputError
from rlsd_lightning.reading.arrays import read_array
from rlsd_lightning.reading.paths import is_array
from rlsd_lightning.reading.pictures import frames_of, read_picture
from rlsd_lightning.reading.shapes import as_pages
from rlsd_lightning.reading.values import Range, check_finite

__all__ = ["Stack"]


class Stack:
    """Pictures of a file: pages of a TIFF, frames of an animation, slices of an array; mostly one.

    Args:
        path: The file.
        key: The array in it, if it holds several.
        axes: Axes of the array, as in :func:`~rlsd_lightning.reading.shapes.check_axes`.
        expected: Shape of one picture, if it is known; an array of this shape is one picture with axes C, H, W.

    Raises:
        InputError: If an array can't be read, or its axes are not clear.
    """

    def __init__(
        self,
        path: Path,
        key: str | None = None,
        axes: str | None = None,
        expected: tuple[int, ...] | None = None,
    ) -> None:
        self.path, self.key = path, key
        self.range: Range | None = None
        """Black and white, if the file tells them."""
        self.array: np.ndarray | None = None
        """All pictures, with shape :math:`(N, H, W, C)`, if the file is an array's."""
        self._limits: Range | None = None
        if is_array(path):
            values, told, self.range = read_array(path, key)
            if expected is not None and len(expected) == 3 and values.shape in (expected, (1, *expected)):
                told = told or "NCHW"[4 - values.ndim :]
            self.array = as_pages(values, axes or told, path)

    def __len__(self) -> int:
        return frames_of(self.path) if self.array is None else len(self.array)

    def page(self, index: int = 0) -> Image.Image | np.ndarray:
        """A picture of 8 bits and three channels, or values with shape :math:`(H, W, C)`.

        Raises:
            InputError: If it can't be read.
        """
        if self.array is not None:
            if not 0 <= index < len(self):
                raise InputError(f"'{self.path}' has {len(self)} pictures, numbered from 0, got number {index}")
            return self.array[index]
        picture = read_picture(self.path, index)
        return picture[..., None] if isinstance(picture, np.ndarray) and picture.ndim == 2 else picture

    def limits(self, decide: Callable[[np.ndarray], Range], page: np.ndarray, seen: np.ndarray | None = None) -> Range:
        """Black and white of all pictures that can be read.

        Args:
            decide: What makes a range of the lowest and the highest value.
            page: One of the pictures, which is read already; what is wrong with another is its own error.
            seen: Pixels that count, with shape :math:`(H, W, 1)`; all by default.

        Raises:
            InputError: If a value of the page that counts is not finite, or the range is not clear.
        """
        counted = _counted(page, seen)
        if not counted.size:
            raise InputError(f"the mask hides every value of '{self.path}'; make observed pixels white")
        check_finite(counted, self.path)
        if self._limits is None:
            pages = (_counted(each, seen) for each in self._readable(page))
            finite = (each if each.dtype.kind in "biu" else each[np.isfinite(each)] for each in pages)
            extremes = [np.array([each.min(), each.max()]) for each in finite if each.size]
            kind = max((each.dtype for each in extremes), key=lambda kind: kind.itemsize)
            self._limits = decide(np.concatenate(extremes).astype(kind))
        return self._limits

    def _readable(self, page: np.ndarray) -> Iterator[np.ndarray]:
        """All pictures that can be read; ``page`` if there is one only."""
        if len(self) == 1:
            yield page
            return
        for index in range(len(self)):
            with suppress(InputError):  # it is raised again where this picture is wanted
                yield np.asarray(self.page(index))


def _counted(values: np.ndarray, seen: np.ndarray | None) -> np.ndarray:
    is_masked = seen is not None and seen.shape[:2] == values.shape[:2]
    return values[np.broadcast_to(seen, values.shape)] if is_masked else values
