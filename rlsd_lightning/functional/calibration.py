r"""Calibration of particles: whether they are as far apart as they are from the truth.

If the truth :math:`u` and the :math:`N` particles are draws from one Gaussian, then with the particles' mean :math:`m`
and unbiased standard deviation :math:`s`, for every :math:`N \ge 2`,

.. math:: \frac{u - m}{s \sqrt{1 + 1/N}} \sim t_{N - 1}.

Intervals therefore use Student's distribution: with few particles, :math:`s` is not the true standard deviation.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import torch
from torch import Tensor

__all__ = [
    "LEVELS",
    "calibration",
    "half_widths",
    "interval_factor",
    "risk_controlled_factor",
    "student_mass",
    "total_calibration",
]

LEVELS = (50, 80, 90, 95)
"""Nominal coverage of the intervals, in percent."""


def student_mass(t: float, degrees: int) -> float:
    r"""Probability :math:`P(|T| \le t)` of Student's distribution with whole degrees of freedom, for :math:`t \ge 0`.

    References:
        | Handbook of Mathematical Functions (Abramowitz & Stegun, 1964), Eqs. 26.7.3 and 26.7.4
    """
    angle = math.atan(t / math.sqrt(degrees))
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(1 + odd, degrees, 2):  # the powers k - 1 of the cosine
        total += term
        term *= math.cos(angle) ** 2 * k / (k + 1)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def interval_factor(level: float, count: int) -> float:
    r"""Half width, in standard deviations :math:`s`, of the interval that holds a share of truths.

    Args:
        level: The share, in (0, 1).
        count: The number :math:`N \ge 2` of particles.

    Returns:
        :math:`\sqrt{1 + 1/N}` times the quantile of Student's distribution.
    """
    low, high = 0.0, 1.0
    while student_mass(high, count - 1) < level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_mass(middle, count - 1) < level else (low, middle)
    return high * math.sqrt(1 + 1 / count)


def calibration(
    images: Tensor, truth: Tensor, region: Tensor | None = None, resolution: float = 0.0
) -> dict[str, float | None]:
    r"""Observed and expected shares of truths near the particles' mean.

    Args:
        images: Particles, with shape :math:`(N, *)`.
        truth: With shape :math:`(1, *)`.
        region: Entries that count, a boolean tensor of shape :math:`(*)`; all if left out.
        resolution: Half a step of the truth's values: 1/255 for a picture of 8 bits in [-1, 1].

    Returns:
        ``within_k_std`` for k of 1, 2 and 3, the share of entries whose truth is within :math:`k s` of the mean, and
        ``within_k_std_expected``, the same for exact Gaussian particles; ``coverage_p``, the share in the interval
        that holds p percent for exact Gaussian particles; ``coverage_p_normal``, the share in the interval for a known
        standard deviation :math:`s`; ``calibration_error``, the mean distance of ``coverage_p`` from p percent;
        ``spread_to_error``, :math:`\sqrt{(1 + 1/N) \, \overline{s^2} / \overline{(u - m)^2}}`, which is 1 if calibrated
        and less if the particles are too alike. All are None for one particle, or where nothing counts.
    """
    count = len(images)
    names = [f"within_{k}_std{end}" for k in (1, 2, 3) for end in ("", "_expected")]
    names += [f"coverage_{level}{end}" for level in LEVELS for end in ("", "_normal")]
    figures: dict[str, float | None] = dict.fromkeys([*names, "calibration_error", "spread_to_error"])
    error, variance = _moments(images, truth, region)
    if count < 2 or not error.numel():
        return figures
    std = variance.sqrt()
    for k in (1, 2, 3):
        figures[f"within_{k}_std"] = _share(error, k * std, resolution)
        figures[f"within_{k}_std_expected"] = student_mass(k / math.sqrt(1 + 1 / count), count - 1)
    for level in LEVELS:
        figures[f"coverage_{level}"] = _share(error, interval_factor(level / 100, count) * std, resolution)
        figures[f"coverage_{level}_normal"] = _share(error, _normal_factor(level / 100) * std, resolution)
    figures["calibration_error"] = sum(abs(figures[f"coverage_{p}"] - p / 100) for p in LEVELS) / len(LEVELS)
    return figures | {"spread_to_error": _ratio((1 + 1 / count) * variance.mean(), error)}


def total_calibration(
    images: Tensor, shared: Tensor | None, truth: Tensor, region: Tensor | None = None, resolution: float = 0.0
) -> dict[str, float | None]:
    r"""Shares of truths within the uncertainty of particles and of the error that they share.

    With the variance :math:`V` of the latter, the interval for :math:`p` percent is
    :math:`|u - m| \le \sqrt{f_p^2 s^2 + q_p^2 V}`, with the factor :math:`f_p` of :func:`interval_factor` and the normal
    distribution's quantile :math:`q_p`. It is exact if either variance is zero, and otherwise holds more than
    :math:`p` percent for few particles.

    Args:
        images: Particles, with shape :math:`(N, *)`.
        shared: The variance :math:`V`, with shape :math:`(*)`, if known.
        truth: With shape :math:`(1, *)`.
        region: Entries that count, as in :func:`calibration`.
        resolution: Half a step of the truth's values.

    Returns:
        ``total_coverage_p`` and ``total_spread_to_error``,
        :math:`\sqrt{((1 + 1/N) \, \overline{s^2} + \overline V) / \overline{(u - m)^2}}`; None where nothing is known.
    """
    names = [f"total_coverage_{p}" for p in LEVELS]
    figures: dict[str, float | None] = dict.fromkeys([*names, "total_spread_to_error"])
    error, variance = _moments(images, truth, region)
    if shared is None or not error.numel():
        return figures
    shared, count = shared if region is None else shared[region], len(images)
    for name, level in zip(names, LEVELS, strict=True):
        figures[name] = _share(error, half_widths(variance, shared, level / 100, count), resolution)
    return figures | {"total_spread_to_error": _ratio((1 + 1 / count) * variance.mean() + shared.mean(), error)}


def half_widths(variance: Tensor, shared: Tensor | None, level: float, count: int) -> Tensor:
    r"""Half widths :math:`\sqrt{f^2 s^2 + q^2 V}` of intervals about the mean of some particles.

    Args:
        variance: The particles' unbiased variance :math:`s^2`, 0 for one particle.
        shared: The variance :math:`V` of the error that they share, if known.
        level: Nominal coverage, in (0, 1).
        count: Number of particles.
    """
    factor = interval_factor(level, count) if count > 1 else 0.0
    total = factor**2 * variance
    return (total if shared is None else total + _normal_factor(level) ** 2 * shared).sqrt()


def risk_controlled_factor(ratios: Sequence[Tensor], level: float) -> float:
    r"""Least factor of intervals whose expected coverage is guaranteed by conformal risk control.

    An image's loss is the share of its values outside the intervals, at most 1. With :math:`n` images of a calibration the
    factor is the least :math:`\lambda` with

    .. math:: \frac{n}{n + 1} \bar L(\lambda) + \frac{1}{n + 1} \le 1 - \mathrm{level}.

    Then the expected loss of a further image is at most :math:`1 - \mathrm{level}`, if all images are exchangeable. The
    expectation is over the images of the calibration and the further one.

    Args:
        ratios: For each image, distances of the truth's values from the mean over the half widths, of any shape.
        level: The coverage, in (0, 1).

    Returns:
        The factor, at least 0; infinite for fewer than :math:`\mathrm{level} / (1 - \mathrm{level})` images.

    References:
        | Conformal Risk Control (Angelopoulos et al., 2022)
        | https://arxiv.org/abs/2208.02814
    """
    count = len(ratios)
    allowed = ((1 - level) * (count + 1) - 1) / count + 1e-12
    if allowed < 0:
        return math.inf
    values = torch.cat([each.flatten().cpu().double() for each in ratios])
    weights = torch.cat(
        [torch.full((each.numel(),), 1 / (count * each.numel()), dtype=torch.float64) for each in ratios]
    )
    order = values.argsort()
    outside = 1 - weights[order].cumsum(dim=0)  # mean loss of a factor equal to each value
    first = int((outside > allowed).sum())  # rounding may leave all of them above
    return values[order[min(first, len(values) - 1)]].clamp_min(0).item()


def _moments(images: Tensor, truth: Tensor, region: Tensor | None) -> tuple[Tensor, Tensor]:
    """Errors of the particles' mean, and their unbiased variance, 0 for one particle."""
    if region is not None:
        images, truth = images[:, region], truth[:, region]
    error = truth[0] - images.mean(dim=0)
    return error, images.var(dim=0) if len(images) > 1 else torch.zeros_like(error)


def _share(error: Tensor, half: Tensor, resolution: float) -> float:
    """Share of errors within half an interval, for truths known up to a resolution."""
    return (error.abs() <= half + resolution).float().mean().item()


def _ratio(variance: Tensor, error: Tensor) -> float | None:
    """Root of a variance over the mean squared error; None without an error."""
    mse = error.square().mean().item()
    return math.sqrt(variance.item() / mse) if mse else None


def _normal_factor(level: float) -> float:
    """Half width of the normal distribution's interval."""
    return NormalDist().inv_cdf((1 + level) / 2)
