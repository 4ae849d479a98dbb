"""Baselines on Gaussians and mixtures, where the posterior is known."""

import pytest
import torch
from deepinv.physics import GaussianNoise, Inpainting, LaplaceNoise
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from benchmarks.distances import within_mode_spread
from rlsd_lightning import (
    DWGF,
    Distilled,
    GaussianMixturePrior,
    InputError,
    LatentDAPS,
    LatentDPS,
    LatentFeatures,
    Measurement,
    solve,
)
from rlsd_lightning.functional.metrics import mode_total_variation
from rlsd_lightning.functional.schedules import guidance_factor
from rlsd_lightning.methods.baselines.dwgf import mixture_mean
from rlsd_lightning.operators import inpainting, nonlinear_blur
from rlsd_lightning.results.density import exact_posterior

pytestmark = pytest.mark.usefixtures("noise_in_one_draw")

EXACT = {"decoder_std": 0.0, "num_steps": 200, "num_particles": 1000}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def seen(value: float, noise_std: float) -> Measurement:
    """Of a point in the plane, the first coordinate."""
    physics = Inpainting((2,), mask=torch.tensor([1.0, 0.0]), noise_model=GaussianNoise(sigma=noise_std))
    return Measurement("seen", torch.tensor([[value, 0.0]]), physics)


def test_the_mean_of_a_lone_particle_is_itself_in_mixed_precision() -> None:
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean = mixture_mean(z, z, torch.tensor(1.0), torch.tensor(0.01))
    assert mean.equal(z)


def draws(method: type, prior: GaussianMixturePrior, measurement: Measurement, **settings) -> Tensor:
    settings = {**EXACT, **settings}
    return solve(measurement.y, measurement.physics, prior, method=method, trainer=QUIET, **settings).particles


def mixture() -> GaussianMixturePrior:
    return GaussianMixturePrior([[-2.0, 2.0], [2.0, 0.0], [0.0, -2.0]], std=0.3, weights=[0.2, 0.3, 0.5])


def test_unguided_dps_draws_from_the_prior():
    prior = mixture()
    # ancestral steps are too narrow, by 8 % of the deviation in 200, and by less in 500
    points = draws(LatentDPS, prior, seen(0.0, 0.1), guidance_scale=0.0, num_steps=500)
    modes = prior.mixture.assign(points)
    # 1,000 draws are 0.02 off on average
    assert mode_total_variation(modes, prior.mixture.weights) < 0.06
    assert within_mode_spread(points, modes, prior.mixture.covariances).item() == pytest.approx(1, abs=0.08)


def test_dps_goes_to_the_measurement():
    far, near = (
        draws(LatentDPS, mixture(), seen(0.0, 0.1), guidance_scale=scale)[:, 0].square().mean() for scale in (0.0, 0.5)
    )
    assert near < 0.1 * far


def test_gluing_is_more_guidance_where_latents_are_images_and_the_operator_a_mask():
    # there |z - P z| is |y - A z|
    settings = {"num_steps": 20, "num_particles": 5}
    scales = mixture().calibration
    scale = guidance_factor((2,), (2,), scales.latent_std, scales.image_std)  # of the guidance, not of the gluing
    glued = draws(LatentDPS, mixture(), seen(0.5, 0.1), guidance_scale=0.2 / scale, gluing=0.1, **settings)
    guided = draws(LatentDPS, mixture(), seen(0.5, 0.1), guidance_scale=0.3 / scale, **settings)
    torch.testing.assert_close(glued, guided, rtol=1e-4, atol=1e-4)


def test_gluing_is_refused_where_there_is_no_adjoint(tiny_prior):
    physics = nonlinear_blur(tiny_prior.image_shape)
    measurement = Measurement("m", torch.zeros(1, *tiny_prior.image_shape), physics)
    with pytest.raises(InputError, match=r"^gluing must be 0 for an operator that is not linear, .* set gluing=0"):
        LatentDPS(tiny_prior, measurement, LatentFeatures(), gluing=0.1)


@pytest.mark.parametrize("noise_std", [0.5, 1.0])
def test_daps_has_a_gaussian_posterior(noise_std: float):
    prior = GaussianMixturePrior([[0.0, 0.0]], std=0.8)
    measurement = seen(0.6, noise_std)
    # with one deterministic step the clean latent is the mean that the method's own Gaussian is about
    settings = {"ode_steps": 1, "langevin_steps": 40, "step_size": 0.1, "gain": 1.0, "latent_std": 0.8}
    points = draws(LatentDAPS, prior, measurement, likelihood_std=0.0, num_steps=50, **settings)
    posterior = exact_posterior(prior, measurement)
    scale = posterior.covariances[0].diagonal().sqrt()
    # five standard errors, and a twentieth that steps of a tenth add to a variance
    assert ((points.mean(dim=0) - posterior.means[0]).abs() < 5 * scale / 1000**0.5).all()
    assert (points.std(dim=0) / scale - 1).abs().max() < 5 / 2000**0.5 + 0.05


@pytest.mark.parametrize("noise_std", [0.001, 0.5])
def test_daps_goes_to_the_data_under_noise_of_any_kind(noise_std: float):
    prior = GaussianMixturePrior([[0.0, 0.0]], std=0.8)
    means = {}
    for noise in (GaussianNoise(noise_std), LaplaceNoise(noise_std / 2**0.5)):
        measurement = seen(0.6, noise_std)
        measurement.physics.noise_model = noise
        settings = {"ode_steps": 1, "langevin_steps": 40, "step_size": 0.1, "gain": 1.0, "latent_std": 0.8}
        points = draws(LatentDAPS, prior, measurement, likelihood_std=0.5, num_steps=50, **settings)
        means[type(noise)] = points[:, 0].mean().item()
    assert means[LaplaceNoise] == pytest.approx(means[GaussianNoise], abs=0.15)


@pytest.mark.parametrize("t", [50, 400, 900])
def test_mixture_mean_is_that_of_the_mixtures_score(t: int):
    prior = mixture()
    alpha, sigma = prior.alpha(t).double(), prior.sigma(t).double()
    generator = torch.Generator().manual_seed(0)
    z, z_t = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (4, 7))
    noisy = MixtureSameFamily(Categorical(torch.ones(4)), Independent(Normal(alpha * z, sigma), 1))
    z_t.requires_grad_()
    (score,) = torch.autograd.grad(noisy.log_prob(z_t).sum(), z_t)
    # Tweedie's formula for the mixture
    expected = (z_t + sigma**2 * score) / alpha
    torch.testing.assert_close(mixture_mean(z_t, z, alpha, sigma), expected.detach(), rtol=1e-9, atol=1e-9)


def test_a_lone_particle_is_its_own_mixture(tiny_prior, measurement: Measurement):
    settings = {"num_particles": 1, "num_steps": 5, "trainer": QUIET}
    mixed, alone = (
        solve(measurement.y, measurement.physics, tiny_prior, method=method, **settings).particles
        for method in (DWGF, Distilled)
    )
    torch.testing.assert_close(mixed, alone, rtol=0, atol=1e-5)


def test_the_mixture_keeps_particles_apart():
    prior = GaussianMixturePrior([[0.0, 0.0]], std=1.0)
    measurement = seen(0.0, 0.1)

    def spread(method: type, **settings: float) -> float:
        points = draws(method, prior, measurement, lr_z=0.1, decoder_std=0.05, num_particles=50, **settings)
        return points[:, 1].std().item()

    assert spread(DWGF) > 1.5 * spread(Distilled, gamma=0.0)


def test_daps_needs_some_noise(tiny_prior):
    physics = inpainting(tiny_prior.image_shape, mask="half", sigma=0.0)
    measurement = Measurement("m", torch.zeros(1, *tiny_prior.image_shape), physics)
    with pytest.raises(InputError, match=r"likelihood_std must be above 0 for a measurement without noise"):
        LatentDAPS(tiny_prior, measurement, LatentFeatures(), likelihood_std=0.0)


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        (LatentDPS, {"guidance_scale": -1.0}, "^guidance_scale must be at least 0, got -1.0"),
        (LatentDPS, {"gluing": -1.0}, "^gluing must be at least 0, got -1.0"),
        (LatentDAPS, {"langevin_steps": 0}, "^langevin_steps must be at least 1, got 0"),
        (LatentDAPS, {"ode_steps": 0}, "^ode_steps must be at least 1, got 0"),
        (LatentDAPS, {"step_size": 0.0}, "^step_size must be above 0, got 0.0"),
        (LatentDAPS, {"decoder_std": -1.0}, "^decoder_std must be at least 0, got -1.0"),
        (DWGF, {"decoder_std": 0.0}, "^decoder_std must be above 0, got 0.0"),
        (DWGF, {"weighting": "cubic"}, "^weighting must be one of .*, got 'cubic'"),
    ],
)
def test_settings_out_of_range_are_refused(method: type, settings: dict, said: str):
    with pytest.raises(InputError, match=said):
        method(mixture(), seen(0.0, 0.1), LatentFeatures(), **settings)
