r"""How many different things a set shows, and how much of a distribution it reaches."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["cell_coverage", "coverage", "expected_coverage", "precision", "vendi_score"]


def vendi_score(features: Tensor) -> Tensor:
    r"""Effective number of different particles: :math:`\exp(-\sum_i \lambda_i \log \lambda_i)`.

    :math:`\lambda_i` are the eigenvalues of the matrix of cosines over N. It is 1 if all particles are alike and N if all
    features are orthogonal.

    Args:
        features: With shape :math:`(N, D)`.

    References:
        | The Vendi Score: A Diversity Evaluation Metric for Machine Learning (Friedman & Dieng, 2023)
        | https://arxiv.org/abs/2210.02410
    """
    unit = normalize(features.cpu().double(), dim=1)
    shares = torch.linalg.eigvalsh(unit @ unit.T / len(unit)).clamp(min=0)
    return torch.special.entr(shares / shares.sum()).sum().exp()


def _radii(draws: Tensor, share: float) -> Tensor:
    """Distance of each draw to the nearest ones that make up a share of all others, with shape (M,)."""
    neighbours = max(1, round(share * (len(draws) - 1)))
    # the nearest of all is the draw itself
    return torch.cdist(draws, draws).kthvalue(neighbours + 1, dim=1).values


def coverage(features: Tensor, draws: Tensor, share: float = 0.125) -> Tensor:
    r"""Share of a distribution's draws that have a particle in their neighbourhood.

    The neighbourhood of a draw is the ball that holds a share of the other draws, so N exact particles have
    :func:`expected_coverage`; it does not depend on the features' scale.

    Args:
        features: Of the particles, with shape :math:`(N, D)`.
        draws: Features of draws from the distribution, with shape :math:`(M, D)`.
        share: Share of the other draws in a neighbourhood, in (0, 1).

    References:
        | Reliable Fidelity and Diversity Metrics for Generative Models (Naeem et al., 2020)
        | https://arxiv.org/abs/2002.09797
    """
    features, draws = features.cpu().double(), draws.cpu().double()
    return (torch.cdist(features, draws) <= _radii(draws, share)).any(dim=0).to(features).mean()


def expected_coverage(count: int, share: float = 0.125) -> float:
    r"""Coverage :math:`1 - (1 - p)^N` of N exact and independent particles, with the share :math:`p` of a neighbourhood."""
    return 1 - (1 - share) ** count


def precision(features: Tensor, draws: Tensor, share: float = 0.125) -> Tensor:
    """Mean over the particles of the share of neighbourhoods that they are in, over ``share``: 1 for exact particles.

    It is less where particles lie beside the distribution, and more where they keep to its middle. Arguments are those of
    :func:`coverage`.
    """
    features, draws = features.cpu().double(), draws.cpu().double()
    return (torch.cdist(features, draws) <= _radii(draws, share)).to(features).mean() / share


def cell_coverage(labels: Tensor, draws: Tensor) -> Tensor:
    """Probability of the combinations of labels that some particle has.

    Args:
        labels: Labels of the particles, with shape :math:`(N, L)`.
        draws: Labels of draws from the distribution, with shape :math:`(M, L)`.
    """
    return (draws[:, None] == labels[None]).all(dim=2).any(dim=1).float().mean()
