"""Pictures and arrays from files."""

import glob
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.functional import center_crop

from rlsd_lightning.errors import InputError, first_line

__all__ = [
    "find_images",
    "fit",
    "load_array",
    "load_image",
    "load_values",
    "load_volume",
    "open_picture",
    "to_pil",
    "to_tensor",
]

log = logging.getLogger(__name__)

DEEP = ("I", "F")
"""First letters of Pillow's modes with more than 8 bits: integers and real numbers."""
SIXTEEN_BITS = 65535
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")


def find_images(images: str | Path) -> list[Path]:
    """Image files of a file, folder or glob pattern, in natural order (frame2 before frame10).

    Raises:
        InputError: If no file is found.
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
        raise InputError(f"images must be {what}, but nothing was found at '{images}'")
    return sorted(found, key=_natural)


def _natural(path: Path) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


def open_picture(path: Path) -> Image.Image:
    """Upright 8-bit RGB picture; 16-bit greys are rescaled, transparency is composited over white.

    Raises:
        InputError: If the file is missing or can't be read.
    """
    with _reading(path), Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith(DEEP):
            values = np.asarray(image, dtype=np.float64)
            top = SIXTEEN_BITS if image.mode.startswith("I") else max(values.max(), 1e-12)
            image = Image.fromarray((values / top * 255).clip(0, 255).round().astype(np.uint8))
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns reading errors into one that names the picture."""
    try:
        yield
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        reason = first_line(error)
        raise InputError(f"'{path}' can't be read as an image ({reason}); remove it or save it again") from error


def load_values(path: Path) -> Tensor:
    """Values of a measured picture in full precision.

    Args:
        path: A picture; greys of 16 bits, or real numbers in [0, 1], keep their precision.

    Returns:
        Values in [-1, 1], with shape :math:`(1, 3, H, W)`; greys have three equal channels.

    Raises:
        InputError: If the file is missing or can't be read, or its real numbers are out of range.
    """
    with _reading(path), Image.open(path) as opened:
        values = np.asarray(ImageOps.exif_transpose(opened)) if opened.mode.startswith(DEEP) else None
        real = opened.mode.startswith("F")
    if values is None:
        return to_tensor(open_picture(path))
    top = 1 if real else SIXTEEN_BITS
    if not (values.min() >= 0 and values.max() <= top):
        raise InputError(
            f"a measured picture with values from 0 to {top} is expected, but '{path}' has values from {values.min():g} "
            f"to {values.max():g}; rescale them"
        )
    grey = torch.from_numpy(values.astype(np.float64) / top).float()
    return grey.expand(1, 3, -1, -1) * 2 - 1


def to_tensor(image: Image.Image) -> Tensor:
    """A picture as a tensor in [-1, 1], with shape :math:`(1, 3, H, W)`."""
    return torch.from_numpy(np.array(image)).movedim(-1, 0)[None].float() / 127.5 - 1


def to_pil(image: Tensor) -> Image.Image:
    """A picture of an image in [-1, 1] with shape :math:`(C, H, W)` and one or three channels; values are clipped."""
    pixels = ((image.detach().cpu().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(pixels.movedim(0, -1).expand(*pixels.shape[1:], 3).numpy())


def load_image(path: str | Path, height: int, width: int) -> Tensor:
    """Picture of any size and mode, centre-cropped and resized.

    Returns:
        Values in [-1, 1], with shape :math:`(1, 3, H, W)`.

    Raises:
        InputError: If the file is missing or can't be read.
    """
    image = open_picture(Path(path))
    if image.size != (width, height):
        log.info("%s: %dx%d, cropped and resized to %dx%d", Path(path).name, *image.size, width, height)
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return to_tensor(image)


def load_volume(path: Path) -> Tensor:
    """Stack of slices or frames from a .npy file.

    Args:
        path: An array of shape :math:`(T, H, W)` or :math:`(T, H, W, 3)`: integers over the range of their type, or
            real numbers in [0, 1]. Grey slices become three equal channels.

    Returns:
        In [-1, 1], with shape :math:`(T, 3, H, W)`.

    Raises:
        InputError: If the file can't be read or has another shape or range.
    """
    values = load_array(path)
    if values.ndim not in (3, 4) or (values.ndim == 4 and values.shape[-1] != 3) or not len(values):
        raise InputError(f"a stack of shape (T, H, W) or (T, H, W, 3) is expected, but '{path}' has {values.shape}")
    top = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1
    volume = torch.from_numpy(values.astype(np.float32) / top)
    if not (volume.min() >= 0 and volume.max() <= 1):
        raise InputError(
            f"a stack with values from 0 to {top} is expected, but '{path}' has values from {values.min():g} to "
            f"{values.max():g}; rescale them"
        )
    volume = volume[:, None].expand(-1, 3, -1, -1) if volume.ndim == 3 else volume.movedim(-1, 1)
    return volume * 2 - 1


def fit(images: Tensor, height: int, width: int) -> Tensor:
    """Centre-crops and resizes images of shape :math:`(n, C, H, W)`."""
    if images.shape[-2:] == (height, width):
        return images
    rows, columns = images.shape[-2:]
    scale = min(rows / height, columns / width)
    cropped = center_crop(images, [round(height * scale), round(width * scale)])
    return interpolate(cropped, size=(height, width), mode="bicubic", antialias=True).clamp(-1, 1)


def load_array(path: Path) -> np.ndarray:
    """Array of real numbers from a .npy file.

    Raises:
        InputError: If the file is missing, can't be read or holds something else.
    """
    try:
        values = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"'{path}' can't be read as an array ({error}); save it with numpy.save") from error
    kind = values.dtype if isinstance(values, np.ndarray) else np.dtype(object)  # several arrays in one file
    if kind.kind not in "biuf":
        raise InputError(f"an array of real numbers is expected, but '{path}' holds {kind}; save one with numpy.save")
    return values
