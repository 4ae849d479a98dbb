"""Black and white of pictures, from the type and range of their values, or as set."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlsd_lightning.errors import InputError

__all__ = ["Range", "as_range", "check_finite", "measured_range", "picture_range", "scaled"]

TOLERANCE = 1e-3
"""Excess over a range that is taken for rounding, as a share of the range."""
LEAST_OF_255 = 64
"""Smallest maximum of real numbers that are taken for 0 to 255."""
DARKEST, CENTRE = -0.5, 0.25
"""A measured image in [-1, 1] has its minimum below the first, and the middle of its range below the second.

An image in [0, 1] has its middle near one half, however noisy it is.
"""
STRONGEST = 3.0
"""Largest excess of a measured image over [-1, 1] that is taken for noise, unless stronger noise is declared."""


class Range(NamedTuple):
    """The values that mean black and white.

    Attributes:
        low: Black, -1 in an image; above white for a negative.
        high: White, 1 in an image.
        asked: Whether the user or the file sets it; values outside are then clipped.
        note: Explanation for the log.
    """

    low: float
    high: float
    asked: bool = False
    note: str = ""


def as_range(asked: str | Sequence[float] | None) -> Range | None:
    """A range that the user sets, as ``"0,255"`` or ``[0, 255]``.

    Raises:
        InputError: If it is not two numbers in ascending order.
    """
    if asked is None:
        return None
    try:
        low, high = map(float, asked.strip("()[] ").split(",") if isinstance(asked, str) else asked)
    except (TypeError, ValueError) as error:
        raise InputError(f"range must be two numbers, black and white, such as 0,255, got '{asked}'") from error
    if not -np.inf < low < high < np.inf:
        raise InputError(f"range must be two finite numbers, the lower one first, got {low:g},{high:g}")
    return Range(low, high, True, f"values are black at {low:g} and white at {high:g}, as asked")


def check_finite(values: np.ndarray, what: object) -> None:
    """Refuses NaN and infinities.

    Raises:
        InputError: With their number.
    """
    bad = 0 if values.dtype.kind in "biu" else values.size - np.count_nonzero(np.isfinite(values))
    if bad:
        raise InputError(
            f"finite values are expected, but {bad} of {values.size} values of '{what}' are NaN or infinite; "
            "replace them (a mask may hide those of a measurement)"
        )


def picture_range(values: np.ndarray, asked: Range | None, what: object) -> Range:
    """Black and white of a clean picture, or of several that belong together.

    Integers are of 8, 12 or 16 bits, by the largest of them. Real numbers are from 0 to 1, from -1 to 1 or from 0 to
    255.

    Raises:
        InputError: If values are not finite, or fit none of these.
    """
    check_finite(values, what)
    low, high = _extremes(values)
    if asked is not None:
        if high < min(asked[:2]) or low > max(asked[:2]):
            raise _unclear(what, low, high, f"they are all outside range={asked.low:g},{asked.high:g}")
        return asked
    if values.dtype.kind in "biu":
        return _integer_range(low, high, values.dtype, what)
    if low >= -TOLERANCE and high <= 1 + TOLERANCE:
        return Range(0, 1, note="real numbers from 0 to 1 are black to white")
    if low >= -1 - TOLERANCE and high <= 1 + TOLERANCE:
        return Range(-1, 1, note="real numbers from -1 to 1 are black to white")
    if low >= -255 * TOLERANCE and LEAST_OF_255 <= high <= 255 * (1 + TOLERANCE):
        return Range(0, 255, note="real numbers from 0 to 255 are black to white")
    raise _unclear(what, low, high, "real numbers from 0 to 1, from -1 to 1 or from 0 to 255 are expected")


def _integer_range(low: float, high: float, kind: np.dtype, what: object) -> Range:
    if kind.kind == "b":
        return Range(0, 1, note="false is black, true is white")
    if low < 0:
        raise _unclear(what, low, high, "integers from 0 are expected")
    if high == 1:
        raise _unclear(what, low, high, "0 and 1 may be black and white, or nearly black")
    for bits in (8, 12, 16):
        if high < 2**bits:
            stored = f"{bits} bits in {8 * kind.itemsize}" if bits < 8 * kind.itemsize else f"{bits} bits"
            return Range(0, 2**bits - 1, note=f"integers of {stored}: 0 is black, {2**bits - 1} is white")
    raise _unclear(what, low, high, "integers of at most 16 bits are expected")


def measured_range(values: np.ndarray, asked: Range | None, what: object, noise_std: float = 0.0) -> Range:
    """Black and white of a measured image, whose noise may exceed both.

    Args:
        values: What was measured; hidden values left out.
        asked: The range that the user or the file sets; None if there is none.
        what: The file's name, for messages.
        noise_std: Standard deviation of the noise, in units of an image in [-1, 1].

    Raises:
        InputError: If values are not finite, or fit no range.
    """
    check_finite(values, what)
    low, high = _extremes(values)
    margin = max(STRONGEST, 6 * noise_std)
    if asked is not None:
        beyond = margin * abs(asked.high - asked.low) / 2
        if low < min(asked[:2]) - beyond or high > max(asked[:2]) + beyond:
            raise _unclear(what, low, high, f"they are far outside range={asked.low:g},{asked.high:g}")
        return asked
    if values.dtype.kind in "biu":
        return _integer_range(low, high, values.dtype, what)
    if low < DARKEST and low + high < 2 * CENTRE and max(-low, high) <= 1 + margin:
        return Range(-1, 1, note="real numbers around -1 to 1 are black to white")
    if low >= -TOLERANCE and high <= 1 + TOLERANCE:
        return Range(0, 1, note="real numbers from 0 to 1 are black to white")
    if low >= -255 * TOLERANCE and LEAST_OF_255 <= high <= 255 * (1 + TOLERANCE):
        return Range(0, 255, note="real numbers from 0 to 255 are black to white")
    why = "real numbers around -1 to 1, from 0 to 1 or from 0 to 255 are expected"
    raise _unclear(what, low, high, why, _noisy(high))


def _extremes(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _unclear(what: object, low: float, high: float, why: str, examples: str = "") -> InputError:
    near = [limits for limits in ("0,1", "-1,1", "0,255", "0,1023", "0,4095", "0,65535") if _holds(limits, low, high)]
    # from or to zero: one value alone is no range
    example = examples or f"range={near[0] if near else f'{min(low, 0):.6g},{max(high, 0):.6g}'}"
    return InputError(
        f"the values of '{what}' are from {low:g} to {high:g}, and {why}; say which of them are black and white, "
        f"such as {example}"
    )


def _holds(limits: str, low: float, high: float) -> bool:
    least, most = (float(limit) for limit in limits.split(","))
    return least <= low and most / 4 <= high <= most


def _noisy(high: float) -> str:
    """Ranges that a measurement with noise may have."""
    tops = [top for top in (255, 4095, 65535) if high < 1.5 * top]
    return "range=0,1 or range=-1,1" if high < LEAST_OF_255 / 4 else f"range=0,{tops[0]}" if tops else ""


def scaled(values: np.ndarray, limits: Range) -> np.ndarray:
    """Values in float32, -1 at black and 1 at white."""
    if (limits.low, limits.high) == (-1, 1):
        return values.astype(np.float32)
    wide = values.astype(np.float64 if values.dtype.kind in "iu" and values.dtype.itemsize > 2 else np.float32)
    return ((wide - limits.low) / ((limits.high - limits.low) / 2) - 1).astype(np.float32)
