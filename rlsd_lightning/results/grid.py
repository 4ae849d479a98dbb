"""Labelled grids of pictures."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

__all__ = ["write_filmstrip", "write_grid"]

PANEL, FRAME, MARGIN, TITLE, BAR = 160, 96, 6, 22, 64
"""Pixels: longer side of the grid's and the filmstrip's pictures, gap, height of a title, width of the colour bar."""
DPI = 100


def write_grid(path: Path, panels: Sequence[tuple[str, Image.Image]], std: np.ndarray, columns: int = 8) -> None:
    """Write titled pictures, and the uncertainty as a colour map with its scale.

    Args:
        path: File to write.
        panels: Titles and pictures.
        std: Uncertainty, with shape :math:`(H, W)`.
        columns: Most pictures in a row.
    """
    highest = float(std.max()) or 1.0
    colours = ScalarMappable(Normalize(0, highest), colormaps["magma"])
    panels = [*panels, ("std", Image.fromarray(colours.to_rgba(std, bytes=True)).convert("RGB"))]
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    width, height = columns * (PANEL + MARGIN) + MARGIN + BAR, rows * (PANEL + TITLE + MARGIN)
    figure = _figure(width, height)
    for index, (title, picture) in enumerate(panels):
        row, column = divmod(index, columns)
        left, bottom = MARGIN + column * (PANEL + MARGIN), height - (row + 1) * (PANEL + TITLE + MARGIN) + MARGIN
        _place(figure, picture, left, bottom, PANEL)
        _write(figure, title, left + PANEL / 2, bottom + PANEL + 4)
    # beside the last panel, the uncertainty
    scale = figure.add_axes(((left + PANEL + 4) / width, (bottom + 20) / height, 8 / width, (PANEL - 40) / height))
    figure.colorbar(colours, cax=scale, format=lambda value, _: f"{value:.3g}").ax.tick_params(labelsize=7)
    figure.savefig(path)


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
