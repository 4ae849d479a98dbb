"""Measurements from files: the user's own images, measured by simulation, or data measured without a truth."""

import glob
import inspect
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from deepinv.physics import Inpainting, Physics
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from rlsd_lightning.errors import InputError
from rlsd_lightning.functional.noise import measurement_key
from rlsd_lightning.measurement import Measurement

__all__ = [
    "ImageMeasurements",
    "MeasuredData",
    "find_images",
    "load_array",
    "load_image",
    "load_measured",
    "measure",
    "measurements",
    "open_picture",
    "to_pil",
]

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")


def find_images(images: str | Path, limit: int | None = None) -> list[Path]:
    """Files of a file, folder or glob pattern, sorted by name.

    Args:
        images: What to look for.
        limit: Return at most so many.

    Raises:
        InputError: If there are none.
    """
    path = Path(images)
    if path.is_dir():
        found = [file for file in path.iterdir() if file.suffix.lower() in SUFFIXES]
    elif path.is_file():
        found = [path]
    else:
        found = [Path(file) for file in glob.glob(str(images), recursive=True) if Path(file).is_file()]
    if not found:
        what = f"a folder with images ({', '.join(SUFFIXES)})" if path.is_dir() else "an image, a folder or a pattern"
        raise InputError(f"data.images must be {what}, but nothing was found at '{images}'")
    if limit is not None and limit < 1:
        raise InputError(f"data.limit must be at least 1, got {limit}")
    return sorted(found)[:limit]


def open_picture(path: Path) -> Image.Image:
    """An upright RGB picture: 16-bit greys are scaled to 8 bits, transparency is laid on white.

    Raises:
        InputError: If the file is missing or can't be read.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith(("I", "F")):
                values = np.asarray(image, dtype=np.float64)
                top = 65535 if image.mode.startswith("I") else max(values.max(), 1e-12)
                image = Image.fromarray((values / top * 255).clip(0, 255).round().astype(np.uint8))
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"'{path}' can't be read as an image ({reason}); remove it or save it again") from error


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).movedim(-1, 0)[None].float() / 127.5 - 1


def to_pil(image: Tensor) -> Image.Image:
    """A picture of one image in [-1, 1] with shape :math:`(C, H, W)`, one or three channels; values are clipped."""
    pixels = ((image.detach().cpu().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(pixels.movedim(0, -1).expand(*pixels.shape[1:], 3).numpy())


def load_image(path: str | Path, height: int, width: int) -> Tensor:
    """Reads a picture of any size and mode, cropped at its centre and resized to what the prior wants.

    Args:
        path: The picture.
        height: Height of the result.
        width: Width of the result.

    Returns:
        In [-1, 1], with shape :math:`(1, 3, H, W)`.

    Raises:
        InputError: If the file is missing or can't be read.
    """
    image = open_picture(Path(path))
    if image.size != (width, height):
        log.info("%s: %dx%d, cropped and resized to %dx%d", Path(path).name, *image.size, width, height)
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return _to_tensor(image)


def measure(physics: Physics, image: Tensor, seed: int) -> Tensor:
    """Draws :math:`y = A(x) + n` with a seed of its own, leaving every other generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        return physics(image)


def load_array(path: Path) -> np.ndarray:
    """Reads a .npy file of numbers.

    Raises:
        InputError: If the file is missing, can't be read or holds something else.
    """
    try:
        values = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"'{path}' can't be read as an array ({error}); save it with numpy.save") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf":
        raise InputError(
            f"an array of real numbers is expected, but '{path}' holds {getattr(values, 'dtype', 'several')}"
        )
    return values


def load_measured(path: str | Path, physics: Physics) -> Tensor:
    """Reads a measurement: a .npy file of its values, or a picture scaled to [-1, 1]; missing pixels become zero.

    Args:
        path: The file; an array has shape :math:`(C, H, W)` or :math:`(1, C, H, W)`.
        physics: The operator, whose mask is applied.

    Raises:
        InputError: If the file is missing or can't be read.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"data.measurement must be an image or .npy file, but there is none at '{path}'")
    if path.suffix == ".npy":
        y = torch.from_numpy(load_array(path)).float()
        y = y if y.ndim > 3 else y[None]
    else:
        y = _to_tensor(open_picture(path))
    if isinstance(physics, Inpainting) and physics.mask.shape[1:] == y.shape[1:]:
        y = y * physics.mask
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
        images: A file, folder or glob of clean images.
        limit: How many of them to use; all if left out.
        seed: Seed of the measurements' noise, together with an image's name.

    Raises:
        InputError: If nothing is found; when an image is asked for, if it can't be read.
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        physics: Physics,
        images: str | Path,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        self.image_shape, self.physics, self.seed = image_shape, physics, seed
        self.files = find_images(images, limit)
        # names key the noise, so they come from all files: a limit does not change them
        self.names = _folder_names(find_images(images))[: len(self.files)]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Measurement:
        name = self.names[index]
        truth = load_image(self.files[index], *self.image_shape[-2:])
        y = measure(self.physics, truth, self.seed + measurement_key(name))
        return Measurement(name, y, self.physics, truth)


class MeasuredData(Sequence[Measurement]):
    """One measurement from a file, whose truth is not known.

    Args:
        physics: The operator :math:`A` that made it.
        measurement: A file that :func:`load_measured` reads.

    Raises:
        InputError: When it is asked for, if it can't be read.
    """

    def __init__(self, physics: Physics, measurement: str | Path) -> None:
        self.physics, self.file = physics, Path(measurement)
        self.names = [self.file.stem]

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Measurement:
        if index != 0:
            raise IndexError(index)
        return Measurement(self.names[0], load_measured(self.file, self.physics), self.physics)


def measurements(
    image_shape: tuple[int, ...],
    physics: Callable[..., Physics],
    images: str | Path | None = None,
    limit: int | None = None,
    measurement: str | Path | None = None,
    mask: str | Path | None = None,
    kernel: str | Path | None = None,
    seed: int = 0,
) -> ImageMeasurements | MeasuredData:
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

    Raises:
        InputError: If something is missing, can't be read, or is not used by the operator.
    """
    given = {name: value for name, value in {"mask": mask, "kernel": kernel}.items() if value is not None}
    accepted = inspect.signature(physics).parameters
    for name, value in given.items():
        if name not in accepted:
            raise InputError(f"this task's operator has no {name}, but data.{name}='{value}' was given; leave it out")
    operator = physics(image_shape, **given)
    if measurement is not None:
        return MeasuredData(operator, measurement)
    if images is None:
        raise InputError("data.images or data.measurement is expected, got neither")
    return ImageMeasurements(image_shape, operator, images, limit, seed)
