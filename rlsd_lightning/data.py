"""Measurements from files: the user's own images, measured by simulation, or data measured without a truth."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from deepinv.physics import Physics
from torch import Tensor

from rlsd_lightning.errors import InputError
from rlsd_lightning.functional.noise import measurement_key
from rlsd_lightning.images import find_images, fit, load_array, load_image, load_values, load_volume
from rlsd_lightning.measurement import Measurement, MeasurementList
from rlsd_lightning.operators.compose import make_physics
from rlsd_lightning.operators.observed import MASKED

__all__ = ["ImageMeasurements", "load_measured", "measure", "measurements", "point_measurement", "unobserved"]


def measure(physics: Physics, image: Tensor, seed: int) -> Tensor:
    """Draws :math:`y = A(x) + n` with a seed of its own, leaving every other generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        return physics(image)


def load_measured(path: str | Path, physics: Physics, image_shape: tuple[int, ...]) -> Tensor:
    """Reads a measurement: a .npy file of its values, or a picture scaled to [-1, 1]; missing pixels become zero.

    Args:
        path: The file; an array has the shape that the operator gives, and may lack axes of length one before the others.
        physics: The operator, whose mask is applied; a grey picture has one channel where the operator gives one.
        image_shape: Shape of the prior's images.

    Raises:
        InputError: If the file is missing or can't be read.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"data.measurement must be an image or .npy file, but there is none at '{path}'")
    y = torch.from_numpy(load_array(path)).float() if path.suffix == ".npy" else load_values(path)
    try:
        expected = physics.A(torch.zeros(1, *image_shape)).shape
    except (RuntimeError, ValueError, IndexError):
        return y  # the method says what does not fit
    y = y[(None,) * (len(expected) - y.ndim)]
    if y.ndim == 4 and expected[1] == 1 and torch.equal(y, y[:, :1].expand_as(y)):
        y = y[:, :1]
    seen = physics.mask if isinstance(physics, MASKED) else None
    if seen is not None and seen.shape[-2:] == y.shape[-2:]:
        y = y * seen
    return y


def _folder_names(files: list[Path]) -> list[str]:
    """A name for each file and no two alike: its stem; where stems are shared its suffix and then a number follow."""
    shared = Counter(file.stem for file in files)
    taken = {stem for stem, count in shared.items() if count == 1}
    names = []
    for file in files:
        name = file.stem
        if shared[name] > 1:
            base = name = file.name.replace(".", "_")
            number = 2
            while name in taken:
                name, number = f"{base}_{number}", number + 1
            taken.add(name)
        names.append(name)
    return names


class ImageMeasurements(Sequence[Measurement]):
    r"""Clean images, each measured once by simulation, read when they are asked for.

    Args:
        image_shape: Shape of the prior's images, :math:`(C, H, W)`.
        physics: The operator :math:`A` and its noise.
        images: A file, folder or glob of clean images, or a .npy file that
            :func:`~rlsd_lightning.images.load_volume` reads.
        limit: How many of them to use; all if left out.
        seed: Seed of the measurements' noise, together with an image's name.
        sequence: Whether they are frames or slices in their order: their particles share their noise, and the run
            starts each from the one before.
        tile: Height and width of tiles: each image is then a mosaic of pictures, which begins with the one it is named
            after, and goes on with those that follow; for priors that are asked for larger images than they were trained for.

    Raises:
        InputError: If nothing is found, or tiles don't fit; when an image is asked for, if it can't be read.
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
            raise InputError(f"data.tile must divide the image's height and width {image_shape[-2:]}, got {tile}")
        if tile is not None and Path(images).suffix == ".npy":
            raise InputError("data.tile is for pictures, but data.images is a .npy file")
        if limit is not None and limit < 1:
            raise InputError(f"data.limit must be at least 1, got {limit}")
        self.volume = load_volume(Path(images)) if Path(images).suffix == ".npy" else None
        if self.volume is None:
            # names key the noise, so they come from all files: a limit does not change them
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
    mask: str | Path | None = None,
    kernel: str | Path | None = None,
    seed: int = 0,
    sequence: bool = False,
    tile: int | None = None,
) -> ImageMeasurements | MeasurementList:
    """The inverse problems that a run is asked to solve: a measured file if there is one, else images.

    Args:
        image_shape: Shape of the prior's images.
        physics: Makes the operator from the image's shape and those of ``mask`` and ``kernel`` that are given.
        images: Clean images.
        limit: How many of them to use.
        measurement: A measured file.
        mask: Name or file of a mask.
        kernel: File of a blur kernel.
        seed: Seed of the measurements' noise.
        sequence: Whether the images are frames or slices in their order.
        tile: Height and width of tiles, for mosaics of images.

    Raises:
        InputError: If something is missing, can't be read, or is not used by the operator.
    """
    given = {name: value for name, value in {"mask": mask, "kernel": kernel}.items() if value is not None}
    operator = make_physics(physics, image_shape, **given)
    if measurement is not None and tile is not None:
        raise InputError(
            "data.tile makes mosaics of data.images, but data.measurement was given; leave one of them out"
        )
    if measurement is not None:
        y = load_measured(measurement, operator, image_shape)
        return MeasurementList([Measurement(Path(measurement).stem, y, operator)])
    if images is None:
        raise InputError("data.images or data.measurement is expected, got neither")
    return ImageMeasurements(image_shape, operator, images, limit, seed, sequence, tile)


def unobserved(
    image_shape: tuple[int, ...], physics: Callable[..., Physics], name: str = "generated"
) -> MeasurementList:
    """No measurement: particles are drawn from the prior and its prompt.

    Args:
        image_shape: Shape of the prior's images.
        physics: Makes the operator, which sees nothing, from the images' shape.
        name: Names the folder of the results and keys the noise.
    """
    operator = make_physics(physics, image_shape)
    return MeasurementList([Measurement(name, operator.A(torch.zeros(1, *image_shape)), operator)])


def point_measurement(
    image_shape: tuple[int, ...], physics: Callable[..., Physics], value: float = 0.0
) -> MeasurementList:
    """One measurement of a point's first coordinate.

    Args:
        image_shape: Shape of a point, :math:`(d,)`.
        physics: Makes the operator from the point's shape.
        value: Measured value.
    """
    y = torch.zeros(1, *image_shape)
    y[0, 0] = value
    return MeasurementList([Measurement("toy", y, physics(image_shape))])
