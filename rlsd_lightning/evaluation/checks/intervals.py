r"""Intervals of an image's values with a guaranteed expected coverage, calibrated on finished measurements with a truth.

The nominal interval is :math:`m \pm h` with the particles' mean :math:`m` and the half width :math:`h` of
:func:`~rlsd_lightning.functional.calibration.half_widths`. One factor for all values, found by conformal risk control, makes
it wider or narrower.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlsd_lightning.errors import InputError
from rlsd_lightning.functional.calibration import half_widths, risk_controlled_factor
from rlsd_lightning.images import ROUNDING
from rlsd_lightning.measurement import SavedMeasurement

__all__ = ["Conformal", "Interval", "conformal_calibration", "fewest", "interval", "left_out_coverage"]


class Conformal(NamedTuple):
    """What a calibration found.

    Attributes:
        factor: Factor of the half widths, above 0.
        level: Expected coverage that is guaranteed, in (0, 1).
        images: Number of images of the calibration.
        region: ``unobserved`` or ``all``: the values that the guarantee is for.
        left_out: Mean of :func:`left_out_coverage`; None for too few images.
    """

    factor: float
    level: float
    images: int
    region: str
    left_out: float | None = None

    @property
    def guarantee(self) -> str:
        """The guarantee in a sentence."""
        values = "hidden values" if self.region == "unobserved" else "values"
        return (
            f"If an image is exchangeable with the {self.images} images of the calibration, at least {100 * self.level:g}% of its "
            f"{values} lie in their intervals on average over such images and calibrations."
        )


class Interval(NamedTuple):
    """Intervals of one image.

    Attributes:
        lower: Lower ends, in [-1, 1], with shape (C, H, W).
        upper: Upper ends.
        width: Mean width in the region, on the scale of [-1, 1].
        coverage: Share of the truth's values in them; None without a truth.
    """

    lower: Tensor
    upper: Tensor
    width: float
    coverage: float | None


def conformal_calibration(saved: Sequence[SavedMeasurement], level: float = 0.9) -> Conformal:
    """Calibrate intervals on measurements with a truth, all of one task and one setting.

    Raises:
        InputError: If a truth is missing, or there are too few images for the level.
    """
    if not 0 < level < 1:
        raise InputError(f"level must be above 0 and below 1, got {level}")
    unknown = [one.name for one in saved if one.truth is None]
    if unknown:
        raise InputError(f"the truth of every measurement is expected, but '{unknown[0]}' has none")
    every = [_ratios(one, level) for one in saved]
    factor = risk_controlled_factor(every, level)
    if factor == float("inf"):
        raise InputError(f"a level of {level:g} takes {fewest(level)} images at least, got {len(saved)}")
    region = "all" if saved[0].observed is None else "unobserved"
    left_out = _left_out(every, level)
    return Conformal(factor, level, len(saved), region, sum(left_out) / len(left_out) if left_out else None)


def fewest(level: float) -> int:
    """Least number of images that a calibration takes."""
    return math.ceil(level / (1 - level) - 1e-9)


def left_out_coverage(saved: Sequence[SavedMeasurement], level: float = 0.9) -> list[float]:
    """Share of each image's values in intervals that are calibrated on the other images: what a further image can expect.

    Empty if the others are too few for the level.
    """
    return _left_out([_ratios(one, level) for one in saved], level)


def _left_out(every: list[Tensor], level: float) -> list[float]:
    if len(every) <= fewest(level):
        return []
    factors = [risk_controlled_factor(every[:index] + every[index + 1 :], level) for index in range(len(every))]
    return [(own <= factor).cpu().double().mean().item() for own, factor in zip(every, factors, strict=True)]


def _ratios(one: SavedMeasurement, level: float) -> Tensor:
    """Distances of the truth's values from the mean over the half widths, in the region."""
    mean, half = _mean_and_half(one, level)
    return (((one.truth[0] - mean).abs() - ROUNDING).clamp_min(0) / half)[_region(one)]


def interval(one: SavedMeasurement, conformal: Conformal) -> Interval:
    """Intervals of one measurement's values."""
    mean, half = _mean_and_half(one, conformal.level)
    lower, upper = (mean - conformal.factor * half).clamp(-1, 1), (mean + conformal.factor * half).clamp(-1, 1)
    region, coverage = _region(one), None
    if one.truth is not None:
        truth = one.truth[0]
        inside = (truth >= lower - ROUNDING) & (truth <= upper + ROUNDING)
        coverage = inside[region].cpu().double().mean().item()
    return Interval(lower, upper, (upper - lower)[region].mean().item(), coverage)


def _mean_and_half(one: SavedMeasurement, level: float) -> tuple[Tensor, Tensor]:
    images = (one.images if one.aligned is None else one.aligned).clamp(-1, 1)
    variance = images.var(dim=0) if len(images) > 1 else torch.zeros_like(images[0])
    half = half_widths(variance, one.shared_variance, level, len(images))
    return images.mean(dim=0), half.clamp_min(ROUNDING)  # no interval is narrower than the truth is known


def _region(one: SavedMeasurement) -> Tensor:
    """Values that count: what a mask hides, or all."""
    hidden = torch.ones_like(one.images[0], dtype=torch.bool) if one.observed is None else ~one.observed
    return hidden if hidden.any() else torch.ones_like(hidden)
