"""The labelled grid of a measurement's pictures."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

__all__ = ["write_grid"]

PANEL, MARGIN, TITLE, BAR = 160, 6, 22, 64
"""Pixels of a panel's longer side, of the space between panels, and of the titles' and the colour bar's share."""
DPI = 100


def write_grid(path: Path, panels: Sequence[tuple[str, Image.Image]], std: np.ndarray, columns: int = 8) -> None:
    """Writes pictures with their titles, and the uncertainty in colours with their scale.

    Every picture is placed by itself, without axes, which would take ten times as long to draw.

    Args:
        path: The file to write.
        panels: Titles and pictures.
        std: The uncertainty, with shape :math:`(H, W)`.
        columns: The most pictures in a row.
    """
    highest = float(std.max()) or 1.0
    colours = ScalarMappable(Normalize(0, highest), colormaps["magma"])
    panels = [*panels, ("std", Image.fromarray(colours.to_rgba(std, bytes=True)).convert("RGB"))]
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    width, height = columns * (PANEL + MARGIN) + MARGIN + BAR, rows * (PANEL + TITLE + MARGIN)
    figure = Figure(figsize=((width + 0.5) / DPI, (height + 0.5) / DPI), dpi=DPI)  # matplotlib cuts off fractions
    for index, (title, picture) in enumerate(panels):
        row, column = divmod(index, columns)
        left, bottom = MARGIN + column * (PANEL + MARGIN), height - (row + 1) * (PANEL + TITLE + MARGIN) + MARGIN
        pixels = _fitted(picture)
        shown_height, shown_width = pixels.shape[:2]
        figure.figimage(pixels, left + (PANEL - shown_width) // 2, bottom + (PANEL - shown_height) // 2, origin="upper")
        centre, above = left + PANEL / 2, bottom + PANEL + 4
        figure.text(centre / width, above / height, title, ha="center", va="bottom", fontsize=9)
    # beside the last panel, which is the uncertainty's
    scale = figure.add_axes(((left + PANEL + 4) / width, (bottom + 20) / height, 8 / width, (PANEL - 40) / height))
    figure.colorbar(colours, cax=scale, format=lambda value, _: f"{value:.3g}").ax.tick_params(labelsize=7)
    figure.savefig(path)


def _fitted(picture: Image.Image) -> np.ndarray:
    """A picture's pixels, as large as a panel: enlarged ones are seen as squares, reduced ones are averaged."""
    share = PANEL / max(picture.size)
    size = tuple(max(1, round(share * side)) for side in picture.size)
    return np.asarray(
        picture.convert("RGB").resize(size, Image.Resampling.NEAREST if share > 1 else Image.Resampling.BOX)
    )
