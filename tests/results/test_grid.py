"""The labelled grid: every picture in its place, and the uncertainty in colours with their scale."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlsd_lightning.results.grid import BAR, MARGIN, PANEL, TITLE, write_grid

COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]


def drawn(path: Path, panels: list, std: np.ndarray, **settings) -> np.ndarray:
    write_grid(path, panels, std, **settings)
    return np.asarray(Image.open(path).convert("RGB"))


def centre(index: int, columns: int) -> tuple[int, int]:
    row, column = divmod(index, columns)
    return row * (PANEL + TITLE + MARGIN) + TITLE + PANEL // 2, MARGIN + column * (PANEL + MARGIN) + PANEL // 2


@pytest.mark.parametrize("columns", [2, 3, 8])
@pytest.mark.parametrize("size", [(64, 64), (16, 16), (500, 300), (20, 90)])
def test_pictures_of_any_size_are_in_their_places(size: tuple[int, int], columns: int, tmp_path: Path) -> None:
    panels = [("a title", Image.new("RGB", size, colour)) for colour in COLOURS]
    pixels = drawn(tmp_path / "grid.png", panels, np.full((64, 64), 0.3), columns=columns)
    columns = min(columns, 4)
    rows = -(-4 // columns)
    assert pixels.shape == (rows * (PANEL + TITLE + MARGIN), columns * (PANEL + MARGIN) + MARGIN + BAR, 3)
    for index, colour in enumerate(COLOURS):
        assert tuple(pixels[centre(index, columns)]) == colour


def test_the_uncertainty_is_bright_where_it_is_high_and_upright(tmp_path: Path) -> None:
    std = np.zeros((64, 64))
    std[:32] = 0.5  # the upper half
    pixels = drawn(tmp_path / "grid.png", [], std).astype(int)
    row, column = centre(0, 1)
    assert pixels[row - PANEL // 4, column].sum() > 600 and pixels[row + PANEL // 4, column].sum() < 30
    scale = pixels[:, MARGIN + PANEL + 8].sum(axis=1)  # the colour bar's middle, bright at its top
    assert scale[TITLE + 25] > 600 and scale[TITLE + PANEL - 25] < 30


@pytest.mark.parametrize("highest", [0.5, 0.015, 4e-4, 3e-6])
def test_the_scales_numbers_are_inside_the_picture(highest: float, tmp_path: Path) -> None:
    pixels = drawn(tmp_path / "grid.png", [], np.linspace(0, highest, 4096).reshape(64, 64))
    assert (pixels[:, -3:] == 255).all()
    assert (pixels[:, MARGIN + PANEL + 16 :] < 128).any()


@pytest.mark.parametrize("rows", [21, 39, 42])
def test_no_row_of_pixels_is_lost(rows: int, tmp_path: Path) -> None:
    panels = [("one", Image.new("L", (8, 8)))] * (rows - 1)
    assert len(drawn(tmp_path / "grid.png", panels, np.zeros((8, 8)), columns=1)) == rows * (PANEL + TITLE + MARGIN)


def test_no_uncertainty_is_drawn_too(tmp_path: Path) -> None:
    pixels = drawn(tmp_path / "grid.png", [("one", Image.new("L", (8, 8), 255))], np.zeros((8, 8)))
    assert pixels[centre(1, 2)].sum() < 30


@pytest.mark.parametrize("above", [3, 5, 7])
def test_what_follows_the_uncertainty_is_in_rows_below_it(above: int, tmp_path: Path) -> None:
    panels = [("above", Image.new("RGB", (8, 8), (0, 200, 0)))] * above
    others = [("below", Image.new("RGB", (8, 8), (0, 0, 200)))] * 9
    std = np.full((8, 8), 0.3)
    std[0, 0] = 0
    pixels = drawn(tmp_path / "grid.png", panels, std, others=others).astype(int)
    columns = above + 1
    assert [tuple(pixels[centre(i, columns)]) for i in range(above)] == [(0, 200, 0)] * above
    assert pixels[centre(above, columns)].sum() > 600  # the highest uncertainty
    assert [tuple(pixels[centre(columns + i, columns)]) for i in range(9)] == [(0, 0, 200)] * 9
    beside = pixels[TITLE + 20 : TITLE + PANEL - 20, MARGIN + columns * (PANEL + MARGIN) :]
    assert (beside.std(axis=(0, 1)) > 20).all()  # the colour bar
    assert (pixels[PANEL + TITLE + MARGIN :, MARGIN + columns * (PANEL + MARGIN) :] == 255).all()
