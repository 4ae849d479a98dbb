"""Distances between sets of points, and the spread of points within modes."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["projected_wasserstein", "random_directions", "within_mode_spread"]


def random_directions(size: int, count: int, generator: torch.Generator | None = None) -> Tensor:
    r"""Unit vectors, evenly distributed over the sphere, with shape :math:`(\mathrm{size}, \mathrm{count})`."""
    return normalize(torch.randn(size, count, generator=generator), dim=0)


def projected_wasserstein(samples: Tensor, reference: Tensor, directions: Tensor, order: float = 2) -> Tensor:
    r"""The Wasserstein distance of two sets of points along each of some directions.

    Its maximum over random directions is the max-sliced distance. On a line
    :math:`W_p^p = \int_0^1 |F^{-1}(q) - G^{-1}(q)|^p \, dq`, a finite sum over the levels at which either quantile
    function steps.

    Args:
        samples: With shape :math:`(n, d)`.
        reference: With shape :math:`(m, d)`; the sets may differ in size.
        directions: Unit vectors, with shape :math:`(d, P)`.
        order: The order :math:`p \ge 1`.

    Returns:
        With shape :math:`(P,)`.

    References:
        | Sliced and Radon Wasserstein Barycenters of Measures (Bonneel et al., 2015)
        | https://doi.org/10.1007/s10851-014-0506-3
    """
    first, second = ((points @ directions).sort(dim=0).values for points in (samples, reference))
    n, m = len(first), len(second)
    # in units of 1 / (n m), so that equal levels are equal
    levels = torch.cat([m * torch.arange(1, n + 1), n * torch.arange(1, m + 1)]).unique().to(first.device)
    widths = torch.diff(levels, prepend=levels.new_zeros(1)).to(first) / (n * m)
    gaps = (first[(levels - 1) // m] - second[(levels - 1) // n]).abs()
    return (widths[:, None] * gaps**order).sum(dim=0) ** (1 / order)


def within_mode_spread(points: Tensor, assignments: Tensor, covariances: Tensor) -> Tensor:
    r"""The particles' standard deviation within their modes over the modes' own, with shape :math:`()`.

    Deviations from the mean of a mode's particles are whitened by the mode's covariance; 1 is right, less is too narrow.
    Modes with a single particle don't count.

    Args:
        points: With shape :math:`(N, d)`.
        assignments: The index of each particle's mode, with shape :math:`(N,)`.
        covariances: The modes' covariances, with shape :math:`(K, d, d)`.
    """
    total, freedom = points.new_zeros(()), 0
    for mode in assignments.unique().tolist():
        inside = points[assignments == mode]
        if len(inside) > 1:
            cholesky = torch.linalg.cholesky(covariances[mode])
            total += (
                torch.linalg.solve_triangular(cholesky, (inside - inside.mean(dim=0)).T, upper=False).square().sum()
            )
            freedom += (len(inside) - 1) * points.shape[1]
    return (total / freedom).sqrt() if freedom else total
