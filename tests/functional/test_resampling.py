"""Weights and ancestors, and the reverse step they come with, against counts and Bayes' rule."""

import math

import pytest
import torch

from rlsd_lightning.functional.noise import keyed_uniform
from rlsd_lightning.functional.resampling import ancestors_of_outliers, effective_share, systematic_ancestors
from rlsd_lightning.functional.schedules import reverse_step

WEIGHTS = torch.tensor([0.5, 0.05, 0.25, 0.2])


def test_equal_weights_are_all_effective_and_one_that_has_all_is_one():
    assert effective_share(torch.full((7,), -1e4)).item() == pytest.approx(1)
    assert effective_share(torch.tensor([0.0, -1e4, -1e4, -1e4])).item() == pytest.approx(0.25)
    assert effective_share(WEIGHTS.log() + 50).item() == pytest.approx(1 / (4 * WEIGHTS.square().sum().item()))


@pytest.mark.parametrize("uniform", [0.01, 0.3, 0.999999])
def test_every_particle_has_its_whole_share_of_heirs_and_at_most_one_more(uniform: float):
    heirs = torch.bincount(systematic_ancestors(WEIGHTS.log(), uniform), minlength=4)
    assert heirs.sum() == 4
    assert ((heirs - 4 * WEIGHTS).abs() < 1).all()


def test_equal_weights_keep_every_particle():
    assert systematic_ancestors(torch.zeros(1000), 0.5).tolist() == list(range(1000))


def test_heirs_are_right_on_average():
    points = (torch.arange(1000) + 0.5) / 1000
    counts = sum(torch.bincount(systematic_ancestors(WEIGHTS.log(), u.item()), minlength=4) for u in points)
    torch.testing.assert_close(counts / 4000, WEIGHTS, atol=1e-3, rtol=0)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 0.999])
def test_outliers_descend_from_particles_of_their_set_that_are_none(uniform: float):
    distances = torch.tensor([[1.0, 1.1, 3.0, 2.0], [5.0, 5.5, 4.9, 5.2], [2.0, 9.0, 9.0, 9.0]])
    ancestors = ancestors_of_outliers(distances, 1.2, torch.full((3,), uniform)).view(3, 4)
    first = int(2 * uniform)
    assert ancestors[0].tolist() == [0, 1, first, 1 - first]  # one after the other
    assert ancestors[1].tolist() == [4, 5, 6, 7]
    assert ancestors[2].tolist() == [8] * 4


def test_a_single_lucky_particle_of_many_makes_no_outliers_of_the_others():
    distances = torch.tensor([[0.1, 9.0, 3.0, 3.1, 3.2, 3.3, 3.4, 9.0]])
    assert ancestors_of_outliers(distances, 1.2, torch.zeros(1)).tolist() == [0, 0, 2, 3, 4, 5, 6, 2]


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_outliers_are_the_same_in_any_unit(scale: float):
    distances = torch.tensor([[1.0, 1.19, 1.21, 4.0]])
    expected = ancestors_of_outliers(distances, 1.2, torch.zeros(1))
    assert expected.tolist() == [0, 1, 0, 1]
    assert torch.equal(ancestors_of_outliers(scale * distances, 1.2, torch.zeros(1)), expected)


@pytest.mark.parametrize("distances", [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [float("nan")] * 3])
def test_particles_that_cannot_be_told_apart_all_stay(distances: list[float]):
    ancestors = ancestors_of_outliers(torch.tensor([distances]), 1.2, torch.full((1,), 0.7))
    assert ancestors.tolist() == [0, 1, 2]


def test_shared_draws_are_uniform_and_keyed():
    draws = torch.tensor(
        [keyed_uniform(seed=1, measurement=2, stream="resample", step=step) for step in range(2000)],
        dtype=torch.float64,
    )
    assert draws.min() >= 0
    assert draws.max() < 1
    assert draws.mean().item() == pytest.approx(0.5, abs=5 / math.sqrt(12 * 2000))
    assert draws.var().item() == pytest.approx(1 / 12, abs=0.01)
    assert keyed_uniform(seed=1, measurement=2, stream="resample", step=3) == draws[3].item()
    assert keyed_uniform(seed=1, measurement=3, stream="resample", step=3) != draws[3].item()


def test_reverse_step_is_bayes_rule():
    # in information form: z_s given z_0 is known, and z_t is a measurement of it
    alpha, sigma, next_alpha, next_sigma = (torch.tensor(v, dtype=torch.float64) for v in (0.6, 0.8, 0.8, 0.6))
    ratio = alpha / next_alpha
    variance = 1 / (1 / next_sigma**2 + ratio**2 / (sigma**2 - ratio**2 * next_sigma**2))
    from_noisy = variance * ratio / (sigma**2 - ratio**2 * next_sigma**2)
    from_clean = variance * next_alpha / next_sigma**2
    torch.testing.assert_close(
        torch.stack(reverse_step(alpha, sigma, next_alpha, next_sigma)), torch.stack([from_noisy, from_clean, variance])
    )


def test_step_to_no_noise_is_the_clean_latent():
    one, half = torch.ones(()), torch.tensor(0.5)
    factors = reverse_step(half, torch.tensor(0.75).sqrt(), one, torch.zeros(()))
    torch.testing.assert_close(torch.stack(factors), torch.tensor([0.0, 1.0, 0.0]))


def test_a_reverse_step_between_two_levels_without_signal_stays_where_it_is():
    nothing, one = torch.zeros(()), torch.ones(())
    torch.testing.assert_close(torch.stack(reverse_step(nothing, one, nothing, one)), torch.tensor([1.0, 0.0, 0.0]))
