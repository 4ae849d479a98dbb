"""Representatives by distances: the best there are, in the right order, whatever the points."""

from itertools import combinations

import pytest
import torch
from torch import Tensor

from rlsd_lightning.functional.sets.clustering import k_medoids


def distances(points: Tensor) -> Tensor:
    return torch.cdist(points.double(), points.double()).square()


def drawn(count: int, seed: int) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("count", "k"), [(9, 1), (9, 3), (12, 4)])
def test_their_cost_is_that_of_the_best_choice_or_near(count: int, k: int, seed: int):
    between = distances(drawn(count, seed))
    chosen, _ = k_medoids(between, k)
    best = min(between[list(choice)].amin(dim=0).sum() for choice in combinations(range(count), k))
    cost = between[chosen].amin(dim=0).sum()
    assert best * (1 - 1e-9) <= cost <= best * (1.05 if k > 1 else 1 + 1e-9)
    # no exchange of one is better
    for place in range(k):
        for point in range(count):
            other = chosen.clone()
            other[place] = point
            assert between[other].amin(dim=0).sum() >= cost * (1 - 1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_groups_far_apart_have_one_each_the_largest_first(seed: int):
    sizes = [2, 7, 4]
    centres = torch.tensor([[0.0] * 5, [100.0] * 5, [0.0, 100.0, 0.0, 100.0, 0.0]])
    group = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    order = torch.randperm(13, generator=torch.Generator().manual_seed(seed))
    points = (drawn(13, seed) + centres[group])[order]
    chosen, nearest = k_medoids(distances(points), 3)
    assert group[order][chosen].tolist() == [1, 2, 0]
    assert torch.equal(group[order][chosen[nearest]], group[order])


@pytest.mark.parametrize("k", [1, 3, 6])
def test_of_equal_points_each_is_chosen_once(k: int):
    chosen, nearest = k_medoids(torch.zeros(6, 6), k)
    assert len(set(chosen.tolist())) == k
    assert nearest.bincount(minlength=k).tolist() == [6 - k + 1, *[1] * (k - 1)]


def test_all_points_stand_for_themselves():
    chosen, nearest = k_medoids(distances(drawn(5, 0)), 5)
    assert sorted(chosen.tolist()) == list(range(5))
    assert torch.equal(chosen[nearest], torch.arange(5))
