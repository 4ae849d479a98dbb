"""LATINO: a step against its formula, what it costs, and its answer where it is known."""

from unittest import mock

import pytest
import torch
from deepinv.physics import GaussianNoise, Inpainting
from support.problems import make
from support.steps import take_step

from rlsd_lightning import LATINO, GaussianMixturePrior, InputError, LatentFeatures, Measurement, solve
from rlsd_lightning.operators.proximal import proximal_step

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def test_a_step_is_its_formula(prior):
    module = make(prior, method=LATINO, num_steps=4, num_particles=2)
    t, s = module.timesteps[:2]
    z_t, measurement = module.z_t.clone(), module.measurements[0]
    with torch.no_grad():
        decoded = prior.decode(prior.denoise(z_t, t)[0])
        share = prior.sigma(t) ** 2 / (prior.alpha(t) ** 2 + prior.sigma(t) ** 2)
        mu = module.proximal.mu(measurement, 0.5**2 * share.item() + 0.08**2)
        z = prior.encode(proximal_step(measurement.physics, measurement.y, decoded, mu))
    take_step(module)
    torch.testing.assert_close(module.z.detach(), z, rtol=0, atol=1e-6)
    torch.testing.assert_close(module.z_t, prior.alpha(s) * z + prior.sigma(s) * module.noise(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("data_steps", [2, 3])
def test_further_data_steps_move_latents_by_the_encoded_difference(data_steps: int, prior):
    once, often = (make(prior, method=LATINO, num_steps=4, data_steps=count) for count in (1, data_steps))
    take_step(once)
    z, variance = once.z.detach(), once.image_variances[once.timesteps[0]]
    with torch.no_grad():
        for _ in range(data_steps - 1):
            decoded = prior.decode(z)
            z = z + prior.encode(once.solve_images(decoded, variance)) - prior.encode(decoded)
    take_step(often)
    assert not torch.allclose(z, once.z, atol=1e-3)
    torch.testing.assert_close(often.z.detach(), z, rtol=0, atol=1e-5)


def test_steps_start_at_pure_noise_and_end_without(prior):
    module = make(prior, method=LATINO, num_steps=4)
    assert module.timesteps == [999, 749, 499, 249]
    before = module.z_t.clone()
    take_step(module, 3)
    assert module.z_t.equal(before)


def test_networks_are_called_once_a_step_without_a_backward_pass(prior):
    module = make(prior, method=LATINO, num_steps=4)
    counted = {
        name: mock.patch.object(prior, name, wraps=getattr(prior, name)) for name in ("denoise", "decode", "encode")
    }
    calls = {name: each.start() for name, each in counted.items()}
    try:
        gradient = take_step(module)
    finally:
        mock.patch.stopall()
    assert {name: call.call_count for name, call in calls.items()} == dict.fromkeys(calls, 1)
    assert not any(call.call_args.args[0].requires_grad for call in calls.values())
    assert gradient.isfinite().all()


@pytest.mark.parametrize("num_steps", [1, 4, 16])
def test_what_is_measured_well_is_reproduced_and_the_rest_is_the_priors(num_steps: int):
    # one Gaussian whose coordinates are independent; its denoiser is a consistency model as its deviation goes to zero
    prior = GaussianMixturePrior([[0.3, -0.6]], std=0.02)
    physics = Inpainting((2,), mask=torch.tensor([1.0, 0.0]), noise_model=GaussianNoise(sigma=0.001))
    y = torch.tensor([[0.33, 0.0]])
    drawn = solve(y, physics, prior, method=LATINO, num_steps=num_steps, num_particles=64, trainer=QUIET).particles
    torch.testing.assert_close(drawn[:, 0], torch.full((64,), 0.33), rtol=0, atol=2e-3)
    torch.testing.assert_close(drawn[:, 1], torch.full((64,), -0.6), rtol=0, atol=0.05)


def test_settings_out_of_range_are_refused(prior):
    measurement = Measurement("m", torch.zeros(1, *prior.image_shape), Inpainting(prior.image_shape, mask=0.5))
    with pytest.raises(InputError, match=r"^image_std must be above 0, got 0"):
        LATINO(prior, measurement, LatentFeatures(), image_std=0.0)
    with pytest.raises(InputError, match=r"^data_steps must be at least 1, got 0"):
        LATINO(prior, measurement, LatentFeatures(), data_steps=0)
