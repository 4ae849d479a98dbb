r"""Size, whiteness and distribution of residuals that should be standard normal.

Each statistic is compared with that of simulated white noise on the same values. The cube root of a sum of squares is
nearly normal, so the comparison is a z-score.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Whiteness", "twice_median", "whiteness"]

LAGS = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0))
"""Rows and columns between two values whose correlation is looked at."""
BANDS = 6
"""Rings of the spectrum, from coarse to fine."""
SIMULATIONS = 64
"""Simulated white residuals."""
FEWEST = 50
"""Fewer values or pairs say nothing certain."""
MOST_VALUES = 2**22
"""Values looked at together; bounds the memory, as 64 simulated residuals of a large image would fill it."""


class Whiteness(NamedTuple):
    """What was found in residuals, with shape (n,) each; a p-value is small where white noise rarely looks like that.

    Attributes:
        size: Root mean square.
        size_p: Two-sided p-value of the size.
        correlation: Largest correlation of neighbours, by its amount.
        spectrum: Largest ratio of a band's power, or of its inverse, to that of white noise.
        white_p: p-value of correlations and spectrum together.
        distance: Largest distance of the distribution function from the normal one, after division by the size.
        normal_p: p-value of this distance.
    """

    size: Tensor
    size_p: Tensor
    correlation: Tensor
    spectrum: Tensor
    white_p: Tensor
    distance: Tensor
    normal_p: Tensor


@torch.no_grad()
def whiteness(residuals: Tensor, seen: Tensor, neighbours: bool = True) -> Whiteness | None:
    """Compare residuals with white noise of variance 1.

    Args:
        residuals: Values with shape :math:`(n, C, H, W)`; neighbours are along the last two axes.
        seen: Boolean, which values count, with shape :math:`(C, H, W)`.
        neighbours: Whether values have neighbours; correlation and spectrum are 0 and 1 if not.

    Returns:
        The figures; None for fewer than 50 values.
    """
    residuals, seen, count = residuals.detach(), seen.cpu(), int(seen.sum())
    if count < FEWEST:
        return None
    at_once = max(1, MOST_VALUES // seen.numel())
    found = [_statistics(part.cpu().double(), seen) for part in (*residuals.split(at_once), *_simulated(seen, at_once))]
    size, distance, correlations, powers = map(torch.cat, zip(*found, strict=True))
    chi_square = (size[: len(residuals)].square().pow(1 / 3) - (1 - 2 / (9 * count))) / math.sqrt(2 / (9 * count))
    if not neighbours:
        correlations, powers = correlations[:, :0], powers[:, :0]
    own, simulated = slice(len(residuals)), slice(len(residuals), None)
    ratios = powers[own] / powers[simulated].mean(dim=0)
    both = torch.cat([_squares(correlations, simulated), _squares(powers, simulated)], dim=1).sum(dim=1)
    return Whiteness(
        size[own],
        2 * _upper_tail(chi_square.abs()),
        _largest(correlations[own]),
        torch.maximum(ratios, 1 / ratios.clamp_min(1e-300)).amax(dim=1) if ratios.shape[1] else torch.ones(len(ratios)),
        _p_value(both, own, simulated) if ratios.shape[1] or correlations.shape[1] else torch.ones(len(ratios)),
        distance[own],
        _p_value(distance, own, simulated),
    )


def twice_median(p_values: Tensor) -> float:
    """One p-value of several that need not be independent, in [0, 1].

    References:
        | Random variables with maximum sums (Rueschendorf, 1982)
        | https://doi.org/10.2307/1426677
    """
    return min(1.0, 2 * p_values.median().item())


def _simulated(seen: Tensor, at_once: int) -> Iterator[Tensor]:
    """White residuals, with shape (at_once, C, H, W) or less."""
    generator = torch.Generator().manual_seed(0)
    for first in range(0, SIMULATIONS, at_once):
        count = min(at_once, SIMULATIONS - first)
        yield torch.randn(count, *seen.shape, generator=generator, dtype=torch.float64)


def _statistics(values: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sizes, distances, correlations and powers of residuals, with shapes (n,), (n,), (n, lags) and (n, bands)."""
    size = values[:, seen].square().mean(dim=1).sqrt()
    scaled = torch.where(seen, values / size.clamp_min(1e-300).view(-1, 1, 1, 1), 0.0)
    return size, _distances(scaled[:, seen]), _correlations(scaled, seen), _powers(scaled)


def _upper_tail(z: Tensor) -> Tensor:
    """Probability of a standard normal value above z."""
    return 0.5 * torch.erfc(z / math.sqrt(2))


def _p_value(statistic: Tensor, own: slice, simulated: slice) -> Tensor:
    """p-values of large statistics, by a normal approximation of the simulated ones' cube roots."""
    roots = statistic.clamp_min(0).pow(1 / 3)
    return _upper_tail((roots[own] - roots[simulated].mean()) / roots[simulated].std())


def _squares(values: Tensor, simulated: slice) -> Tensor:
    """Squared deviations from the simulated mean, in units of the simulated variance."""
    if not values.shape[1]:
        return values
    return ((values - values[simulated].mean(dim=0)) / values[simulated].std(dim=0)).square()


def _largest(values: Tensor) -> Tensor:
    return values.abs().amax(dim=1) if values.shape[1] else torch.zeros(len(values), dtype=values.dtype)


def _correlations(scaled: Tensor, seen: Tensor) -> Tensor:
    """Correlations of neighbours, with shape (n, lags); lags with few pairs are left out."""
    height, width = seen.shape[-2:]
    found = []
    for down, right in LAGS:
        rows, columns = (slice(0, height - down), slice(down, height)), _shifted(width, right)
        first, second = ((..., rows[end], columns[end]) for end in (0, 1))
        pairs = int((seen[first] & seen[second]).sum())
        if pairs >= FEWEST:
            found.append((scaled[first] * scaled[second]).flatten(1).sum(dim=1) / pairs)
    return torch.stack(found, dim=1) if found else scaled.new_zeros(len(scaled), 0)


def _shifted(width: int, right: int) -> tuple[slice, slice]:
    """Columns of the first and of the second value of pairs."""
    if right < 0:
        return slice(-right, width), slice(0, width + right)
    return slice(0, width - right), slice(right, width)


def _powers(scaled: Tensor) -> Tensor:
    """Mean power in rings of the spectrum, with shape (n, bands); one band for each axis without length is left out."""
    height, width = scaled.shape[-2:]
    power = torch.fft.rfft2(scaled).abs().square().mean(dim=1) / (height * width)
    down, right = torch.fft.fftfreq(height).abs(), torch.fft.rfftfreq(width)
    radius = (down[:, None].square() + right.square()).sqrt()
    ring = (radius / radius.max() * BANDS).ceil().long().clamp(1, BANDS) - 1
    means = [power[:, ring == band].mean(dim=1) for band in range(BANDS) if (ring == band).any()]
    return torch.stack(means, dim=1)


def _distances(values: Tensor) -> Tensor:
    """Kolmogorov-Smirnov distances from the standard normal distribution, with shape (n,)."""
    count = values.shape[1]
    below = 1 - _upper_tail(values.sort(dim=1).values)
    steps = torch.arange(count + 1, dtype=values.dtype) / count
    return torch.maximum(steps[1:] - below, below - steps[:-1]).amax(dim=1)
