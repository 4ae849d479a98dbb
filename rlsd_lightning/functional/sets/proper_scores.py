r"""Proper scores and ranks: figures that no set can improve in expectation but by drawing from the right distribution.

The scores are the fair ones: with particles drawn from the truth's own distribution their expectation does not depend on the
number of particles, so sets of 4 and of 16 compare. In the mean over many truths, a set that is too narrow, too wide or off
its place has a higher score.

References:
    | Strictly Proper Scoring Rules, Prediction, and Estimation (Gneiting & Raftery, 2007)
    | https://doi.org/10.1198/016214506000001437
    | Fair Scores for Ensemble Forecasts (Ferro, 2014)
    | https://doi.org/10.1002/qj.2270
"""

import torch
from torch import Tensor

from rlsd_lightning.functional.losses import append_dims

__all__ = ["brier_score", "crps", "energy_score", "rank_band", "ranks"]


def crps(particles: Tensor, truth: Tensor) -> Tensor:
    r"""Fair continuous ranked probability score of each value.

    .. math:: \frac{1}{N} \sum_i |x_i - u| - \frac{1}{2 N (N - 1)} \sum_{i, j} |x_i - x_j|

    Args:
        particles: With shape :math:`(N, *)`, :math:`N \ge 2`.
        truth: With shape :math:`(1, *)`.

    Returns:
        In units of a value, with shape :math:`(*)`. Least in expectation, not for each truth: it may be negative.
    """
    count = len(particles)
    # sum_{i<j} |x_i - x_j| of sorted values is a weighted sum of them
    weights = 2 * torch.arange(count).to(particles) - count + 1
    between = (append_dims(weights, particles.ndim) * particles.sort(dim=0).values).sum(dim=0)
    return (particles - truth).abs().mean(dim=0) - between / (count * (count - 1))


def energy_score(particles: Tensor, truth: Tensor) -> Tensor:
    r"""Fair energy score of a set of vectors, the CRPS with Euclidean distances of whole vectors.

    .. math:: \frac{1}{N} \sum_i \|x_i - u\| - \frac{1}{2 N (N - 1)} \sum_{i, j} \|x_i - x_j\|

    Args:
        particles: With shape :math:`(N, *)`, :math:`N \ge 2`; each particle counts as one vector.
        truth: With shape :math:`(1, *)`.

    Returns:
        With shape :math:`()`.
    """
    count, points = len(particles), particles.flatten(1).cpu().double()
    to_truth = (points - truth.flatten(1).cpu().double()).norm(dim=1).mean()
    return (to_truth - torch.cdist(points, points).sum() / (2 * count * (count - 1))).to(particles)


def brier_score(labels: Tensor, truth: Tensor, values: int) -> Tensor:
    r"""Fair Brier score of shares of a label: the sum over its values of the CRPS of "has this value".

    With the shares :math:`p_k` of N particles and the truth's indicator :math:`o_k` it is
    :math:`\sum_k (p_k - o_k)^2 - p_k (1 - p_k) / (N - 1)`.

    Args:
        labels: Label of each particle, with shape :math:`(N,)`, :math:`N \ge 2`.
        truth: The truth's label, with shape :math:`(1,)`.
        values: Number of values of the label.

    Returns:
        With shape :math:`()`; 0 is right and certain, 2 wrong and certain.
    """
    one_hot = [torch.nn.functional.one_hot(each, values).cpu().double() for each in (labels, truth)]
    return crps(*one_hot).sum()


def ranks(particles: Tensor, truth: Tensor, seed: int = 0) -> Tensor:
    r"""Rank of the truth among the particles, for each value: how many particles are below it, equal ones by lot.

    If truth and particles are exchangeable, every rank from 0 to N is equally likely. A histogram with high ends belongs to
    sets that are too narrow, one with a high middle to sets that are too wide.

    Args:
        particles: With shape :math:`(N, *)`.
        truth: With shape :math:`(1, *)`.
        seed: Seed of the lots.

    Returns:
        Whole numbers from 0 to N, with shape :math:`(*)`.

    References:
        | Interpretation of Rank Histograms for Verifying Ensemble Forecasts (Hamill, 2001)
        | https://doi.org/10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2
    """
    below, equal = (particles < truth).sum(dim=0), (particles == truth).sum(dim=0)
    lots = torch.rand(equal.shape, generator=torch.Generator().manual_seed(seed)).to(equal.device)
    return below + (lots * (equal + 1)).long()


def rank_band(count: int, particles: int, level: float = 0.95, draws: int = 4000) -> tuple[float, float]:
    r"""Least and largest share of a rank's bin that a flat histogram has with a probability, over all bins together.

    Args:
        count: Number of independent ranks; values of one image are not independent, so count images.
        particles: The number N of particles, for N + 1 bins.
        level: The probability.
        draws: Histograms that are simulated, from a fixed seed.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(particles + 1, (draws, count), generator=generator)
    shares = torch.nn.functional.one_hot(drawn, particles + 1).float().mean(dim=1)
    tail = (1 - level) / 2
    return shares.amin(dim=1).quantile(tail).item(), shares.amax(dim=1).quantile(1 - tail).item()
