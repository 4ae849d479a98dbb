"""The noise of RLSD's loop: DDIM, DDPM and score distillation, steps that are skipped, and schedules of pure noise."""

import copy
import math
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from support.priors import SHAPE, FormulaPrior
from support.problems import back, denoised, distance_gradient, make, noisy, predicted
from support.processes import as_process
from support.steps import take_step
from torch import Tensor

from rlsd_lightning import StableDiffusionPrior
from rlsd_lightning.functional.schedules import reverse_step
from rlsd_lightning.operators import NullOperator, denoising

F64 = torch.float64
STEP = 3
FREE = {"gamma": 0.0, "refine_share": 0.0, "antithetic": False}
"""The loop without repulsion and without the refinement."""


@pytest.fixture
def scheduler(tiny_prior_folder: Path, prior: StableDiffusionPrior) -> DDIMScheduler:
    """Diffusers' own sampler of the prior's schedule."""
    options = {"clip_sample": False, "set_alpha_to_one": False, "timestep_spacing": "leading", "steps_offset": 1}
    made = DDIMScheduler.from_pretrained(tiny_prior_folder, subfolder="scheduler", **options)
    torch.testing.assert_close(made.alphas_cumprod.double(), prior.alphas.square(), rtol=1e-5, atol=1e-7)
    made.alphas_cumprod = prior.alphas.square()  # the same levels, without their rounding to float32
    return made


@pytest.mark.parametrize("num_steps", [10, 50])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_without_a_measurement_and_repulsion_it_is_ddim(
    eta: float, num_steps: int, prior: StableDiffusionPrior, scheduler: DDIMScheduler
):
    module = make(prior, operator=NullOperator, num_steps=num_steps, eta=eta, **FREE)
    scheduler.set_timesteps(num_steps)
    assert module.timesteps == scheduler.timesteps.tolist()
    sample = noisy(module, 0).detach()
    torch.testing.assert_close(sample, module.z.detach(), rtol=0, atol=1e-6)  # made in float32
    for step, t in enumerate(module.timesteps[:-1]):
        with torch.no_grad():
            output = predicted(module, sample, step)
        noise = module.noise(step) if eta else None
        sample = scheduler.step(output, t, sample, eta=eta, variance_noise=noise).prev_sample
        take_step(module, step)
        torch.testing.assert_close(noisy(module, step + 1).detach(), sample, rtol=1e-5, atol=1e-5)
    last = denoised(module, sample, num_steps - 1)
    take_step(module, num_steps - 1)
    torch.testing.assert_close(module.z.detach(), last.detach(), rtol=1e-5, atol=1e-5)


def test_the_default_share_is_the_ancestral_step(prior: StableDiffusionPrior):
    module = make(prior, operator=NullOperator, **FREE)
    z_t, clean = noisy(module, STEP), denoised(module, noisy(module, STEP), STEP)
    t, s = module.timesteps[STEP : STEP + 2]
    levels = [prior.alphas[t], prior.sigmas[t], prior.alphas[s], prior.sigmas[s]]
    from_noisy, from_clean, variance = reverse_step(*levels)
    take_step(module, STEP)
    found = noisy(module, STEP + 1) - from_noisy * z_t - from_clean * clean
    t_noise = found / variance.sqrt()
    # the fresh noise and what is left of the predicted noise: their sum has the mean and the variance of the posterior
    assert t_noise.std().item() == pytest.approx(1, abs=0.1)
    torch.testing.assert_close(t_noise.detach(), module.noise(STEP), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("eta", [math.inf, 1e9])
def test_with_fresh_noise_a_step_is_score_distillation(eta: float, prior: StableDiffusionPrior):
    module = make(prior, gamma=0.0, eta=eta)
    before = copy.deepcopy(module)
    seen = take_step(module, STEP)
    alpha, sigma = (level[module.timesteps[STEP]] for level in (prior.alphas, prior.sigmas))
    z_t = noisy(before, STEP)
    clean = denoised(before, z_t, STEP)
    image = prior.decode(clean)
    scale = prior.calibration.latent_std**2 * 0.467 / prior.calibration.image_std
    zeta = 100 / 20 * (clean[0].numel() / 1024) / (image[0].numel() / 12288) ** 0.5 * scale
    pull = zeta * back(z_t, (image, distance_gradient(before, image, module.x.detach())))
    residual = (sigma / alpha) * (predicted(before, z_t, STEP) - before.e)
    expected = residual + pull / prior.alphas[module.timesteps[STEP + 1]]
    torch.testing.assert_close(seen, expected.detach(), rtol=1e-6, atol=1e-9)
    assert torch.equal(module.e, module.noise(STEP))


def test_without_fresh_noise_the_seed_does_not_matter_after_the_start(prior: StableDiffusionPrior):
    one, other = (make(prior, eta=0.0, seed=seed) for seed in (0, 1))
    for name in ("z", "x", "e"):
        other.state_dict()[name].copy_(one.state_dict()[name])
    for step in range(3):
        assert torch.equal(take_step(one, step), take_step(other, step))


@pytest.mark.parametrize("eta", [0.0, 1.0, math.inf])
def test_a_step_that_the_optimizer_skips_leaves_latents_and_noise(eta: float, prior: StableDiffusionPrior):
    module = make(prior, eta=eta)
    z, e = module.z.detach().clone(), module.e.clone()
    take_step(module, STEP, skip=True)
    assert torch.equal(module.z, z)
    assert torch.equal(module.e, e)
    take_step(module, STEP)
    assert not torch.isclose(module.z, z).any()
    assert not torch.isclose(module.e, e).all()


# Schedules that begin with pure noise

SCHEDULES = {
    "one level of pure noise": torch.linspace(1, 0, 41, dtype=F64)[1:],
    "several levels of pure noise": torch.linspace(1, -0.2, 41, dtype=F64)[1:].clamp(min=0),
}
PREDICTIONS = pytest.mark.parametrize("kind", ["v_prediction", "sample", "flow"])


@PREDICTIONS
def test_the_first_step_from_pure_noise_is_the_networks_own_prediction(kind: str):
    prior = FormulaPrior(SCHEDULES["one level of pure noise"], kind)
    module = make(prior, operator=NullOperator, num_steps=40, **FREE)
    t = module.timesteps[0]
    assert (prior.alphas[t], prior.sigmas[t]) == (0, 1)
    z_t, z = noisy(module, 0).detach(), module.z.detach().clone()
    torch.testing.assert_close(z_t, z)
    output = prior.network(z_t, t)
    clean = {"v_prediction": -output, "sample": output, "flow": z_t - output}[kind]
    torch.testing.assert_close(take_step(module), z - clean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(module.z.detach(), clean, rtol=1e-12, atol=1e-12)


@PREDICTIONS
def test_from_pure_noise_the_noise_is_drawn_anew(kind: str):
    module = make(FormulaPrior(SCHEDULES["one level of pure noise"], kind), operator=NullOperator, num_steps=40, **FREE)
    take_step(module)
    # z_t says nothing of the clean latent: the next one is that and independent noise
    torch.testing.assert_close(module.e, module.noise(0), rtol=1e-12, atol=1e-12)


@PREDICTIONS
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("eta", [0.0, 1.0, math.inf])
def test_a_loop_from_pure_noise_stays_finite_and_does_not_pull_where_no_signal_is(name: str, eta: float, kind: str):
    prior = FormulaPrior(SCHEDULES[name], kind)
    settings = {"gamma": 0.5, "num_steps": 40, "refine_share": 0.0, "eta": eta}
    module = make(prior, operator=denoising, **settings)
    without = 0
    for step, t in enumerate(module.timesteps):
        z, clean = module.z.detach().clone(), prior.denoise(noisy(module, step).detach(), t)[0]
        seen = take_step(module, step)
        for value in module.state_dict().values():
            assert value.isfinite().all()
        last = step + 1 == 40
        if last or prior.alphas[module.timesteps[step + 1]] == 0:
            without += not last
            torch.testing.assert_close(seen, z - clean, rtol=1e-12, atol=1e-12)
        else:
            assert not torch.allclose(seen, z - clean)
    assert without == max(0, int((SCHEDULES[name] == 0).sum()) - 1)
    assert math.isfinite(module.repulsion_ratio())


@PREDICTIONS
def test_between_two_levels_of_pure_noise_the_noise_stays(kind: str):
    module = make(FormulaPrior(SCHEDULES["several levels of pure noise"], kind), operator=denoising, num_steps=40)
    before = noisy(module, 0).detach()
    take_step(module, 0)
    torch.testing.assert_close(noisy(module, 1).detach(), before, rtol=1e-12, atol=1e-12)
    assert before.shape[1:] == SHAPE


# Antithetic noise


def draws_of(module) -> Tensor:
    return torch.stack([noisy(module, 0).detach(), *(module.noise(step) for step in range(19))]).transpose(0, 1)


@pytest.mark.parametrize("count", [2, 5])
def test_antithetic_noise_sums_to_zero_and_is_standard_normal_for_each_particle(
    count: int, prior: StableDiffusionPrior
):
    draws = draws_of(make(prior, num_particles=count, antithetic=True)).flatten(1)
    assert torch.allclose(draws.sum(dim=0), torch.zeros((), dtype=F64), atol=1e-5)
    correlations = torch.corrcoef(draws)
    others = correlations[~torch.eye(count, dtype=torch.bool)]
    values = draws.shape[1]
    assert torch.allclose(others, torch.tensor(-1 / (count - 1), dtype=F64), atol=4 / values**0.5)
    assert torch.allclose(draws.var(dim=1), torch.ones((), dtype=F64), atol=4 * (2 / values) ** 0.5)
    assert draws.mean(dim=1).abs().max() < 4 / values**0.5


def test_a_lone_particle_has_its_own_noise_antithetic_or_not(prior: StableDiffusionPrior):
    one, other = (make(prior, num_particles=1, antithetic=kind) for kind in (True, False))
    assert torch.equal(one.noise(STEP), other.noise(STEP))
    assert torch.equal(one.z, other.z)
    assert torch.equal(one.e, other.e)


def test_antithetic_noise_is_the_same_for_a_process_with_some_of_the_particles(prior: StableDiffusionPrior):
    module = make(prior, num_particles=3, antithetic=True)
    expected = module.noise(STEP)
    rows = as_process(module, 1, 2).rows
    assert 0 < rows.stop - rows.start < 3
    assert torch.equal(module.noise(STEP), expected[rows])
