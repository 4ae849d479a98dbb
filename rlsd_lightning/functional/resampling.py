r"""Weights of a population of particles, and how a weighted population becomes one of equals."""

import torch
from torch import Tensor

__all__ = ["ancestors_of_outliers", "effective_share", "systematic_ancestors"]


def ancestors_of_outliers(distances: Tensor, ratios: Tensor, uniform: Tensor) -> Tensor:
    r"""Ancestors of M sets of N particles: outliers have :math:`d_i > r q`, and all others are their own ancestors.

    The lower quartile :math:`q` of a set's distances is the least of up to four, as interpolation would mix it with outliers. The
    ancestors of a set's outliers follow each other among those that are none, from one that is drawn.

    Args:
        distances: At least 0, with shape :math:`(M, N)`.
        ratios: The ratio :math:`r` of each set, at least 1, with shape :math:`(M, 1)`; infinity: no outliers.
        uniform: One draw from :math:`[0, 1)` for each set, with shape :math:`(M,)`.

    Returns:
        Indices of rows from 0 to :math:`M N - 1`, with shape :math:`(M N,)`.
    """
    quartile = distances.sort(dim=1).values[:, [(distances.shape[1] - 1) // 4]]
    is_outlier = distances > ratios * quartile
    others_first = is_outlier.byte().argsort(dim=1, stable=True)
    count = (~is_outlier).sum(dim=1, keepdim=True)
    first = (uniform.unsqueeze(1) * count).long()
    following = others_first.gather(1, (first + is_outlier.cumsum(dim=1) - 1) % count)
    own = torch.arange(distances.shape[1], device=distances.device)
    starts = torch.arange(len(distances), device=distances.device).unsqueeze(1) * distances.shape[1]
    return (starts + torch.where(is_outlier, following, own)).flatten()


def effective_share(log_weights: Tensor) -> Tensor:
    r"""The effective sample size over the number of particles, :math:`(\sum_i w_i)^2 / (N \sum_i w_i^2)`.

    Args:
        log_weights: Not normalised, with shape :math:`(N,)`.

    Returns:
        From :math:`1 / N` to 1, with shape :math:`()`.

    References:
        | Sequential Imputations and Bayesian Missing Data Problems (Kong et al., 1994)
        | https://doi.org/10.1080/01621459.1994.10476469
    """
    return 1 / (len(log_weights) * log_weights.softmax(dim=0).square().sum())


def systematic_ancestors(log_weights: Tensor, uniform: float) -> Tensor:
    r"""Draws ancestors so that particle i has :math:`\lfloor N w_i \rfloor` or :math:`\lceil N w_i \rceil` heirs.

    Args:
        log_weights: Not normalised, with shape :math:`(N,)`.
        uniform: One draw from :math:`[0, 1)`, which decides all of them.

    Returns:
        The ancestors' indices, rising, with shape :math:`(N,)`.

    References:
        | Monte Carlo Filter and Smoother for Non-Gaussian Nonlinear State Space Models (Kitagawa, 1996)
        | https://doi.org/10.2307/1390750
    """
    count = len(log_weights)
    edges = log_weights.cpu().double().softmax(dim=0).cumsum(dim=0)
    points = (torch.arange(count, dtype=edges.dtype) + uniform) / count
    # rounding may leave the last edge below the last point
    return torch.searchsorted(edges, points, right=True).clamp_max(count - 1).to(log_weights.device)
