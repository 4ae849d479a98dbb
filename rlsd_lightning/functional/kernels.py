r"""The kernel between particles and the repulsion that follows from it.

Particles repel each other down the gradient of their own density
:math:`q(f) = \sum_j k(f, f_j)`, with the RBF kernel :math:`k(f, g) = \exp(-\|f - g\|^2 / h)`.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

__all__ = [
    "coarse_pixels",
    "log_density",
    "log_density_gradient",
    "mean_square_difference",
    "median_bandwidth",
    "official_repulsion",
    "sets_at_a_time",
    "sets_in",
    "squared_distances",
]

MOST_DIFFERENCES = 2**24
"""Elements of particles' differences that are held at once, unless one particle of each set has more."""


def squared_distances(features: Tensor, others: Tensor) -> Tensor:
    r"""Squared Euclidean distances :math:`\|f_i - g_j\|^2` of shape (..., n, N) of vectors of shape (..., n, D) and (..., N, D)."""
    if features.shape[-1] != others.shape[-1]:
        raise ValueError(f"features of one size expected, got {tuple(features.shape)} and {tuple(others.shape)}")
    # not torch.cdist: its gradient at distance zero, and its matrix product's rounding, are worse
    parts = features.split(_rows_at_a_time(others), dim=-2)
    return torch.cat([(part[..., :, None, :] - others[..., None, :, :]).square().sum(-1) for part in parts], dim=-2)


def sets_at_a_time(features: Tensor, count: int) -> int:
    """Number of sets of ``count`` particles whose differences are held at once; features have shape (n, D)."""
    return max(1, MOST_DIFFERENCES // (count * count * features.shape[-1]))


def sets_in(rows: slice, count: int) -> Iterator[tuple[int, int, int]]:
    """Every set of ``count`` particles that has some of these rows: its index, the first of the rows, and the end."""
    for index in range(rows.start // count, -(-rows.stop // count) if rows.start < rows.stop else 0):
        yield index, max(rows.start, index * count), min(rows.stop, (index + 1) * count)


def _rows_at_a_time(others: Tensor) -> int:
    """How many particles are compared with all others at once."""
    return max(1, MOST_DIFFERENCES // max(1, others.numel()))


def mean_square_difference(features: Tensor) -> Tensor:
    r"""Mean square difference :math:`\frac{1}{(N - 1) D} \sum_j \|f_i - f_j\|^2` to the others of N particles; 0 for a lone one."""
    count, size = features.shape
    return squared_distances(features, features).sum(-1) / (max(count - 1, 1) * size)


def median_bandwidth(features: Tensor) -> Tensor:
    r"""The median heuristic :math:`h = \mathrm{median}_{i \ne j} \|f_i - f_j\|^2 / \log(N + 1)`, detached.

    Args:
        features: All particles, with shape :math:`(\dots, N, D)`.

    Returns:
        With shape :math:`(\dots)`; 1 if there is one particle or all coincide.

    References:
        | Stein Variational Gradient Descent (Liu & Wang, 2016), Section 5
        | https://arxiv.org/abs/1608.04471
    """
    features = features.detach()
    count = features.shape[-2]
    if count == 1:
        return features.new_ones(features.shape[:-2])
    rows, columns = torch.triu_indices(count, count, offset=1, device=features.device)
    h = squared_distances(features, features)[..., rows, columns].median(dim=-1).values / math.log(count + 1)
    return torch.where(h > 0, h, torch.ones_like(h))


def log_density(features: Tensor, others: Tensor, bandwidth: Tensor) -> Tensor:
    r"""The particles' log density :math:`\log \sum_j k(f_i, f_j)`, the particle itself included.

    With :math:`j = i` in the sum a single particle has density one and gradient zero, and the push between two fades
    with their distance. The gradient, with the others detached, points to HIGHER density.

    Args:
        features: This device's particles, with shape :math:`(\dots, n, D)`.
        others: All particles, detached, with shape :math:`(\dots, N, D)`.
        bandwidth: The squared length scale :math:`h`, with shape :math:`(\dots)`.

    Returns:
        With shape :math:`(\dots, n)`.
    """
    return torch.logsumexp(-squared_distances(features, others) / bandwidth[..., None, None], dim=-1)


def log_density_gradient(features: Tensor, others: Tensor, bandwidth: Tensor) -> Tensor:
    r"""The gradient of :func:`log_density` in its first argument, :math:`\frac{2}{h} \sum_j w_{ij} (f_j - f_i)`, in closed form.

    Here :math:`w_{ij} = k(f_i, f_j) / \sum_l k(f_i, f_l)`. It keeps no graph: a few features in memory instead of four
    differences for each pair of particles. It has the shape of ``features``.
    """
    features, others, bandwidth = features.detach(), others.detach(), bandwidth[..., None, None]
    shares = torch.softmax(-squared_distances(features, others) / bandwidth, dim=-1)
    rows = _rows_at_a_time(others)
    gradients = [
        (share[..., None] * (others[..., None, :, :] - part[..., :, None, :])).sum(dim=-2)
        for part, share in zip(features.split(rows, dim=-2), shares.split(rows, dim=-2), strict=True)
    ]
    return 2 / bandwidth * torch.cat(gradients, dim=-2)


def official_repulsion(features: Tensor) -> Tensor:
    r"""The push of the published code, :math:`\sum_{j \ne i} 2 k_{ij} (f_i - f_j) / h_i \, / \sum_{j \ne i} k_{ij}`.

    Here :math:`k_{ij} = \exp(-\|f_i - f_j\|^2 / h_i)` and
    :math:`h_i = \mathrm{median}_{j \ne i} \|f_i - f_j\|^2 / \log(N - 1)`. It points AWAY from the other particles, is
    not the gradient of a density (:math:`h_i` differs between particles), and is zero for :math:`N \le 2`. Where the median is 0, :math:`h_i` is 1.

    Args:
        features: All particles, with shape :math:`(N, D)`.

    Returns:
        With shape :math:`(N, D)`.
    """
    count = len(features)
    if count <= 2:
        return torch.zeros_like(features)
    rows = []
    for index, row in enumerate(features):  # all differences at once would not fit beside networks
        difference = row - torch.cat((features[:index], features[index + 1 :]))  # (N - 1, D)
        squared = difference.square().sum(-1)  # (N - 1,)
        h = squared.median(dim=0).values / math.log(count - 1)
        h = torch.where(h > 0, h, torch.ones_like(h))  # half of the others coincide with the particle
        # a constant factor cancels: the softmax stays finite where every kernel value underflows
        share = torch.softmax(-squared / h, dim=0)
        rows.append((share[:, None] * 2 * difference / h).sum(dim=0))
    return torch.stack(rows)


def coarse_pixels(images: Tensor, side: int = 32) -> Tensor:
    r"""Images with shape :math:`(N, C, H, W)` averaged down to ``side`` pixels a side, flattened; others only flattened."""
    if images.ndim == 4:
        images = adaptive_avg_pool2d(images, [min(length, side) for length in images.shape[-2:]])
    return images.flatten(1)
