"""Proper scores and ranks, against closed forms."""

import math

import pytest
import torch
from torchmetrics.functional.regression import continuous_ranked_probability_score

from rlsd_lightning.functional.sets.proper_scores import brier_score, crps, energy_score, rank_band, ranks


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_crps_of_equal_particles_is_the_distance():
    assert crps(torch.full((4, 2), 3.0), torch.tensor([[1.0, 3.0]])).tolist() == [2.0, 0.0]


@pytest.mark.parametrize("truth", [-1.5, 0.0, 0.7])
def test_crps_of_a_gaussian_sample_is_the_closed_form(truth: float):
    # (Gneiting & Raftery, 2007, Eq. 21): u (2 Phi(u) - 1) + 2 phi(u) - 1 / sqrt(pi)
    normal = torch.distributions.Normal(0.0, 1.0)
    value = torch.tensor(truth)
    density = normal.log_prob(value).exp()
    exact = value * (2 * normal.cdf(value) - 1) + 2 * density - 1 / math.sqrt(math.pi)
    sample = torch.randn(4, 200_000, generator=generator(), dtype=torch.double)
    assert crps(sample, torch.full((1, 1), truth)).mean().item() == pytest.approx(exact.item(), abs=0.005)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_crps_differs_from_torchmetrics_in_the_fair_factor_only(count: int):
    particles, truth = torch.randn(count, 5, generator=generator()), torch.randn(1, 5, generator=generator(1))
    distance = (particles - truth).abs().mean(dim=0)
    biased = torch.stack([continuous_ranked_probability_score(particles[:, [i]].T, truth[:, i]) for i in range(5)])
    fair = distance - (distance - biased) * count / (count - 1)
    torch.testing.assert_close(crps(particles, truth), fair)


@pytest.mark.parametrize("wrong", [0.3, 3.0])
def test_scores_prefer_the_right_spread(wrong: float):
    truth, draws = torch.randn(1, 3000, 6, generator=generator(1)), torch.randn(4, 3000, 6, generator=generator())
    assert crps(draws, truth).mean() < crps(wrong * draws, truth).mean() - 0.02
    energies = [torch.stack([energy_score(s * draws[:, i], truth[:, i]) for i in range(300)]) for s in (1, wrong)]
    assert energies[0].mean() < energies[1].mean() - 0.05


@pytest.mark.parametrize("count", [4, 16])
def test_fair_scores_do_not_depend_on_the_number_of_particles(count: int):
    truth, draws = (torch.randn(n, 100_000, generator=generator(n), dtype=torch.double) for n in (1, count))
    # both are draws of N(0, 1): E|x - u| / 2 = 1 / sqrt(pi)
    assert crps(draws, truth).mean().item() == pytest.approx(1 / math.sqrt(math.pi), abs=0.01)


def test_energy_score_of_a_point_mass_is_its_distance():
    assert energy_score(torch.zeros(3, 1, 2), torch.tensor([[[3.0, 4.0]]])).item() == pytest.approx(5)


def test_energy_score_of_two_points_about_the_truth():
    # distances to the truth 1 and 1, between them 2: 1 - (2 * 2) / (2 * 2 * 1)
    assert energy_score(torch.tensor([[1.0], [-1.0]]), torch.zeros(1, 1)).item() == pytest.approx(0)


def test_energy_score_in_one_dimension_is_the_crps():
    particles, truth = torch.randn(5, 1, generator=generator()), torch.randn(1, 1, generator=generator(1))
    torch.testing.assert_close(energy_score(particles, truth), crps(particles, truth)[0])


def test_brier_score_of_certain_sets():
    assert brier_score(torch.tensor([1, 1, 1]), torch.tensor([1]), 3).item() == 0
    assert brier_score(torch.tensor([1, 1, 1]), torch.tensor([0]), 3).item() == 2


def test_brier_score_of_exact_sets_is_one_minus_the_sum_of_squares():
    shares = torch.tensor([0.5, 0.3, 0.2])
    labels = torch.multinomial(shares.expand(20_000, -1), 5, replacement=True, generator=generator())
    scores = [brier_score(each[:4], each[4:], 3) for each in labels]
    assert torch.stack(scores).mean().item() == pytest.approx(1 - shares.square().sum().item(), abs=0.02)


def test_ranks_count_the_particles_below():
    particles = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    assert ranks(particles, torch.tensor([[-1.0, 1.5]])).tolist() == [0, 2]


def test_ranks_of_equal_values_are_drawn_by_lot():
    counts = ranks(torch.zeros(3, 40_000), torch.zeros(1, 40_000)).bincount(minlength=4) / 40_000
    torch.testing.assert_close(counts, torch.full((4,), 0.25), atol=0.01, rtol=0)


@pytest.mark.parametrize(("scale", "inside"), [(1.0, True), (0.5, False), (2.0, False)])
def test_rank_histograms_are_flat_for_exact_sets_only(scale: float, inside: bool):
    truth, draws = torch.randn(1, 2000, generator=generator(1)), scale * torch.randn(4, 2000, generator=generator())
    shares = ranks(draws, truth).bincount(minlength=5) / 2000
    low, high = rank_band(2000, 4)
    assert (low <= shares.min().item() and shares.max().item() <= high) is inside


def test_a_band_holds_the_level_of_flat_histograms():
    low, high = rank_band(64, 4)
    drawn = torch.randint(5, (2000, 64), generator=generator(7))
    shares = torch.nn.functional.one_hot(drawn, 5).double().mean(dim=1)
    inside = ((shares.amin(dim=1) >= low) & (shares.amax(dim=1) <= high)).double().mean().item()
    assert 0.93 <= inside <= 0.985  # the two ends overlap, and shares are multiples of 1 / 64
