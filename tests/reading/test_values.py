"""What numbers mean: by their type and range, as asked, or not at all."""

import numpy as np
import pytest

from rlsd_lightning import InputError
from rlsd_lightning.reading.values import as_range, check_finite, measured_range, picture_range, scaled

RAMP = np.linspace(0, 1, 101)


def limits(values: np.ndarray, asked: str | None = None) -> tuple[float, float]:
    return picture_range(values, as_range(asked), "a.npy")[:2]


KINDS = ("uint8", "uint16", "int16", "int32", "int64")
HELD = [(kind, top) for kind in KINDS for top in (255, 4095, 65535) if top <= np.iinfo(kind).max]


@pytest.mark.parametrize(("kind", "top"), HELD)
def test_integers_are_of_8_12_or_16_bits_whatever_their_type(kind: str, top: int) -> None:
    assert limits((RAMP * top).astype(kind)) == (0, top)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 1), (0, 255)])
@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_real_numbers_of_the_three_usual_ranges_are_recognised(low: float, high: float, kind: str) -> None:
    values = (low + RAMP * (high - low)).astype(kind)
    assert limits(values) == (low, high)
    assert scaled(values, picture_range(values, None, "a")) == pytest.approx(2 * RAMP - 1, abs=2e-3)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (RAMP * 2000 - 1000, "from -1000 to 1000"),  # Hounsfield units
        (RAMP * 1.5, r"from 0 to 1\.5"),
        (RAMP * 20, "from 0 to 20"),
        (RAMP * 4095, "from 0 to 4095, "),
        ((RAMP * 200 - 100).astype(np.int16), "from -100 to 100"),
        ((RAMP * 1e6).astype(np.int32), "from 0 to 1e"),
        ((RAMP * 1.01).astype(np.uint8), "from 0 to 1, "),
    ],
)
def test_other_ranges_are_refused_with_what_was_found_and_the_key(values: np.ndarray, found: str) -> None:
    with pytest.raises(InputError, match=f"'a.npy' are {found}.*range="):
        limits(values)
    assert limits(values, "-3000,3e6") == (-3000, 3e6)


@pytest.mark.parametrize("values", [[40.0], [-5.0], [3e9], [-3.0, 1e-3], [-998, 2996], [70000, 1677729]])
def test_the_range_of_the_example_is_accepted(values: list[float]) -> None:
    with pytest.raises(InputError, match="such as range=") as refused:
        picture_range(np.array(values), None, "a.npy")
    low, high, *_ = as_range(str(refused.value).rpartition("=")[2])
    assert low <= min(values) <= max(values) <= high


@pytest.mark.parametrize(
    ("asked", "expected"), [("0,255", (0, 255)), ("-160, 240", (-160, 240)), ([0, 0.5], (0, 0.5)), ("[0,1]", (0, 1))]
)
def test_a_range_is_asked_for_by_text_or_numbers(asked, expected: tuple[float, float]) -> None:
    assert as_range(asked)[:2] == expected


@pytest.mark.parametrize("asked", ["255", "white", "0,1,2", "255,0", "0,nan", "0,inf", [1], [0, None], 255])
def test_a_range_that_is_none_is_refused(asked) -> None:
    with pytest.raises(InputError, match="range must be two"):
        as_range(asked)


@pytest.mark.parametrize("asked", ["300,400", "-2,-1"])
def test_a_range_that_holds_no_value_is_refused(asked: str) -> None:
    with pytest.raises(InputError, match=f"all outside range={asked}"):
        limits((RAMP * 255).astype(np.uint8), asked)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted(bad: float) -> None:
    values = np.zeros((4, 5))
    values[1, :3] = bad
    for check in (check_finite, lambda values, what: picture_range(values, None, what)):
        with pytest.raises(InputError, match=r"3 of 20 values of 'a\.tif' are NaN or infinite"):
            check(values, "a.tif")


# --- measurements, whose noise exceeds black and white -------------------------------------------------------------

FACE = np.concatenate([RAMP, RAMP**2])  # an image in [0, 1]
NOISE = np.random.default_rng(0).standard_normal(FACE.size)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (FACE, (0, 1)),
        (2 * FACE - 1, (-1, 1)),
        (2 * FACE - 1 + 0.2 * NOISE, (-1, 1)),
        (255 * FACE, (0, 255)),
        ((255 * FACE).astype(np.uint8), (0, 255)),
        ((4095 * FACE).astype(np.int64), (0, 4095)),
    ],
)
def test_a_measured_images_range_is_recognised(values: np.ndarray, expected: tuple[float, float]) -> None:
    assert measured_range(values, None, "y", 0.001)[:2] == expected


@pytest.mark.parametrize(
    "values",
    [
        FACE + 0.1 * NOISE,  # of [0, 1], but so is a bright image of [-1, 1]
        FACE + 0.5 * NOISE,
        255 * FACE + 20 * NOISE,
        9 * NOISE,
        1.5 * FACE,
    ],
)
def test_a_measured_image_of_an_unclear_range_is_refused(values: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"'y' are from .* to .*range="):
        measured_range(values, None, "y", 0.001)


def test_a_declared_noise_explains_more() -> None:
    values = 2 * FACE - 1 + 2 * NOISE
    with pytest.raises(InputError, match="range="):
        measured_range(values, None, "y", 0.1)
    assert measured_range(values, None, "y", 2.0)[:2] == (-1, 1)


def test_a_measured_image_may_exceed_what_was_asked_for_by_its_noise_only() -> None:
    assert measured_range(FACE + 0.1 * NOISE, as_range("0,1"), "y")[:2] == (0, 1)
    with pytest.raises(InputError, match="far outside range=0,1"):
        measured_range(255 * FACE, as_range("0,1"), "y")
