"""Clean images with simulated measurements."""

from collections.abc import Sequence
from pathlib import Path

import torch
from deepinv.physics import Physics
from torch import Tensor

from rlsd_lightning.data.sources import find_sources
from rlsd_lightning.errors import InputError
from rlsd_lightning.functional.noise import measurement_key
from rlsd_lightning.images import Reader, with_channels
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.operators.medical import Scan
from rlsd_lightning.operators.pixels import PerPicture

__all__ = ["ImageMeasurements", "check_limit", "measure"]


def measure(physics: Physics, image: Tensor, seed: int) -> Tensor:
    """Draws :math:`y = A(x) + n` from a seed; the global generator is left unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        return physics(image)


def check_limit(limit: int | None) -> None:
    """Raises an InputError for a limit below 1."""
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, got {limit}")


class ImageMeasurements(Sequence[Measurement]):
    r"""Clean images with simulated measurements, read on access.

    Args:
        image_shape: Shape of the prior's images, :math:`(C, H, W)`.
        physics: The operator :math:`A` and its noise.
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
        InputError: If no image is found or tiles don't fit; on access, if an image can't be read.
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        physics: Physics,
        images: str | Path,
        limit: int | None = None,
        seed: int = 0,
        sequence: bool = False,
        tile: int | None = None,
        range: str | Sequence[float] | None = None,
        axes: str | None = None,
    ) -> None:
        self.image_shape, self.physics, self.seed, self.sequence = image_shape, physics, seed, sequence
        self.tile = tile
        if tile is not None and (tile < 1 or any(length % tile for length in image_shape[-2:])):
            raise InputError(f"tile must divide the image's height and width {image_shape[-2:]}, got {tile}")
        check_limit(limit)
        self._reader = Reader(range, axes)
        # names are keys of the noise; they depend on all files, not on the limit
        self.sources = find_sources(images, "images", lambda path, key: len(self._reader.stack(path, key)))
        self.names, self.available = [source.name for source in self.sources][:limit], len(self.sources)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Measurement:
        source = self.sources[: len(self)][index]
        truth, size = self._picture(index % len(self))
        physics = self.physics
        if isinstance(physics, PerPicture):
            physics = physics.for_picture([source.name, source.stem], size)
        y = measure(physics, truth, self.seed + measurement_key(source.name))
        if isinstance(physics, Scan):
            truth = physics.as_seen(truth)
        return Measurement(source.name, y, physics, truth, series="sequence" if self.sequence else None)

    def _picture(self, index: int) -> tuple[Tensor, tuple[int, int] | None]:
        """An image, and the own size of its picture; None for a mosaic."""
        height, width = self.image_shape[-2:]
        if self.tile is None:
            return self._read(index, height, width)
        rows, columns = height // self.tile, width // self.tile
        tiles = [self._read(index + place, self.tile, self.tile)[0] for place in range(rows * columns)]
        lines = [torch.cat(tiles[row * columns : (row + 1) * columns], dim=-1) for row in range(rows)]
        return torch.cat(lines, dim=-2), None

    def _read(self, index: int, height: int, width: int) -> tuple[Tensor, tuple[int, int]]:
        source = self.sources[index % len(self.sources)]
        image, own = self._reader.image(source.path, height, width, source.key, source.page)
        return with_channels(image, self.image_shape[0]), own
