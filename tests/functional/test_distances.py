"""Distances of the benchmarks, against SciPy, POT and cases with a known value."""

import pytest
import torch

from benchmarks.distances import projected_wasserstein, random_directions, within_mode_spread


def points(count: int, size: int, seed: int) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("n", "m"), [(30, 30), (30, 47), (10, 40)])
def test_projected_distance_is_that_of_repeated_points(n: int, m: int, order: int):
    # repeated to n m points each, the two sets are matched one by one
    first, second = points(n, 3, 0), points(m, 3, 1) + 0.5
    directions = random_directions(3, 5, torch.Generator().manual_seed(2)).double()
    one, other = ((p @ directions).sort(dim=0).values for p in (first, second))
    gaps = (one.repeat_interleave(m, dim=0) - other.repeat_interleave(n, dim=0)).abs()
    expected = gaps.pow(order).mean(dim=0) ** (1 / order)
    torch.testing.assert_close(projected_wasserstein(first, second, directions, order), expected)


def test_projected_distance_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    first, second = points(20, 2, 0), points(33, 2, 1)
    directions = random_directions(2, 4, torch.Generator().manual_seed(2)).double()
    expected = [stats.wasserstein_distance((first @ d).numpy(), (second @ d).numpy()) for d in directions.T]
    torch.testing.assert_close(
        projected_wasserstein(first, second, directions, 1), torch.tensor(expected, dtype=torch.float64)
    )


def test_largest_projected_distance_is_that_of_pot():
    sliced = pytest.importorskip("ot.sliced")
    first, second = points(50, 4, 0), 2 * points(120, 4, 1)
    directions = random_directions(4, 30, torch.Generator().manual_seed(2)).double()
    expected = sliced.max_sliced_wasserstein_distance(
        first.numpy(), second.numpy(), projections=directions.numpy(), p=2
    )
    assert projected_wasserstein(first, second, directions).max().item() == pytest.approx(float(expected))


def test_projected_distance_of_a_shift_is_the_shift_along_the_direction():
    first, shift = points(40, 2, 0), torch.tensor([3.0, -4.0], dtype=torch.float64)
    directions = torch.tensor([[1.0, 0.6], [0.0, 0.8]], dtype=torch.float64)
    distances = projected_wasserstein(first, first + shift, directions)
    torch.testing.assert_close(distances, (shift @ directions).abs())


def test_directions_have_unit_length():
    torch.testing.assert_close(random_directions(5, 9).norm(dim=0), torch.ones(9))


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_spread_within_modes_is_relative_to_the_modes_own(scale: float):
    covariances = torch.stack([torch.diag(torch.tensor([4.0, 0.25])), torch.eye(2)]).double()
    modes = torch.tensor([0] * 4000 + [1] * 4000)
    stds = covariances.diagonal(dim1=1, dim2=2).sqrt()[modes]
    spread = within_mode_spread(100.0 * modes[:, None] + scale * stds * points(8000, 2, 0), modes, covariances)
    assert spread.item() == pytest.approx(scale, rel=0.02)


def test_single_particles_have_no_spread():
    assert within_mode_spread(torch.zeros(2, 2), torch.tensor([0, 1]), torch.eye(2).expand(2, 2, 2)).item() == 0
