"""Timesteps and prediction types against diffusers and against their definitions."""

from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler

from rlsd_lightning.functional.schedules import (
    PREDICTION_TYPES,
    add_noise,
    clean_and_noise,
    cosine_decay,
    ddim_timesteps,
    fresh_noise_share,
    prior_weight,
    reverse_step,
)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("num_steps", [4, 50, 200, 500])
def test_timesteps_are_those_of_diffusers_where_its_stride_is_exact(num_steps: int, spacing: str):
    scheduler = DDIMScheduler(num_train_timesteps=1000, timestep_spacing=spacing, steps_offset=1)
    scheduler.set_timesteps(num_steps)
    assert ddim_timesteps(1000, num_steps, spacing=spacing) == scheduler.timesteps.tolist()


def test_an_unknown_spacing_is_refused():
    with pytest.raises(ValueError, match=r"^spacing must be leading or trailing, got 'linspace'"):
        ddim_timesteps(1000, 4, spacing="linspace")


@pytest.mark.parametrize("num_steps", [1, 3, 999])
def test_timesteps_fall_and_stay_in_the_schedule(num_steps: int):
    steps = ddim_timesteps(1000, num_steps)
    assert len(steps) == num_steps
    assert all(a > b for a, b in pairwise(steps))
    assert 0 <= steps[-1] <= steps[0] <= 999


@pytest.mark.parametrize("num_steps", [7, 300, 334, 400, 501, 600, 700, 998])
def test_timesteps_cover_the_schedule_evenly(num_steps: int):
    steps = ddim_timesteps(1000, num_steps)
    assert steps[0] > 1000 - 2 * 1000 / num_steps
    gaps = [a - b for a, b in pairwise(steps)]
    assert max(gaps) - min(gaps) <= 1


def test_as_many_steps_as_the_schedule_has_never_leave_it():
    # diffusers would ask the network for timestep 1000 of 0 ... 999
    assert max(ddim_timesteps(1000, 1000)) == 999


def test_offset_zero_ends_at_the_least_noise():
    assert ddim_timesteps(1000, 10, offset=0) == list(range(900, -1, -100))


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_number_of_steps_out_of_range_is_refused(num_steps: int):
    with pytest.raises(ValueError, match=rf"1 to 1000.*got {num_steps}"):
        ddim_timesteps(1000, num_steps)


@pytest.mark.parametrize("abar", [0.999, 0.5, 0.005])
@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_every_prediction_type_gives_back_the_latents_and_the_noise_that_was_added(kind: str, abar: float):
    generator = torch.Generator().manual_seed(0)
    z, eps = torch.randn(2, 3, 4, 4, 4, generator=generator, dtype=torch.float64)
    abar = torch.tensor(abar, dtype=torch.float64)
    alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
    z_t = add_noise(z, eps, alpha, sigma)
    output = {"epsilon": eps, "v_prediction": alpha * eps - sigma * z, "sample": z, "flow": eps - z}[kind]
    for found, expected in zip(clean_and_noise(output, z_t, alpha, sigma, kind), (z, eps), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_noise_is_added_as_diffusers_adds_it():
    generator = torch.Generator().manual_seed(0)
    z, eps = torch.randn(2, 3, 4, 4, 4, generator=generator)
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    abar = scheduler.alphas_cumprod[500]
    expected = scheduler.add_noise(z, eps, torch.full((3,), 500))
    torch.testing.assert_close(add_noise(z, eps, abar.sqrt(), (1 - abar).sqrt()), expected)


def test_unknown_prediction_type_is_refused_by_name():
    one = torch.ones(())
    with pytest.raises(ValueError, match="'score'"):
        clean_and_noise(one, one, one, one, "score")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("linear", 0.75), ("sqrt", 0.75**0.5), ("log", 0.5596157879354227), ("square", 0.5625), ("const", 1.0)],
)
def test_weight_at_a_ratio_of_three_quarters(kind: str, expected: float):
    alpha, sigma = torch.tensor([0.8, 0.6], dtype=torch.float64)
    assert prior_weight(alpha, sigma, kind).item() == pytest.approx(expected, rel=1e-12)


def test_weight_is_linear_unless_told():
    alpha, sigma = torch.tensor([0.8, 0.6])
    assert prior_weight(alpha, sigma) == prior_weight(alpha, sigma, "linear")


def test_unknown_weight_is_refused_by_name():
    with pytest.raises(ValueError, match="'cubic'"):
        prior_weight(torch.ones(()), torch.ones(()), "cubic")


def test_noise_follows_from_a_velocity_on_the_straight_path_of_flow_matching():
    z, eps = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor(0.7, dtype=torch.float64)
    z_t = add_noise(z, eps, 1 - sigma, sigma)
    clean, noise = clean_and_noise(eps - z, z_t, 1 - sigma, sigma, "flow")
    torch.testing.assert_close(clean, z)
    torch.testing.assert_close(noise, eps)


def test_weight_is_finite_where_nothing_is_left_of_the_signal():
    alpha, sigma = torch.tensor([0.0, 1.0])
    assert prior_weight(alpha, sigma).item() == pytest.approx(1 / 0.03)


def test_from_pure_noise_the_clean_latents_are_the_networks_own_and_the_noise_is_all():
    z_t, output = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha, sigma = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for kind, clean in (("v_prediction", -output), ("sample", output), ("flow", z_t - output)):
        found, noise = clean_and_noise(output, z_t, alpha, sigma, kind)
        assert torch.equal(found, clean)
        assert torch.equal(noise, z_t)


LEVELS = [(0.03, 0.9), (0.5, 0.6), (0.0, 0.7), (0.99, 0.999)]


@pytest.mark.parametrize(("alpha", "next_alpha"), LEVELS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_the_share_of_fresh_noise_is_that_of_ddim(eta: float, alpha: float, next_alpha: float):
    of, to = alpha**2, next_alpha**2
    levels = torch.tensor([of, 1 - of, to, 1 - to], dtype=torch.float64).sqrt()
    share = fresh_noise_share(*levels, eta)
    # Eq. 16 of DDIM is the deviation of z_s, of which the noise level is 1 - alpha_s^2
    expected = eta * ((1 - to) / (1 - of) * (1 - of / to) / (1 - to)) ** 0.5
    assert share.item() == pytest.approx(expected, rel=1e-9)
    if eta == 1:
        assert (share * levels[3]).square().item() == pytest.approx(reverse_step(*levels)[2].item(), rel=1e-9)


@pytest.mark.parametrize(("alpha", "next_alpha"), LEVELS)
def test_infinite_eta_draws_all_noise_anew_and_never_more_than_all(alpha: float, next_alpha: float):
    levels = torch.tensor([alpha**2, 1 - alpha**2, next_alpha**2, 1 - next_alpha**2]).sqrt()
    assert fresh_noise_share(*levels, float("inf")) == fresh_noise_share(*levels, 100.0) == 1


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("eta", [0.0, 1.0, float("inf")])
def test_between_two_steps_of_one_level_no_noise_is_drawn(eta: float, alpha: float):
    levels = torch.tensor([alpha**2, 1 - alpha**2]).sqrt()
    assert fresh_noise_share(*levels, *levels, eta) == 0


def test_the_cosine_falls_from_one_to_zero():
    assert [cosine_decay(step, 4) for step in range(5)] == pytest.approx(
        [1, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5, 0]
    )


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_few_steps_start_where_particles_are_pure_noise(num_steps: int):
    steps = ddim_timesteps(1000, num_steps)
    assert len(steps) == num_steps
    assert steps[0] == 999
    assert steps == sorted(set(steps), reverse=True)
