"""Pictures of the page: what is painted on, what is shown, and the zip."""

import base64
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from rlsd_lightning.errors import InputError
from rlsd_lightning.images import Reader

__all__ = ["CANVAS", "as_url", "enlarged", "preview", "uncertainty_over", "write_mask", "zip_folder"]

CANVAS = 320
"""Longest side of a picture that is painted on or compared, in pixels."""
COARSE = 48
"""Pixels of a side below which enlarged pictures show their pixels."""
SHARP = 128
"""Pixels of a side up to which pictures are sent as PNG; larger ones as JPEG."""


def preview(file: Path) -> tuple[Image.Image, tuple[int, int]]:
    """A picture to paint on, read as a run reads it, and its own width and height.

    Raises:
        InputError: If it can't be read.
    """
    picture = Reader().picture(file)
    return enlarged(picture), picture.size


def enlarged(picture: Image.Image, size: tuple[int, int] | None = None) -> Image.Image:
    """A picture whose longest side is that of the canvas, or as large as another such picture."""
    share = CANVAS / max(picture.size)
    size = size or tuple(max(1, round(share * length)) for length in picture.size)
    small = max(picture.size) < COARSE
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)


def write_mask(file: Path, layers: Sequence[Image.Image], size: tuple[int, int]) -> None:
    """Write a mask of a picture's own size, black where it was painted over.

    Raises:
        InputError: If nothing was painted, or everything.
    """
    painted = np.zeros(size[::-1], dtype=bool)
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A").resize(size, Image.Resampling.NEAREST)
        painted |= np.asarray(alpha) > 0
    if not painted.any() or painted.all():
        raise InputError(
            f"a part of the picture must be painted over, got {'all' if painted.any() else 'none'} of it; paint over what "
            "is missing"
        )
    Image.fromarray(np.where(painted, 0, 255).astype(np.uint8)).save(file)


def uncertainty_over(mean: Image.Image, std: Image.Image) -> Image.Image:
    """The mean in grey, with colours where the particles are uncertain.

    Args:
        mean: The mean of the particles.
        std: The uncertainty map, std.png: white is the largest.
    """
    share = np.asarray(std.convert("L"), dtype=np.float64)[..., None] / 255
    grey = np.asarray(mean.convert("L").convert("RGB"), dtype=np.float64)
    colour = 255 * matplotlib.colormaps["inferno"](0.25 + 0.75 * share[..., 0])[..., :3]
    veil = np.minimum(1.0, 3 * share)
    return Image.fromarray(((1 - veil) * grey + veil * colour).round().astype(np.uint8))


def as_url(picture: Image.Image) -> str:
    """A picture as the address of an HTML image that holds it, so nothing is left in a cache."""
    content, kind = io.BytesIO(), "png" if max(picture.size) <= SHARP else "jpeg"
    picture.convert("RGB").save(content, kind, **({"quality": 90} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def zip_folder(folder: Path, archive: Path) -> None:
    """Pack a run's folder, without hidden locks."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.name != ".lock":
                packed.write(file, Path(folder.name) / file.relative_to(folder))
