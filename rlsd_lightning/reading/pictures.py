"""Pictures from files: Pillow images of 8 bits, arrays of more bits or real numbers."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torchvision.io import ImageReadMode, decode_png

from rlsd_lightning.errors import InputError, printable
from rlsd_lightning.reading.paths import reading
from rlsd_lightning.reading.values import picture_range, scaled

__all__ = ["alpha_of", "frames_of", "open_picture", "open_upright", "read_picture"]

log = logging.getLogger(__name__)

DEEP = ("I", "F")
"""First letters of Pillow's modes with more than 8 bits: integers and real numbers."""
ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
"""Pillow's modes with transparency."""
ANIMATED = (".gif", ".webp", ".tif", ".tiff", ".apng", ".avif")
"""Suffixes of files with several pictures."""
PROFILE = "icc_profile"
"""Pillow's name of a picture's colour profile."""
BITS_PER_SAMPLE = 258
"""The tag of a TIFF that says its bits."""
ORIENTATION = 0x0112
"""The tag of EXIF data that says how a camera was held."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by its orientation."""


def frames_of(path: Path) -> int:
    """Number of pictures in a file: pages of a TIFF, frames of a GIF, WebP, APNG or AVIF; 1 for files of other kinds.

    Raises:
        InputError: If the file can't be read.
    """
    if path.suffix.lower() not in ANIMATED:
        return 1
    with reading(path), Image.open(path) as opened:
        return opened.n_frames if _has_frames(opened) else 1


def _has_frames(opened: Image.Image) -> bool:
    return bool(opened.is_animated) if "is_animated" in dir(opened) else False


@contextmanager
def open_upright(path: Path, page: int = 0) -> Iterator[Image.Image]:
    """A picture in its own mode, upright if its EXIF data can be read.

    Raises:
        InputError: If the file is missing or can't be read, also while it is used.
    """
    with _opened(path, page) as opened:
        turn = _turn(opened)
        yield opened if turn is None else opened.transpose(turn)


@contextmanager
def _opened(path: Path, page: int) -> Iterator[Image.Image]:
    # from an open file: of one that Pillow maps into memory, it turns the wrong pixels
    with reading(path), path.open("rb") as file, Image.open(file) as opened:
        if "transparency" in opened.info and (opened.mode.startswith(DEEP) or _is_deep_colour(opened)):
            raise InputError(
                f"'{path}' has 16 bits and a transparent colour, which can't be read; save it with an alpha channel"
            )
        if page:
            opened.seek(page)
        yield opened


def _turn(opened: Image.Image) -> Image.Transpose | None:
    """How a picture is turned upright; None if it is, or if its EXIF data are broken."""
    if isinstance(opened, TiffImageFile) and not _is_deep_colour(opened):
        opened.load()  # Pillow turns it, and removes the tag
    try:
        return TURNS.get(opened.getexif().get(ORIENTATION, 1))
    except Exception as error:  # noqa: BLE001 broken EXIF data raise nearly anything, and are no reason to refuse the pixels
        log.debug("EXIF data are broken, pixels are taken as they lie: %s", error)
        return None


def read_picture(path: Path, page: int = 0) -> Image.Image | np.ndarray:
    """An upright picture, with transparency composited over white.

    Returns:
        An RGB picture of 8 bits; an array of shape :math:`(H, W)` or :math:`(H, W, 3)` if it has more bits.

    Raises:
        InputError: If the file is missing or can't be read.
    """
    with _opened(path, page) as opened:
        if isinstance(opened, PngImageFile) and opened.is_animated and path.suffix.lower() not in ANIMATED:
            log.warning(
                "%s has %d frames, of which the first is used; name it .apng", printable(path.name), opened.n_frames
            )
        is_deep = _is_deep_colour(opened)  # before the EXIF data, which may lie behind the pixels
        turn = _turn(opened)
        if is_deep:
            values = _over_white(_deep_colour(path, page, opened), path)
            planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in values.transpose(2, 0, 1)]
            return np.stack([plane if turn is None else plane.transpose(turn) for plane in planes], axis=-1)
        upright = opened if turn is None else opened.transpose(turn)
        return np.array(upright) if upright.mode.startswith(DEEP) else _rgb(upright)


def open_picture(path: Path, page: int = 0) -> Image.Image:
    """As :func:`read_picture`, with 8 bits always.

    Raises:
        InputError: If the file can't be read, or its range is not clear.
    """
    picture = read_picture(path, page)
    if isinstance(picture, Image.Image):
        return picture
    values = scaled(picture, picture_range(picture, None, path))
    return Image.fromarray(((values + 1) * 127.5).clip(0, 255).round().astype(np.uint8)).convert("RGB")


def alpha_of(image: Image.Image) -> np.ndarray | None:
    """Opacity of the pixels, from 0 to 255; None if all are opaque."""
    if image.mode not in ALPHA and "transparency" not in image.info:
        return None
    alpha = np.array(image.convert("RGBA").getchannel("A"))
    return alpha if alpha.min() < 255 else None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image.load()  # before the file is closed
    image = image if image.mode == "RGB" else image.convert("RGB")
    if (image.info.get(PROFILE) or b"")[16:20] != b"RGB ":  # one of ink or grey, which other programs would not take
        image.info.pop(PROFILE, None)
    return image


def _is_deep_colour(image: Image.Image) -> bool:
    """Whether a colour picture has more than 8 bits in its file, of which Pillow would keep 8."""
    if image.mode not in ("RGB", "RGBA"):
        return False
    if isinstance(image, TiffImageFile):
        return max(image.tag_v2.get(BITS_PER_SAMPLE, (8,))) > 8
    return isinstance(image, PngImageFile) and bool(image.tile) and "16" in image.tile[0][3]


def _deep_colour(path: Path, page: int, image: Image.Image) -> np.ndarray:
    """Values of a colour picture of 16 bits, with shape :math:`(H, W, C)`; C is 2 or 4 with transparency."""
    if isinstance(image, PngImageFile):
        data = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
        return decode_png(data, ImageReadMode.UNCHANGED).movedim(0, -1).numpy()
    if page or image.mode != "RGB":
        raise InputError(
            f"'{path}' has colours of 16 bits with transparency or on several pages, which can't be read; save its "
            "pages as 16-bit PNGs"
        )
    with av.open(str(path)) as film:
        return next(film.decode(video=0)).to_ndarray(format="rgb48le")


def _over_white(values: np.ndarray, path: Path) -> np.ndarray:
    """Values without transparency."""
    if values.shape[-1] in (1, 3):
        return values
    white = picture_range(values[..., :-1], None, path).high
    alpha = values[..., -1:] / np.iinfo(values.dtype).max
    return (values[..., :-1] * alpha + white * (1 - alpha)).round().astype(values.dtype)
