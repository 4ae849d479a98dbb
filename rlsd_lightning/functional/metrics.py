"""Figures about a set of particles that torchmetrics does not have."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = [
    "diversity",
    "gradient_energy",
    "mode_total_variation",
    "pixel_std",
    "projected_wasserstein",
    "psnr",
    "random_directions",
    "residual_rms",
    "within_mode_spread",
]


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    r"""Peak signal-to-noise ratio of images in [-1, 1], one value an image (torchmetrics averages over a batch).

    Args:
        images: With shape :math:`(N, \dots)`; values beyond the range are clipped.
        truth: With shape :math:`(1, \dots)`.

    Returns:
        Decibels, with shape :math:`(N,)`: :math:`10 \log_{10}(4 / \mathrm{mse})`.
    """
    mse = (images.clamp(-1, 1) - truth).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(4 / mse)


def diversity(features: Tensor) -> Tensor:
    r"""One minus the mean cosine similarity of the features of two different particles, with shape :math:`()`.

    Args:
        features: With shape :math:`(N, D)`.

    Returns:
        From 0 (all alike) to 2; 0 if :math:`N = 1`.

    References:
        | Repulsive Latent Score Distillation for Solving Inverse Problems (Zilberstein et al., 2025)
        | https://arxiv.org/abs/2406.16683
    """
    count = len(features)
    if count == 1:
        return features.new_zeros(())
    unit = normalize(features, dim=1)
    similarity = unit @ unit.T
    return 1 - (similarity.sum() - similarity.trace()) / (count * (count - 1))


def pixel_std(images: Tensor, region: Tensor | None = None) -> float | None:
    r"""Root mean square of the particles' unbiased standard deviation, which many and few particles share on average.

    Args:
        images: With shape :math:`(N, *)`.
        region: Which entries count, a boolean tensor of shape :math:`(*)`; all if left out.

    Returns:
        In units of an image in [-1, 1]; None for one particle, or where nothing counts.
    """
    values = images.flatten(1) if region is None else images[:, region]
    if len(values) < 2 or not values.numel():
        return None
    return values.var(dim=0).mean().sqrt().item()


def gradient_energy(images: Tensor) -> Tensor:
    r"""How sharp images are: the mean square of differences of neighbours, down plus across, with shape :math:`(N,)`.

    Args:
        images: With shape :math:`(N, C, H, W)`.
    """
    return sum(images.diff(dim=dim).square().flatten(1).mean(dim=1) for dim in (-2, -1))


def residual_rms(measured: Tensor, y: Tensor) -> Tensor:
    r"""Root mean square of :math:`y - A(x)` over all particles and elements, in units of the measurement."""
    return (y - measured).square().mean().sqrt()


def mode_total_variation(assignments: Tensor, weights: Tensor) -> Tensor:
    r"""Total variation between the particles' shares of the modes and the modes' weights.

    Args:
        assignments: The index of each particle's mode, with shape :math:`(N,)`.
        weights: The true weights, with shape :math:`(K,)`, summing to one.

    Returns:
        :math:`\frac{1}{2} \sum_k |\hat w_k - w_k|`, from 0 to 1.
    """
    shares = torch.bincount(assignments, minlength=len(weights)).to(weights) / len(assignments)
    return 0.5 * (shares - weights).abs().sum()


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
