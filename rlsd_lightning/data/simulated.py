"""Clean images with simulated measurements."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from deepinv.physics import Physics
from torch import Tensor

from rlsd_lightning.data.files import FileMeasurements
from rlsd_lightning.data.sizes import AnySize
from rlsd_lightning.errors import InputError
from rlsd_lightning.functional.noise import measurement_key
from rlsd_lightning.images import with_channels
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.operators.medical import Scan
from rlsd_lightning.reading.frames import Frame
from rlsd_lightning.signatures import typed

__all__ = ["ImageMeasurements", "measure"]

log = logging.getLogger(__name__)


def measure(physics: Physics, image: Tensor, seed: int) -> Tensor:
    """Draws :math:`y = A(x) + n` from a seed; the global generator is left unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        return physics(image)


class ImageMeasurements(FileMeasurements):
    r"""Clean images with simulated measurements, read on access.

    Args:
        image_shape: Shape of the prior's images, :math:`(C, H, W)`.
        physics: The operator :math:`A` and its noise for images of this shape, to which pictures are cropped and resized; or
            :class:`~rlsd_lightning.data.sizes.AnySize`.
        images: A file, folder or glob of clean images: pictures, animations, stacks and arrays. ``file.h5:key`` chooses one
            of several arrays.
        limit: Number of images to use; all by default.
        seed: Seed of the measurements' noise, combined with the image's name.
        sequence: Whether images are frames or slices in order: particles share their noise, and each measurement starts
            from the particles of the previous one.
        tile: Side of tiles in pixels; each image is then a mosaic of its own picture and the following ones, for priors
            at sizes larger than those of their training.
        range: Values that mean black and white, like ``axes`` as in :class:`~rlsd_lightning.images.Reader`.
        axes: Order of an array's axes.

    Raises:
        InputError: If no image is found, tiles don't fit, or an operator can't be made for the first image; on access, if an
            image can't be read.
    """

    @typed
    def __init__(
        self,
        image_shape: tuple[int, ...],
        physics: Physics | AnySize,
        images: str | Path,
        limit: int | None = None,
        seed: int = 0,
        sequence: bool = False,
        tile: int | None = None,
        range: str | Sequence[float] | None = None,
        axes: str | None = None,
    ) -> None:
        super().__init__(image_shape, physics, limit, sequence, range, axes)
        self.seed, self.tile, size = seed, tile, self.image_shape[-2:]
        if tile is not None and (tile < 1 or any(length % tile for length in size)):
            raise InputError(f"tile must divide the image's height and width {size}, got {tile}")
        self.find(images, "images", lambda path, key: len(self._reader.stack(path, key)))
        # what is wrong with the operator is known before the first step
        self.operators.physics(None if tile else self._first_frame())

    def __getitem__(self, index: int) -> Measurement:
        source = self.source(index)
        truth, frame = self._picture(index % len(self))
        physics = self.physics_of(source, frame)
        y = measure(physics, truth, self.seed + measurement_key(source.name))
        if isinstance(physics, Scan):
            truth = physics.as_seen(truth)
        image_shape, original = tuple(truth.shape[1:]), self.original(source, frame)
        return Measurement(source.name, y, physics, truth, self.series, None, image_shape, original)

    def _first_frame(self) -> Frame | None:
        """Where the first picture lies in its image; None if it can't be read, which is reported when it is its turn."""
        first = self.sources[0]
        try:
            return self.operators.frame(self._reader.size(first.path, first.key, first.page))
        except InputError as error:
            log.debug("the first picture can't be read: %s", error)
            return None

    def _picture(self, index: int) -> tuple[Tensor, Frame | None]:
        """An image, and where its picture lies in it; None for a mosaic."""
        if self.tile is None:
            return self._read(index, self.operators.frame)
        rows, columns = (length // self.tile for length in self.image_shape[-2:])
        square = partial(Frame.cropped, image_size=(self.tile, self.tile))
        tiles = [self._read(index + place, square)[0] for place in range(rows * columns)]
        lines = [torch.cat(tiles[row * columns : (row + 1) * columns], dim=-1) for row in range(rows)]
        return torch.cat(lines, dim=-2), None

    def _read(self, index: int, frame_of: Callable[[tuple[int, int]], Frame]) -> tuple[Tensor, Frame]:
        source = self.sources[index % len(self.sources)]
        image, frame = self._reader.image(source.path, frame_of, source.key, source.page)
        return with_channels(image, self.image_shape[0]), frame
