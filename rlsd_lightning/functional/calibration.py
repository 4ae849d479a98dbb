r"""Whether particles are as far apart as they are from the truth.

If the truth :math:`u` is one more draw of what a pixel's :math:`N` particles are drawn from, and that is Gaussian, then
with the particles' mean :math:`m` and unbiased deviation :math:`s`

.. math:: \frac{u - m}{s \sqrt{1 + 1/N}} \sim t_{N - 1},

exactly, for every :math:`N \ge 2`. Few particles are therefore held against Student's distribution: with four, an
interval that takes :math:`s` for the true deviation and promises 95 % would hold 82 % of the truths at best.
"""

import math

import torch
from torch import Tensor

__all__ = ["LEVELS", "calibration", "interval_factor", "student_mass", "total_calibration", "within_share"]

LEVELS = (50, 80, 90, 95)
"""Nominal coverage of the intervals that are held against the truth, in percent."""


def student_mass(t: float, degrees: int) -> float:
    r"""The probability :math:`P(|T| \le t)` of Student's distribution, a finite sum for whole degrees of freedom.

    Args:
        t: At least 0.
        degrees: Degrees of freedom, at least 1.

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
    r"""How many deviations :math:`s` on each side of the mean of :math:`N` particles hold a share of truths.

    Args:
        level: The share, in (0, 1).
        count: The number :math:`N \ge 2` of particles.

    Returns:
        :math:`\sqrt{1 + 1/N}` times the quantile of Student's distribution; 1.96 at 95 % for many particles, 3.56 for
        four.
    """
    low, high = 0.0, 1.0
    while student_mass(high, count - 1) < level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_mass(middle, count - 1) < level else (low, middle)
    return high * math.sqrt(1 + 1 / count)


def within_share(error: Tensor, std: Tensor, factor: float, resolution: float = 0.0) -> float:
    r"""The share of :math:`|e| \le k s + r`.

    Args:
        error: Errors :math:`e` of the mean.
        std: Deviations :math:`s`, with the same shape.
        factor: The number :math:`k` of deviations.
        resolution: How far :math:`r` the truth may be from what is written of it.
    """
    return (error.abs() <= factor * std + resolution).float().mean().item()


def calibration(
    images: Tensor, truth: Tensor, region: Tensor | None = None, resolution: float = 0.0
) -> dict[str, float | None]:
    r"""Observed and expected shares of truths near the particles' mean.

    Args:
        images: Particles, with shape :math:`(N, *)`.
        truth: With shape :math:`(1, *)`.
        region: Which entries count, a boolean tensor of shape :math:`(*)`; all if left out.
        resolution: Half a step of the truth's values: 1/255 for a picture of 8 bits in [-1, 1].

    Returns:
        ``within_k_std`` for k of 1, 2 and 3, the share of entries whose truth is within :math:`k s` of the mean, and
        ``within_k_std_expected``, what it would be for exact Gaussian particles; ``coverage_p``, the share in the
        interval that holds p percent for exact Gaussian particles; ``coverage_p_normal``, the share in the interval
        that would if :math:`s` were known; ``calibration_error``, the mean distance of ``coverage_p`` from p percent;
        ``spread_to_error``, :math:`\sqrt{(1 + 1/N) \, \overline{s^2} / \overline{(u - m)^2}}`, which is 1 if calibrated
        and less if the particles are too alike. All are None for one particle, or where nothing counts.
    """
    count = len(images)
    names = [f"within_{k}_std{end}" for k in (1, 2, 3) for end in ("", "_expected")]
    names += [f"coverage_{level}{end}" for level in LEVELS for end in ("", "_normal")]
    figures: dict[str, float | None] = dict.fromkeys([*names, "calibration_error", "spread_to_error"])
    if region is not None:
        images, truth = images[:, region], truth[:, region]
    if count < 2 or not truth.numel():
        return figures
    error, std = truth[0] - images.mean(dim=0), images.std(dim=0)
    for k in (1, 2, 3):
        figures[f"within_{k}_std"] = within_share(error, std, k, resolution)
        figures[f"within_{k}_std_expected"] = student_mass(k / math.sqrt(1 + 1 / count), count - 1)
    for level in LEVELS:
        share = level / 100
        figures[f"coverage_{level}"] = within_share(error, std, interval_factor(share, count), resolution)
        figures[f"coverage_{level}_normal"] = within_share(error, std, _normal_factor(share), resolution)
    figures["calibration_error"] = sum(abs(figures[f"coverage_{p}"] - p / 100) for p in LEVELS) / len(LEVELS)
    mse = error.square().mean().item()
    if mse:
        figures["spread_to_error"] = math.sqrt((1 + 1 / count) * std.square().mean().item() / mse)
    return figures


def total_calibration(
    images: Tensor, shared: Tensor | None, truth: Tensor, region: Tensor | None = None, resolution: float = 0.0
) -> dict[str, float | None]:
    r"""How often truths lie within the uncertainty of particles and of the error that they share.

    With the variance :math:`V` of the latter, the interval for :math:`p` percent is
    :math:`|u - m| \le \sqrt{f_p^2 s^2 + q_p^2 V}`, with the factor :math:`f_p` of :func:`interval_factor` and the normal
    distribution's quantile :math:`q_p`: that of either where the other variance is zero. Between, and with few particles, it holds
    more than it says: of two of them at most 96 percent for 90, of four 92.4.

    Args:
        images: Particles, with shape :math:`(N, *)`.
        shared: The variance :math:`V`, with shape :math:`(*)`; None where it is not known.
        truth: With shape :math:`(1, *)`.
        region: Which entries count, a boolean tensor of shape :math:`(*)`; all if left out.
        resolution: Half a step of the truth's values.

    Returns:
        ``total_coverage_p`` and ``total_spread_to_error``,
        :math:`\sqrt{((1 + 1/N) \, \overline{s^2} + \overline V) / \overline{(u - m)^2}}`; None where nothing is known.
    """
    figures: dict[str, float | None] = dict.fromkeys(
        [*(f"total_coverage_{p}" for p in LEVELS), "total_spread_to_error"]
    )
    if shared is None:
        return figures
    if region is not None:
        images, truth, shared = images[:, region], truth[:, region], shared[region]
    if not truth.numel():
        return figures
    count = len(images)
    error = truth[0] - images.mean(dim=0)
    variance = images.var(dim=0) if count > 1 else torch.zeros_like(error)
    for level in LEVELS:
        share = level / 100
        factor = interval_factor(share, count) if count > 1 else 0.0
        half = (factor**2 * variance + _normal_factor(share) ** 2 * shared).sqrt()
        figures[f"total_coverage_{level}"] = within_share(error, half, 1, resolution)
    mse = error.square().mean().item()
    if mse:
        total = (1 + 1 / count) * variance.mean() + shared.mean()
        figures["total_spread_to_error"] = math.sqrt(total.item() / mse)
    return figures


def _normal_factor(level: float) -> float:
    """The normal distribution's, by bisection of its mass erf(k / sqrt(2))."""
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if math.erf(middle / math.sqrt(2)) < level else (low, middle)
    return high
