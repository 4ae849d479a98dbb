"""Labelled grids of pictures."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from rlsd_lightning.images import to_pil

__all__ = ["FILMSTRIP_ROWS", "thumbnails", "write_directions", "write_evolution", "write_filmstrip", "write_grid"]

THUMBNAIL = 96
"""Most pixels of a thumbnail's longer side: checkpoints hold ten of a particle."""
FILMSTRIP_ROWS = 16
"""Most particles of a filmstrip, which bounds the picture and the checkpoints."""

PANEL, FRAME, MARGIN, TITLE, BAR = 160, 96, 6, 22, 64
"""Pixels: longer side of the grid's and the filmstrip's pictures, gap, height of a title, width of the colour bar."""
DPI = 100


def write_grid(
    path: Path | io.BytesIO,
    panels: Sequence[tuple[str, Image.Image]],
    std: np.ndarray,
    others: Sequence[tuple[str, Image.Image]] = (),
    columns: int = 8,
) -> None:
    """Write titled pictures, and the uncertainty as a colour map with its scale.

    Args:
        path: File to write, or a buffer.
        panels: Titles and pictures.
        std: Uncertainty, with shape :math:`(H, W)`.
        others: Titles and pictures that follow the uncertainty; the first row then ends with it.
        columns: Most pictures in a row.
    """
    highest = float(std.max()) or 1.0
    colours = ScalarMappable(Normalize(0, highest), colormaps["magma"])
    panels = [*panels, ("std", Image.fromarray(colours.to_rgba(std, bytes=True)).convert("RGB")), *others]
    uncertainty = len(panels) - len(others) - 1
    columns = min(columns, uncertainty + 1)
    rows = math.ceil(len(panels) / columns)
    width, height = columns * (PANEL + MARGIN) + MARGIN + BAR, rows * (PANEL + TITLE + MARGIN)
    figure = _figure(width, height)
    for index, (title, picture) in enumerate(panels):
        row, column = divmod(index, columns)
        left, bottom = MARGIN + column * (PANEL + MARGIN), height - (row + 1) * (PANEL + TITLE + MARGIN) + MARGIN
        _place(figure, picture, left, bottom, PANEL)
        _write(figure, title, left + PANEL / 2, bottom + PANEL + 4)
    row, column = divmod(uncertainty, columns)
    left, bottom = MARGIN + (column + 1) * (PANEL + MARGIN), height - (row + 1) * (PANEL + TITLE + MARGIN) + MARGIN
    scale = figure.add_axes(((left - MARGIN + 4) / width, (bottom + 20) / height, 8 / width, (PANEL - 40) / height))
    figure.colorbar(colours, cax=scale, format=lambda value, _: f"{value:.3g}").ax.tick_params(labelsize=7)
    figure.savefig(path, format="png")


def thumbnails(images: Tensor) -> Tensor:
    """Small 8-bit copies on the CPU of images in [-1, 1], with shape :math:`(N, C, h, w)`."""
    images = images.detach().float().clamp(-1, 1)
    longest = max(images.shape[-2:])
    if longest > THUMBNAIL:
        size = [max(1, THUMBNAIL * length // longest) for length in images.shape[-2:]]
        images = interpolate(images, size=size, mode="bilinear", antialias=True)
    return ((images + 1) * 127.5).round().to("cpu", torch.uint8)


def write_evolution(path: Path, moments: Sequence[tuple[int, Tensor]], num_particles: int) -> None:
    """Write a filmstrip, one row per particle.

    Args:
        path: File to write.
        moments: Numbers of steps taken and the thumbnails after them, with shape :math:`(n, C, h, w)`.
        num_particles: Number of all particles; the title says so if there are more than rows.
    """
    columns = [(f"step {step}", [to_pil(image / 127.5 - 1) for image in images]) for step, images in moments]
    rows = len(columns[0][1])
    write_filmstrip(path, columns, f"{rows} of {num_particles} particles" if rows < num_particles else "")


def write_directions(path: Path, mean: Tensor, deviations: Tensor, shares: Sequence[float]) -> None:
    """Write principal directions, one row each: the mean image less and plus two deviations, and it alone.

    Args:
        path: File to write.
        mean: Mean image in [-1, 1], with shape :math:`(C, H, W)`.
        deviations: One standard deviation along each direction, with shape :math:`(k, C, H, W)`.
        shares: Share of the variance along each direction.
    """
    columns = [
        (title, [to_pil(mean + factor * deviation) for deviation in deviations])
        for title, factor in (("mean - 2 sd", -2), ("mean", 0), ("mean + 2 sd", 2))
    ]
    write_filmstrip(path, columns, "variance: " + ", ".join(f"{share:.0%}" for share in shares))


def write_filmstrip(path: Path, columns: Sequence[tuple[str, Sequence[Image.Image]]], title: str = "") -> None:
    """Write titled columns of pictures.

    Args:
        path: File to write.
        columns: Titles and pictures, the same number in every column.
        title: Line above all columns, if any.
    """
    rows, head = len(columns[0][1]), TITLE * (2 if title else 1)
    width, height = MARGIN + len(columns) * (FRAME + MARGIN), head + rows * (FRAME + MARGIN)
    figure = _figure(width, height)
    _write(figure, title, width / 2, height - TITLE + 4)
    for column, (name, pictures) in enumerate(columns):
        left = MARGIN + column * (FRAME + MARGIN)
        _write(figure, name, left + FRAME / 2, height - head + 4)
        for row, picture in enumerate(pictures):
            _place(figure, picture, left, height - head - row * (FRAME + MARGIN) - FRAME, FRAME)
    figure.savefig(path)


def _figure(width: int, height: int) -> Figure:
    """An empty figure of a size in pixels; the half pixels make up for matplotlib's truncation."""
    return Figure(figsize=((width + 0.5) / DPI, (height + 0.5) / DPI), dpi=DPI)


def _write(figure: Figure, title: str, centre: float, bottom: float) -> None:
    """Write a title at a place in pixels."""
    width, height = (DPI * side for side in figure.get_size_inches())
    figure.text(centre / width, bottom / height, title, ha="center", va="bottom", fontsize=9)


def _place(figure: Figure, picture: Image.Image, left: int, bottom: int, side: int) -> None:
    """Centre a picture in a square; figimage draws ten times as fast as axes do."""
    scale = side / max(picture.size)
    size = [max(1, round(scale * length)) for length in picture.size]
    # enlarged pixels stay visible squares, reduced ones are averaged
    resampling = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    pixels = np.asarray(picture.convert("RGB").resize(size, resampling))
    figure.figimage(pixels, left + (side - size[0]) // 2, bottom + (side - size[1]) // 2, origin="upper")
