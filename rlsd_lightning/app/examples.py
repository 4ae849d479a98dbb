"""Set-ups that work with the embedded priors, in some ten seconds."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from rlsd_lightning.app.choices import FACES, PAINTED, PHOTOS
from rlsd_lightning.resources import embedded

__all__ = ["EXAMPLES", "PAINT", "Example"]

HALF = (((0.0, 0.5), (1.0, 1.0)),)
SCRATCHES = (((0.05, 0.2), (0.4, 0.5), (0.95, 0.75)), ((0.8, 0.05), (0.55, 0.4), (0.2, 0.9)))
PAINT = (225, 29, 72, 255)
"""Colour of the brush."""


class Example(NamedTuple):
    """A picture and what is done with it.

    Attributes:
        label: Its name on the page.
        picture: The file.
        task: Name of the task.
        prior: Name of the prior.
        steps: Number of steps.
        painted: Boxes and strokes that are painted over, as points with shares of width and height.
    """

    label: str
    picture: Path
    task: str
    prior: str
    steps: int = 40
    painted: tuple[tuple[tuple[float, float], ...], ...] = ()

    def layer(self, size: tuple[int, int]) -> Image.Image:
        """What is painted on a picture of some width and height: a box for two points, a stroke for more."""
        layer = Image.new("RGBA", size)
        draw, scale = ImageDraw.Draw(layer), np.array(size)
        for points in self.painted:
            corners = [tuple(scale * point) for point in points]
            if len(points) == 2:
                draw.rectangle(corners, fill=PAINT)
            else:
                draw.line(corners, fill=PAINT, width=max(1, min(size) // 40), joint="curve")
        return layer


EXAMPLES = (
    Example("half a face", embedded("faces/heldout/000.png"), PAINTED, FACES, painted=HALF),
    Example("a tiny face", embedded("faces/heldout/004.png"), "super_resolution", FACES),
    Example("scratches", embedded("photos/coffee.jpg"), PAINTED, PHOTOS, steps=20, painted=SCRATCHES),
    Example("a blur", embedded("photos/chelsea.jpg"), "gaussian_deblur", PHOTOS, steps=20),
)
