"""Representatives of a set of points by their distances alone."""

import torch
from torch import Tensor

__all__ = ["k_medoids"]


def k_medoids(distances: Tensor, k: int) -> tuple[Tensor, Tensor]:
    r"""The :math:`k` points with the least sum of distances from all points to the nearest of them.

    Greedy choice of one point after another, then the best exchange of a chosen and another point until none helps.
    No random numbers are drawn, so the same points have the same representatives.

    Args:
        distances: Distances of every two points, with shape :math:`(N, N)`.
        k: The number of representatives, from 1 to :math:`N`.

    Returns:
        Indices of the representatives with shape :math:`(k,)`, those of most points first; and the place in these of
        each point's nearest one, with shape :math:`(N,)`.

    References:
        | Finding Groups in Data (Kaufman and Rousseeuw, 1990), chapter 2
    """
    distances = distances.cpu().double()
    nearest = torch.full_like(distances[0], torch.inf)
    chosen: list[int] = []
    for _ in range(k):
        costs = torch.minimum(distances, nearest).sum(dim=1)
        costs[chosen] = torch.inf
        chosen.append(int(costs.argmin()))
        nearest = torch.minimum(nearest, distances[chosen[-1]])
    medoids = torch.tensor(chosen)
    cost = nearest.sum()
    while True:
        # what each point's nearest is without one of the chosen, (k, N), and with another in its place, (k, N, N)
        others = [distances[torch.cat([medoids[:i], medoids[i + 1 :]])] for i in range(k)]
        without = torch.stack([each.amin(dim=0) if k > 1 else torch.full_like(nearest, torch.inf) for each in others])
        exchanged = torch.minimum(without[:, None], distances[None]).sum(dim=-1)
        if not exchanged.min() < cost * (1 - 1e-12):
            break
        place, point = divmod(int(exchanged.argmin()), len(distances))
        medoids[place], cost = point, exchanged.min()
    labels = distances[medoids].argmin(dim=0)
    labels[medoids] = torch.arange(k)  # of equal points, each chosen one stands for itself
    order = labels.bincount(minlength=k).argsort(descending=True, stable=True)
    return medoids[order], order.argsort()[labels]
