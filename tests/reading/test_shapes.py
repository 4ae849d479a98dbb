"""Which axis is which."""

import numpy as np
import pytest

from rlsd_lightning import InputError
from rlsd_lightning.reading.shapes import as_pages, check_axes


@pytest.mark.parametrize(
    ("shape", "axes", "pages"),
    [
        ((6, 5), "HW", (1, 6, 5, 1)),
        ((6, 5, 3), "HWC", (1, 6, 5, 3)),
        ((6, 5, 1), "HWC", (1, 6, 5, 1)),
        ((1, 6, 5), "CHW", (1, 6, 5, 1)),
        ((7, 6, 5), "NHW", (7, 6, 5, 1)),
        ((7, 6, 5, 3), "NHWC", (7, 6, 5, 3)),
        ((7, 3, 6, 5), "NCHW", (7, 6, 5, 3)),
        ((7, 1, 6, 5), "NCHW", (7, 6, 5, 1)),
        ((1, 1, 6, 5), "NCHW", (1, 6, 5, 1)),
    ],
)
def test_sizes_tell_the_axes(shape: tuple[int, ...], axes: str, pages: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape)).reshape(shape)
    told = as_pages(values, None, "a")
    assert told.shape == pages
    assert np.shares_memory(told, values)
    assert (told == as_pages(values, axes, "a")).all()


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((3, 6, 5), "CHW .* or NHW"),
        ((3, 6, 3), "CHW .* or NHW"),
        ((64, 64, 20), "HWN or NHW"),
        ((480, 640, 50), "HWN or NHW"),
        ((64, 64, 4), "HWN .*transparency must be saved as three channels"),
        ((7, 3, 6, 3), "NCHW or NHWC"),
    ],
)
def test_sizes_that_do_not_tell_are_asked_about(shape: tuple[int, ...], axes: str) -> None:
    with pytest.raises(
        InputError, match=rf"sizes \({shape[0]}, .* do not tell its axes; say which, such as axes={axes}"
    ):
        as_pages(np.zeros(shape), None, "a")


def test_axes_in_any_order_are_taken_as_said() -> None:
    values = np.arange(2 * 3 * 4 * 5).reshape(4, 2, 5, 3)
    assert (as_pages(values, check_axes("hnwc"), "a") == values.transpose(1, 0, 2, 3)).all()
    stack = np.arange(4 * 5 * 3).reshape(4, 5, 3)
    assert (as_pages(stack, "HWN", "a")[2, ..., 0] == stack[..., 2]).all()


@pytest.mark.parametrize("shape", [(), (9,), (6, 5, 4, 7), (2, 2, 2, 6, 5), (0, 6, 5)])
def test_what_is_no_picture_is_refused_with_its_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"'a' .*\("):
        as_pages(np.zeros(shape), None, "a")


@pytest.mark.parametrize("axes", ["HW", "NCHW", "NWH"])
def test_axes_that_do_not_fit_are_refused(axes: str) -> None:
    with pytest.raises(InputError, match=f"axes.*{axes}"):
        as_pages(np.zeros((6, 5, 2, 2, 2) if axes == "NWH" else (6, 5, 4)), axes, "a")


@pytest.mark.parametrize("axes", ["", "H", "HWX", "HHW", "height"])
def test_letters_that_are_no_axes_are_refused(axes: str) -> None:
    with pytest.raises(InputError, match="axes must be an order of H and W"):
        check_axes(axes)
