"""Figures about particles, against torchmetrics and against cases with a known value."""

import pytest
import torch
from torch.nn.functional import cosine_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio

from rlsd_lightning.functional.metrics import (
    diversity,
    mode_total_variation,
    projected_wasserstein,
    psnr,
    random_directions,
    residual_rms,
    within_mode_spread,
)


def test_psnr_of_each_image_is_that_of_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    truth = 2 * torch.rand(1, 3, 8, 8, generator=generator) - 1
    noise = torch.randn(4, 3, 8, 8, generator=generator)
    images = truth + torch.tensor([0.01, 0.1, 1.0, 3.0]).view(-1, 1, 1, 1) * noise  # the last are far out of range
    # one at a time: torchmetrics averages the error over a batch
    expected = torch.stack([peak_signal_noise_ratio(image[None], truth, data_range=(-1.0, 1.0)) for image in images])
    torch.testing.assert_close(psnr(images, truth), expected)


def test_psnr_of_black_against_white_is_zero():
    assert psnr(-torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2)).item() == 0


def test_identical_features_have_no_diversity():
    features = torch.tensor([[1.0, 2.0, -3.0]]).expand(4, -1)
    assert diversity(features).item() == pytest.approx(0, abs=1e-6)


def test_scale_of_features_does_not_count_as_diversity():
    assert diversity(torch.tensor([[1.0, 2.0], [10.0, 20.0]])).item() == pytest.approx(0, abs=1e-6)


def test_orthogonal_features_have_diversity_one():
    assert diversity(torch.eye(5)).item() == pytest.approx(1, abs=1e-6)


def test_opposite_features_have_diversity_two():
    assert diversity(torch.tensor([[1.0, 2.0], [-1.0, -2.0]])).item() == pytest.approx(2, abs=1e-6)


def test_one_particle_has_no_diversity():
    assert diversity(torch.ones(1, 3)).item() == 0


def test_diversity_is_one_minus_the_mean_cosine_of_pairs():
    features = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    cosines = [cosine_similarity(features[i], features[j], dim=0) for i in range(5) for j in range(i)]
    torch.testing.assert_close(diversity(features), 1 - torch.stack(cosines).mean())


def test_residual_rms_is_in_units_of_the_measurement():
    y = torch.zeros(1, 2)
    measured = torch.tensor([[3.0, -3.0], [3.0, 3.0]])
    assert residual_rms(measured, y).item() == 3


@pytest.mark.parametrize(
    ("assignments", "weights", "expected"),
    [
        ([0, 1, 2, 3, 4], [0.2] * 5, 0.0),
        ([2] * 10, [0.2] * 5, 0.8),  # all in one of five
        ([0] * 3 + [1], [0.5, 0.5], 0.25),
        ([1, 1], [1.0, 0.0], 1.0),  # all where nothing is
        ([0], [0.25, 0.25, 0.5], 0.75),  # the last modes are counted though nobody is there
    ],
)
def test_total_variation_of_known_shares(assignments: list, weights: list, expected: float):
    value = mode_total_variation(torch.tensor(assignments), torch.tensor(weights))
    assert value.item() == pytest.approx(expected, abs=1e-6)


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
