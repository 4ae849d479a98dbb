"""The steps of RLSD in which particles are sampled: their gradient, what they draw, and the hand-over to distillation."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from deepinv.physics import GaussianNoise, Inpainting, LinearPhysics
from support.trainers import trainer_with
from torch import Tensor, nn

from rlsd_lightning import (
    RLSD,
    GaussianMixturePrior,
    LatentFeatures,
    Measurement,
    PixelFeatures,
    StableDiffusionPrior,
    ViTFeatures,
    solve,
)
from rlsd_lightning.distributed.shard import Shard
from rlsd_lightning.functional.kernels import log_density, median_bandwidth
from rlsd_lightning.functional.metrics import mode_total_variation, within_mode_spread
from rlsd_lightning.functional.schedules import reverse_step
from rlsd_lightning.operators import NullOperator, colorization, inpainting

F64 = torch.float64
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}
STEP = 3


@pytest.fixture
def prior(tiny_prior: StableDiffusionPrior) -> StableDiffusionPrior:
    return tiny_prior.double()


@pytest.fixture
def features_of(tiny_features: ViTFeatures) -> Callable[[str], nn.Module]:
    return {"latents": LatentFeatures(), "pixels": PixelFeatures(), "vit": tiny_features.double()}.__getitem__


def half(shape: tuple[int, ...], sigma: float = 0.001) -> LinearPhysics:
    return inpainting(shape, mask="half", sigma=sigma)


def make(prior: StableDiffusionPrior, features: nn.Module | None = None, operator: Callable = half, **settings) -> RLSD:
    """A problem of a random image, all in float64, before a step of sampling."""
    physics = operator(prior.image_shape).double()
    truth = 2 * torch.rand(1, *prior.image_shape, generator=torch.Generator().manual_seed(0), dtype=F64) - 1
    measurement = Measurement("face", physics.A(truth), physics)
    settings = {"num_particles": 3, "num_steps": 20, **settings}
    return RLSD(prior, measurement, features or LatentFeatures(), **settings).double()


def pulled(module: RLSD) -> Tensor:
    """How far a step takes the noisy latents from where the prior alone would."""
    z_t, t = module.z_t.clone(), module.timesteps[STEP]
    module.training_step((STEP, t), STEP)
    levels = [
        level[index]
        for index in (t, module.timesteps[STEP + 1])
        for level in (module.prior.alphas, module.prior.sigmas)
    ]
    from_noisy, from_clean, variance = reverse_step(*levels)
    with torch.no_grad():
        clean = denoised(module, z_t)
    assert torch.allclose(module.z, clean)
    return from_noisy * z_t + from_clean * clean + variance.sqrt() * module.noise(STEP) - module.z_t


def denoised(module: RLSD, z_t: Tensor) -> Tensor:
    """The clean latents, from the network itself."""
    t = module.timesteps[STEP]
    noise = module.prior.denoiser(z_t, t, module.prior.text.expand(len(z_t), -1, -1)).sample
    return (z_t - module.prior.sigmas[t] * noise) / module.prior.alphas[t]


def gradients(module: RLSD) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy and clean latents, their images, and the gradient of the distance in the images."""
    z_t = module.z_t.clone().requires_grad_()
    clean = denoised(module, z_t)
    image = module.prior.decode(clean)
    (_, y, physics, *_) = module.measurements[0]
    x = module.x.detach() if module.hparams.augmented else None
    residual = x - image if module.hparams.augmented else y - physics.A(image)
    distance = residual.flatten(1).norm(dim=1).sum()
    (pull,) = torch.autograd.grad(distance, image, retain_graph=True)
    return z_t, clean, image, pull


def back(leaf: Tensor, *values_with_gradients: tuple[Tensor, Tensor]) -> Tensor:
    """The gradient in a leaf of values whose gradients are known."""
    values, given = zip(*values_with_gradients, strict=True)
    return torch.autograd.grad(values, leaf, given, retain_graph=True)[0]


@pytest.mark.parametrize("settings", [{}, {"augmented": False}, {"particle_chunk": 1}, {"renew_every": 3}], ids=str)
def test_a_step_goes_down_the_distance_through_decoder_and_denoiser(settings: dict, prior: StableDiffusionPrior):
    module = make(prior, operator=colorization, gamma=0.0, zeta=0.7, **settings)
    before = make(prior, operator=colorization, gamma=0.0, **settings)
    moved = pulled(module)
    before.x.data.copy_(module.x.data)  # as the step has solved for it
    z_t, _, image, pull = gradients(before)
    times = settings.get("renew_every", 1)
    torch.testing.assert_close(moved, 0.7 * 100 / 20 * times * back(z_t, (image, pull)), rtol=1e-6, atol=1e-9)


def test_the_auxiliary_is_the_proximal_step_with_what_noise_leaves_open(prior: StableDiffusionPrior):
    module = make(prior, operator=partial(half, sigma=0.3), gamma=0.0)
    _, _, image, _ = gradients(module)
    module.training_step((STEP, module.timesteps[STEP]), STEP)
    t, (_, y, physics, *_) = module.timesteps[STEP], module.measurements[0]
    alpha, sigma = prior.alphas[t], prior.sigmas[t]
    variance = 0.5**2 * sigma**2 / (alpha**2 + sigma**2) + 0.08**2
    # every value of y is of one pixel: the weights of the two Gaussians
    expected = torch.where(physics.mask > 0, (y / 0.3**2 + image / variance) / (1 / 0.3**2 + 1 / variance), image)
    torch.testing.assert_close(module.x.detach(), expected.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.1, 2.0])
@pytest.mark.parametrize("kind", ["latents", "pixels", "vit"])
def test_repulsion_has_gamma_times_the_norm_of_the_pull(
    kind: str, gamma: float, prior: StableDiffusionPrior, features_of: Callable
):
    features = features_of(kind)
    with_repulsion, without = (make(prior, features, gamma=g) for g in (gamma, 0.0))
    part = pulled(with_repulsion) - pulled(without)
    module = make(prior, features)
    module.x.data.copy_(with_repulsion.x.data)
    z_t, clean, image, pull = gradients(module)
    leaf = clean if kind == "latents" else image
    compared = features(clean, image)
    density = log_density(compared, compared.detach(), median_bandwidth(compared)).sum()
    (push,) = torch.autograd.grad(density, leaf, retain_graph=True)
    beside = back(clean, (image, pull)) if kind == "latents" else pull
    strength = {"latents": 0.1, "pixels": 0.1, "vit": 1.0}[kind]
    scale = strength * gamma * 100 / 20 * beside.flatten(1).norm(dim=1) / push.flatten(1).norm(dim=1)
    expected = back(z_t, (leaf, scale.view(-1, 1, 1, 1) * push))
    # norms are taken in float32
    assert (part - expected).abs().max() < 1e-5 * expected.abs().max()


def test_without_repulsion_and_antithetic_noise_a_particle_ignores_how_many_there_are(prior: StableDiffusionPrior):
    alone, among = (pulled(make(prior, gamma=0.0, num_particles=count, antithetic=False)) for count in (1, 3))
    torch.testing.assert_close(among[:1], alone, rtol=1e-7, atol=1e-10)


def test_a_lone_particle_is_not_repelled(prior: StableDiffusionPrior):
    one, other = (pulled(make(prior, PixelFeatures(), gamma=gamma, num_particles=1)) for gamma in (5.0, 0.0))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_a_sampling_step_gives_the_latents_no_gradient(prior: StableDiffusionPrior):
    module = make(prior)
    module.training_step((STEP, module.timesteps[STEP]), STEP).backward()
    assert not module.z.grad.any()
    assert all(parameter.grad is None for parameter in prior.parameters())


def seen(noise_std: float) -> Measurement:
    """Of a point in the plane, the first coordinate."""
    physics = Inpainting((2,), mask=torch.tensor([1.0, 0.0]), noise_model=GaussianNoise(sigma=noise_std))
    return Measurement("seen", torch.tensor([[1.9, 0.0]]), physics)


def draws(prior: GaussianMixturePrior, **settings) -> Tensor:
    measurement = seen(0.1)
    settings = {"gamma": 0.0, "num_particles": 1000, "sampling_share": 1.0, **settings}
    return solve(measurement.y, measurement.physics, prior, trainer=QUIET, **settings)


def test_sampling_without_a_pull_draws_from_the_prior():
    prior = GaussianMixturePrior([[-2.0, 2.0], [2.0, 0.0], [0.0, -2.0]], std=0.3, weights=[0.2, 0.3, 0.5])
    settings = {"gamma": 0.0, "num_particles": 1000, "sampling_share": 1.0, "zeta": 0.0, "num_steps": 1000}
    module = RLSD(prior, seen(0.1), LatentFeatures(), **settings)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    L.Trainer(max_epochs=1, **QUIET, **quiet).fit(module)
    points = module.z.detach()  # the results would be moved to the measurement
    modes = prior.mixture.assign(points)
    # as for unguided DPS: 1,000 draws are 0.02 off on average, and ancestral steps a little too narrow
    assert mode_total_variation(modes, prior.mixture.weights) < 0.06
    assert within_mode_spread(points, modes, prior.mixture.covariances).item() == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_sampled_particles_take_the_modes_that_the_measurement_allows(share: float):
    # two modes at the seen coordinate, of equal weight, and one far from it
    prior = GaussianMixturePrior([[2.0, 1.5], [2.0, -1.5], [-2.0, 0.0]], std=0.3)
    points = draws(prior, sampling_share=share, num_particles=400)
    shares = torch.bincount(prior.mixture.assign(points), minlength=3) / len(points)
    assert shares[2] < 0.02
    assert (shares[:2] - 0.5).abs().max() < 0.1  # four standard errors


def test_distillation_alone_takes_fewer_of_the_modes():
    prior = GaussianMixturePrior([[2.0, 1.5], [2.0, -1.5], [-2.0, 0.0]], std=0.3)
    spreads = [draws(prior, sampling_share=share, num_particles=100)[:, 1].std() for share in (0.0, 0.8)]
    assert spreads[1] > 1.2  # of two modes at 1.5 and -1.5
    assert spreads[0] < spreads[1]


@pytest.mark.parametrize(("share", "taken"), [(0.0, 10), (0.5, 5), (0.9, 1)])
def test_adam_counts_the_steps_of_distillation_only(share: float, taken: int, tiny_prior, measurement, tmp_path: Path):
    module = RLSD(tiny_prior, measurement, LatentFeatures(), num_steps=10, sampling_share=share, num_particles=2)
    trainer = trainer_with(tmp_path)
    trainer.fit(module)
    assert trainer.optimizers[0].state[module.z]["step"] == taken
    assert trainer.global_step == 10  # what checkpoints are timed by


def test_between_two_pulls_the_curves_keep_their_values(prior: StableDiffusionPrior, monkeypatch: pytest.MonkeyPatch):
    module, logged = make(prior, gamma=0.5, renew_every=2), []
    monkeypatch.setattr(module, "log_losses", lambda losses, step: logged.append(losses["guidance"].item()))
    for step in range(4):
        module.training_step((step, module.timesteps[step]), step)
    assert logged[0] == logged[1] > 0
    assert logged[2] == logged[3] > 0
    assert len(module.repulsion_ratios) == 2


def test_absolute_repulsion_has_the_step_size_of_the_pull(prior: StableDiffusionPrior):
    settings = {"gamma": 0.3, "gamma_mode": "absolute", "zeta": 0.7}
    part = pulled(make(prior, **settings)) - pulled(make(prior, gamma=0.0, zeta=0.7))
    module = make(prior)
    z_t, clean, *_ = gradients(module)
    features = clean.flatten(1)
    density = log_density(features, features.detach(), median_bandwidth(features)).sum()
    (push,) = torch.autograd.grad(density, z_t)
    sigma = prior.sigmas[module.timesteps[STEP]]
    torch.testing.assert_close(part, 0.7 * 100 / 20 * 0.3 * sigma * push, rtol=1e-5, atol=1e-10)


# Antithetic noise


@pytest.mark.parametrize("count", [2, 5])
def test_antithetic_noise_sums_to_zero_and_is_standard_normal_for_each_particle(
    count: int, prior: StableDiffusionPrior
):
    module = make(prior, num_particles=count, antithetic=True)
    draws = torch.stack([module.z_t, *(module.noise(step) for step in range(19))]).transpose(0, 1).flatten(1)
    assert torch.allclose(draws.sum(dim=0), torch.zeros(()).double(), atol=1e-5)
    correlations = torch.corrcoef(draws)
    others = correlations[~torch.eye(count, dtype=torch.bool)]
    values = draws.shape[1]
    assert torch.allclose(others, torch.tensor(-1 / (count - 1), dtype=F64), atol=4 / values**0.5)
    assert torch.allclose(draws.var(dim=1), torch.ones((), dtype=F64), atol=4 * (2 / values) ** 0.5)
    assert draws.mean(dim=1).abs().max() < 4 / values**0.5


def test_a_lone_particle_has_its_own_noise_antithetic_or_not(prior: StableDiffusionPrior):
    one, other = (make(prior, num_particles=1, antithetic=kind) for kind in (True, False))
    assert torch.equal(one.noise(STEP), other.noise(STEP))
    assert torch.equal(one.z_t, other.z_t)


def test_antithetic_noise_is_the_same_for_a_process_with_some_of_the_particles(
    prior: StableDiffusionPrior, monkeypatch: pytest.MonkeyPatch
):
    module = make(prior, num_particles=3, antithetic=True)
    expected = module.noise(STEP)
    monkeypatch.setattr(type(module), "shard", Shard(1, 2))
    rows = module.rows
    assert 0 < rows.stop - rows.start < 3
    assert torch.equal(module.noise(STEP), expected[rows])


# Nothing measured


@pytest.mark.parametrize("kind", ["latents", "pixels", "vit"])
def test_particles_of_no_measurement_repel_too(kind: str, prior: StableDiffusionPrior, features_of: Callable):
    modules = [make(prior, features_of(kind), operator=NullOperator, gamma=gamma) for gamma in (0.0, 2.0)]
    for module in modules:
        module.training_step((STEP, module.timesteps[STEP]), STEP)
    without, repelled = modules
    moved = (repelled.z_t - without.z_t).flatten(1).norm(dim=1)
    assert (moved > 1e-3).all()
    strength = getattr(features_of(kind), "strength", 1.0)
    assert repelled.repulsion_ratio() == pytest.approx(2.0 * strength)


def test_features_of_latents_and_images_have_one_strength_together(prior: StableDiffusionPrior):
    class Both(nn.Module):
        def forward(self, z: Tensor, images: Tensor) -> Tensor:
            return torch.cat([z.flatten(1), images.flatten(1)], dim=1)

    gamma = 2.0
    without, repelled = (pulled(make(prior, Both(), gamma=strength)) for strength in (0.0, gamma))
    alone = make(prior, Both(), gamma=gamma)
    pulled(alone)
    assert alone.repulsion_ratio() == pytest.approx(gamma)
    assert not torch.allclose(without, repelled)
