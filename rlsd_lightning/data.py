"""Measurements from files: clean images with simulated measurements, or measured data without a truth."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from deepinv.physics import Physics
from torch import Tensor

from rlsd_lightning.errors import InputError, printable
from rlsd_lightning.functional.noise import measurement_key
from rlsd_lightning.images import find_images, fit, load_array, load_image, load_values, load_volume
from rlsd_lightning.measurement import Measurement, MeasurementList
from rlsd_lightning.operators.compose import make_physics
from rlsd_lightning.operators.likelihood import MASKED

__all__ = ["ImageMeasurements", "load_measured", "measure", "measurements", "point_measurement", "unobserved"]


def measure(physics: Physics, image: Tensor, seed: int) -> Tensor:
    """Draws :math:`y = A(x) + n` from a seed; the global generator is left unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        return physics(image)


def load_measured(path: str | Path, physics: Physics, image_shape: tuple[int, ...]) -> Tensor:
    """Measurement from a .npy file or a picture scaled to [-1, 1]; missing pixels become zero.

    Args:
        path: The file; an array has the shape of :math:`A(x)`, and may lack leading axes of length one.
        physics: The operator; its mask is applied, and a grey picture gets as many channels as :math:`A(x)` has.
        image_shape: Shape of the prior's images.

    Raises:
        InputError: If the file is missing or can't be read.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"measurement must be an image or .npy file, but there is none at '{path}'")
    y = torch.from_numpy(load_array(path)).float() if path.suffix == ".npy" else load_values(path)
    try:
        expected = physics.A(torch.zeros(1, *image_shape)).shape
    except (RuntimeError, ValueError, IndexError):
        return y  # the checkpoint identity reports the shapes
    y = y[(None,) * (len(expected) - y.ndim)]
    if y.ndim == 4 and expected[1] == 1 and torch.equal(y, y[:, :1].expand_as(y)):
        y = y[:, :1]
    seen = physics.mask if isinstance(physics, MASKED) else None
    if seen is not None and seen.shape[-2:] == y.shape[-2:]:
        y = y * seen
    return y


def _folder_names(files: list[Path]) -> list[str]:
    """Unique names of files: the stem; for shared stems suffix and number are appended."""
    stems = [printable(file.stem) for file in files]
    shared = Counter(stems)
    taken = {stem for stem, count in shared.items() if count == 1}
    names = []
    for file, stem in zip(files, stems, strict=True):
        name = stem
        if shared[stem] > 1:
            base = name = printable(file.name).replace(".", "_")
            number = 2
            while name in taken:
                name, number = f"{base}_{number}", number + 1
            taken.add(name)
        names.append(name)
    return names


class ImageMeasurements(Sequence[Measurement]):
    r"""Clean images with simulated measurements, read on access.

    Args:
        image_shape: Shape of the prior's images, :math:`(C, H, W)`.
        physics: The operator :math:`A` and its noise.
        images: A file, folder or glob of clean images, or a .npy file that
            :func:`~rlsd_lightning.images.load_volume` reads.
        limit: Number of images to use; all by default.
        seed: Seed of the measurements' noise, combined with the image's name.
        sequence: Whether images are frames or slices in order: particles share their noise, and each measurement starts
            from the particles of the previous one.
        tile: Side of tiles in pixels; each image is then a mosaic of its own picture and the following ones, for priors
            at sizes larger than those of their training.

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
    ) -> None:
        self.image_shape, self.physics, self.seed, self.sequence = image_shape, physics, seed, sequence
        self.tile = tile
        if tile is not None and (tile < 1 or any(length % tile for length in image_shape[-2:])):
            raise InputError(f"tile must divide the image's height and width {image_shape[-2:]}, got {tile}")
        if tile is not None and Path(images).suffix == ".npy":
            raise InputError("tile must be left out for a .npy file")
        if limit is not None and limit < 1:
            raise InputError(f"limit must be at least 1, got {limit}")
        self.volume = load_volume(Path(images)) if Path(images).suffix == ".npy" else None
        if self.volume is None:
            # names are keys of the noise; they depend on all files, not on the limit
            self.files = find_images(images)
            names = _folder_names(self.files)
        else:
            names = [f"{index:04d}" for index in range(len(self.volume))]
        self.names, self.available = names[:limit], len(names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Measurement:
        name, size = self.names[index], self.image_shape[-2:]
        truth = self._picture(index) if self.volume is None else fit(self.volume[index][None], *size)
        y = measure(self.physics, truth, self.seed + measurement_key(name))
        return Measurement(name, y, self.physics, truth, series="sequence" if self.sequence else None)

    def _picture(self, index: int) -> Tensor:
        height, width = self.image_shape[-2:]
        if self.tile is None:
            return load_image(self.files[index], height, width)
        rows, columns = height // self.tile, width // self.tile
        places = range(index, index + rows * columns)
        tiles = [load_image(self.files[place % len(self.files)], self.tile, self.tile) for place in places]
        lines = [torch.cat(tiles[row * columns : (row + 1) * columns], dim=-1) for row in range(rows)]
        return torch.cat(lines, dim=-2)


def measurements(
    image_shape: tuple[int, ...],
    physics: Callable[..., Physics],
    images: str | Path | None = None,
    limit: int | None = None,
    measurement: str | Path | None = None,
    seed: int = 0,
    sequence: bool = False,
    tile: int | None = None,
) -> ImageMeasurements | MeasurementList:
    """Measurements of a run: the measured file if given, else simulated ones of images.

    Args:
        physics: Factory of the operator, see :func:`~rlsd_lightning.operators.make_physics`.
        images: Clean images, like the further arguments as in :class:`ImageMeasurements`.
        measurement: A measured file, as in :func:`load_measured`.

    Raises:
        InputError: If images and measurement are missing or can't be read.
    """
    operator = make_physics(physics, image_shape)
    if measurement is not None and tile is not None:
        raise InputError("tile must be left out with a measured file, as it makes mosaics of clean images")
    if measurement is not None:
        y = load_measured(measurement, operator, image_shape)
        return MeasurementList([Measurement(printable(Path(measurement).stem), y, operator)])
    if images is None:
        raise InputError("images=null and measurement=null give nothing to solve; set one of them")
    return ImageMeasurements(image_shape, operator, images, limit, seed, sequence, tile)


def unobserved(
    image_shape: tuple[int, ...], physics: Callable[..., Physics], name: str = "generated"
) -> MeasurementList:
    """A measurement without data, for particles of the prior and its prompt; ``name`` is the key of the noise."""
    operator = make_physics(physics, image_shape)
    return MeasurementList([Measurement(name, operator.A(torch.zeros(1, *image_shape)), operator)])


def point_measurement(
    image_shape: tuple[int, ...], physics: Callable[..., Physics], value: float = 0.0
) -> MeasurementList:
    """One measurement of the first coordinate of a point with shape :math:`(d,)`."""
    y = torch.zeros(1, *image_shape)
    y[0, 0] = value
    return MeasurementList([Measurement("toy", y, physics(image_shape))])
