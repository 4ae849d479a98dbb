"""Masks from files: pictures and arrays that tell which pixels are observed."""

import logging
from pathlib import Path

import numpy as np
from PIL import Image

from rlsd_lightning.errors import InputError, printable
from rlsd_lightning.reading.arrays import read_array
from rlsd_lightning.reading.frames import Frame
from rlsd_lightning.reading.paths import is_array, split_key
from rlsd_lightning.reading.pictures import ALPHA, DEEP, alpha_of, open_upright
from rlsd_lightning.reading.shapes import CHANNELS, as_pages
from rlsd_lightning.reading.values import check_finite

__all__ = ["read_mask", "read_whole_mask"]

log = logging.getLogger(__name__)

SOFT = 0.05
"""Distance from the darkest and the brightest value, as a share of the range, above which a value is soft."""


def read_mask(
    where: str | Path, height: int, width: int, frame: Frame | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Mask of a file, at the size of an image.

    The brighter of two values is seen. Where the file has transparency, transparent is missing. A mask of another size is
    resized as its picture is: a pixel is seen if all pixels in its place are. Where that hides most of what is seen, as of
    masks of scattered pixels, the nearest pixel decides. The log says which share is hidden.

    Args:
        where: A picture, or an array with or without a key.
        height: Height of the image.
        width: Width of the image.
        frame: Where a picture lies in the image, for masks of this picture's size; others are cropped in the middle.

    Returns:
        True where the image is seen, with shape :math:`(H, W)`; and height and width of the file's mask.

    Raises:
        InputError: If the file can't be read, is no mask, or hides everything.
    """
    path, _ = split_key(where)
    seen, soft = read_whole_mask(where)
    own = seen.shape
    if own != (height, width):
        frame = frame if frame is not None and frame.picture_size == own else Frame.cropped(own, (height, width))
        seen = _resized(seen, frame)
        log.info("%s: %s", printable(path.name), frame.describe())
    if not seen.any():
        raise InputError(f"mask='{where}' hides every pixel; make observed pixels white, or opaque")
    _log_share(printable(path.name), seen, soft)
    return seen, own


def read_whole_mask(where: str | Path) -> tuple[np.ndarray, float]:
    """Mask of a file at its own size, and the share of its values that are near neither black nor white.

    Raises:
        InputError: If the file can't be read, or is no mask.
    """
    path, key = split_key(where)
    return _cut(_array_values(path, key) if is_array(path) else _picture_values(path))


def _resized(seen: np.ndarray, frame: Frame) -> np.ndarray:
    whole = Image.fromarray(np.where(seen, 255, 0).astype(np.uint8))
    everywhere = np.asarray(frame.of_picture(whole, Image.Resampling.BOX)) == 255
    if everywhere.mean() >= seen.mean() / 2:
        return everywhere
    return np.asarray(frame.of_picture(whole, Image.Resampling.NEAREST)) > 0


def _log_share(name: str, seen: np.ndarray, soft: float) -> None:
    hidden = 1 - seen.mean()
    if not hidden:
        log.warning("mask %s hides nothing; make missing pixels black, or transparent", name)
        return
    log.info("mask %s: %.3g %% of the pixels are hidden, the dark or transparent ones", name, 100 * hidden)
    if soft > 0.5:
        log.warning(
            "mask %s has few pixels of its darkest or brightest value; is it a mask? It is cut at one half", name
        )
    elif soft:
        log.info("mask %s has soft edges, which are cut at one half", name)


def _cut(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Whether values are above one half of their range, and the share of values that are near neither end of it."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return np.full(values.shape, low > 0), 0.0
    share = (values.astype(np.float64) - low) / (high - low)
    return share > 0.5, float(((share > SOFT) & (share < 1 - SOFT)).mean())


def _array_values(path: Path, key: str | None) -> np.ndarray:
    values, axes, _ = read_array(path, key)
    check_finite(values, path)
    plane = values if axes is None else as_pages(values, axes, path)
    while plane.ndim > 3 and plane.shape[0] == 1:
        plane = plane[0]
    for axis in (0, -1) if axes is None else (-1,):  # of channels, if all are alike
        if plane.ndim == 3 and plane.shape[axis] in CHANNELS and (plane == plane.take([0], axis)).all():
            plane = plane.take(0, axis)
    if plane.ndim != 2 or not plane.size:
        raise InputError(f"one mask of shape (H, W) is expected, but '{path}' has {values.shape}; save one mask a file")
    return plane


def _picture_values(path: Path) -> np.ndarray:
    with open_upright(path) as image:
        if image.mode.startswith(DEEP):
            values = np.array(image)
            check_finite(values, path)
            return values
        alpha = alpha_of(image)
        if alpha is not None and (alpha.min() < alpha.max() or not alpha.any()):  # an even veil is no mask
            return alpha
        brightness = np.array(image.convert("RGBA" if image.mode in ALPHA else "RGB").convert("L"))
        indices = np.array(image) if image.mode == "P" else brightness
        return indices if brightness.min() == brightness.max() else brightness  # colours that are equally bright
