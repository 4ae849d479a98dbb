"""The loop of RLSD: the gradient of its three terms, its auxiliary image, and where it is limited."""

import copy
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from support.problems import (
    back,
    denoised,
    density_gradient,
    distance_gradient,
    half,
    make,
    noisy,
    norms,
)
from support.steps import loss_of, take_step
from torch import Tensor

from rlsd_lightning import RLSD, Features, LatentFeatures, PixelFeatures, StableDiffusionPrior
from rlsd_lightning.operators import NullOperator, colorization

STEP = 3
KINDS = pytest.mark.parametrize("kind", ["latents", "pixels", "vit"])


def by_size(prior: StableDiffusionPrior) -> float:
    """Step size relative to that with the embedded faces, from sizes and measured scales."""
    size = math.prod(prior.latent_shape) / 1024 * math.sqrt(12288 / math.prod(prior.image_shape))
    return size * prior.calibration.latent_std**2 * 0.467 / prior.calibration.image_std


def following_alpha(module: RLSD) -> Tensor:
    return module.prior.alphas[module.timesteps[STEP + 1]]


def parts(module: RLSD) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy and clean latents, their images and the gradient of the distance in these, all before a step."""
    after = copy.deepcopy(module)
    take_step(after, STEP)  # solves for x
    z_t = noisy(module, STEP)
    clean = denoised(module, z_t, STEP)
    image = module.prior.decode(clean)
    return z_t, clean, image, distance_gradient(module, image, after.x.detach())


@pytest.mark.parametrize("settings", [{}, {"augmented": False}, {"particle_chunk": 1}], ids=str)
def test_the_gradient_is_that_of_denoising_and_of_the_distance_through_decoder_and_denoiser(
    settings: dict, prior: StableDiffusionPrior
):
    module = make(prior, operator=colorization, gamma=0.0, guidance_scale=0.7, **settings)
    z_t, clean, image, pull = parts(module)
    expected = module.z - clean + 0.7 * 5 * by_size(prior) * back(z_t, (image, pull)) / following_alpha(module)
    torch.testing.assert_close(take_step(module, STEP), expected.detach(), rtol=1e-6, atol=1e-9)


@KINDS
@pytest.mark.parametrize("gamma", [0.1, 2.0])
def test_relative_repulsion_has_gamma_times_the_norm_of_the_coupling(
    kind: str, gamma: float, prior: StableDiffusionPrior, features_of: Callable
):
    features = features_of(kind)
    module, without = (make(prior, features, gamma=g) for g in (gamma, 0.0))
    z_t, clean, image, pull = parts(module)
    push = density_gradient(features, clean, image)
    beside = back(clean, (image, pull)) if features.of_latents else pull
    relative = {"latents": 0.1, "pixels": 0.1, "vit": 1.0}[kind] * gamma
    scale = relative * 100 / 20 * by_size(prior) * norms(beside) / norms(push)
    of = clean if features.of_latents else image
    expected = back(z_t, (of, scale.view(-1, 1, 1, 1) * push)) / following_alpha(module)
    part = take_step(module, STEP) - take_step(without, STEP)
    # norms are taken in float32
    assert (part - expected).abs().max() < 1e-5 * expected.abs().max()


@KINDS
def test_absolute_repulsion_is_autograd_of_log_density_with_the_step_size_of_the_coupling(
    kind: str, prior: StableDiffusionPrior, features_of: Callable
):
    features, settings = features_of(kind), {"guidance_scale": 0.7, "gamma_mode": "absolute"}
    module, without = (make(prior, features, gamma=g, **settings) for g in (0.3, 0.0))
    z_t, clean, image, _ = parts(module)
    push = density_gradient(features, clean, image)
    sigma = prior.sigmas[module.timesteps[STEP]]
    direct = back(z_t, (clean if features.of_latents else image, push)) / following_alpha(module)
    expected = 0.7 * 5 * by_size(prior) * 0.3 * sigma * direct
    part = take_step(module, STEP) - take_step(without, STEP)
    assert (part - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_loss_is_real_and_its_gradient_is_what_the_optimizer_sees(prior: StableDiffusionPrior):
    module = make(prior, PixelFeatures(), gamma=0.5)
    loss, gradient = loss_of(copy.deepcopy(module), STEP)
    z, clean = module.z.detach().clone(), denoised(module, noisy(module, STEP), STEP).detach()
    seen = take_step(module, STEP)
    assert torch.equal(gradient, seen)
    pull = gradient - (z - clean)  # G / alpha_s
    assert norms(pull).min() > 0.1
    expected = 0.5 * (z - clean).square().sum() + (pull * z).sum()
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(module.z.detach(), z - seen, rtol=1e-12, atol=1e-12)


def test_denoising_is_score_distillation(prior: StableDiffusionPrior):
    module = make(prior, gamma=0.0, guidance_scale=0.0)
    alpha, sigma = (level[module.timesteps[STEP]] for level in (prior.alphas, prior.sigmas))
    z_t = noisy(module, STEP)
    noise = (z_t - alpha * denoised(module, z_t, STEP)) / sigma
    expected = (sigma / alpha) * (noise - module.e)
    torch.testing.assert_close(take_step(module, STEP), expected.detach(), rtol=1e-9, atol=1e-9)


def test_the_auxiliary_is_the_proximal_step_with_what_noise_leaves_open(prior: StableDiffusionPrior):
    module = make(prior, operator=partial(half, sigma=0.3), gamma=0.0)
    _, _, image, _ = parts(module)
    take_step(module, STEP)
    t, measurement = module.timesteps[STEP], module.measurements[0]
    alpha, sigma = prior.alphas[t], prior.sigmas[t]
    variance = 0.5**2 * sigma**2 / (alpha**2 + sigma**2) + 0.08**2
    # every value of y is of one pixel: the weights of the two Gaussians
    both = (measurement.y / 0.3**2 + image / variance) / (1 / 0.3**2 + 1 / variance)
    expected = torch.where(measurement.physics.mask > 0, both, image)
    torch.testing.assert_close(module.x.detach(), expected.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("augmented", [True, False])
def test_without_repulsion_and_antithetic_noise_a_particle_ignores_how_many_there_are(
    augmented: bool, prior: StableDiffusionPrior
):
    settings = {"gamma": 0.0, "antithetic": False, "augmented": augmented}
    alone, among = (make(prior, num_particles=count, **settings) for count in (1, 3))
    for step in range(3):
        torch.testing.assert_close(take_step(among, step)[:1], take_step(alone, step), rtol=1e-7, atol=1e-10)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(among.state_dict()[name][:1], value, rtol=1e-7, atol=1e-10)
    assert not torch.allclose(alone.z, make(prior, num_particles=1).z)


def test_with_repulsion_a_particle_does_not_ignore_the_others(prior: StableDiffusionPrior):
    settings = {"gamma": 1.0, "gamma_mode": "absolute", "antithetic": False}
    two, three = (take_step(make(prior, num_particles=count, **settings)) for count in (2, 3))
    assert not torch.allclose(two, three[:2], rtol=1e-4)


@pytest.mark.parametrize("mode", ["relative", "absolute"])
@pytest.mark.parametrize("kind", ["latents", "pixels"])
def test_a_lone_particle_is_not_repelled(kind: str, mode: str, prior: StableDiffusionPrior, features_of: Callable):
    settings = {"num_particles": 1, "gamma_mode": mode}
    one, other = (take_step(make(prior, features_of(kind), gamma=gamma, **settings), STEP) for gamma in (5.0, 0.0))
    assert one.isfinite().all()
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_a_lone_particle_costs_no_features(prior: StableDiffusionPrior) -> None:
    class Refusing(Features):
        def forward(self, z: Tensor, images: Tensor) -> Tensor:
            raise AssertionError("nothing to compare")

    assert take_step(make(prior, Refusing(), num_particles=1)).abs().sum() > 0


@pytest.mark.parametrize("mode", ["relative", "absolute"])
@pytest.mark.parametrize("kind", ["latents", "pixels"])
def test_particles_in_one_place_stay_finite(kind: str, mode: str, prior: StableDiffusionPrior, features_of: Callable):
    module = make(prior, features_of(kind), gamma=5.0, gamma_mode=mode)
    for particles in (module.z.data, module.e):
        particles[:] = particles[:1].clone()
    assert take_step(module).isfinite().all()


def test_the_gate_shuts_after_its_share_of_the_steps(prior: StableDiffusionPrior):
    for step, alike in ((9, False), (10, True)):
        repelled, without = (make(prior, gamma=gamma, repulsion_until=0.5) for gamma in (5.0, 0.0))
        assert torch.equal(take_step(repelled, step), take_step(without, step)) == alike


def test_a_gate_of_zero_is_no_repulsion(prior: StableDiffusionPrior):
    gated, without = make(prior, gamma=5.0, repulsion_until=0), make(prior, gamma=0.0)
    assert torch.equal(take_step(gated), take_step(without))


def test_repulsion_moves_the_features_apart(prior: StableDiffusionPrior):
    repelled, without = (make(prior, PixelFeatures(), gamma=gamma) for gamma in (5.0, 0.0))
    for module in (repelled, without):
        take_step(module, STEP)
    with torch.no_grad():
        near, far = (torch.pdist(prior.decode(module.z).flatten(1)) for module in (without, repelled))
    assert far.mean() > near.mean()


# Nothing measured


@KINDS
def test_particles_of_no_measurement_repel_too(kind: str, prior: StableDiffusionPrior, features_of: Callable):
    features = features_of(kind)
    without, repelled = (make(prior, features, operator=NullOperator, gamma=gamma) for gamma in (0.0, 2.0))
    for module in (without, repelled):
        take_step(module, STEP)
    assert (norms(repelled.z - without.z) > 1e-3).all()
    assert repelled.repulsion_ratio() == pytest.approx(2.0 * features.gamma_scale)


def test_without_a_measurement_and_the_auxiliary_nothing_pulls(prior: StableDiffusionPrior):
    plain, without = (make(prior, operator=NullOperator, gamma=0.0, augmented=kind) for kind in (True, False))
    torch.testing.assert_close(take_step(plain, STEP), take_step(without, STEP), rtol=1e-12, atol=1e-12)


def test_without_guidance_relative_repulsion_is_none_and_its_ratio_a_number(prior: StableDiffusionPrior):
    module, without = (make(prior, guidance_scale=0.0, gamma=gamma) for gamma in (0.5, 0.0))
    torch.testing.assert_close(take_step(module, STEP), take_step(without, STEP), rtol=1e-12, atol=1e-12)
    assert module.repulsion_ratio() == pytest.approx(0.0)


def test_a_step_gives_the_prior_no_gradient(prior: StableDiffusionPrior):
    take_step(make(prior, gamma=1.0))
    assert all(parameter.grad is None for parameter in prior.parameters())


def test_frozen_parts_are_neither_in_checkpoints_nor_trained(prior: StableDiffusionPrior):
    module = make(prior, LatentFeatures())
    assert set(module.state_dict()) == {"z", "x", "e", "replaced"}
    assert {name for name, _ in module.named_parameters()} == {"z", "x"}
    assert not any("prior" in name or "features" in name for name in module.hparams)


@pytest.mark.parametrize("operator", [half, colorization, partial(half, sigma=0.3)], ids=["half", "grey", "noisy"])
def test_before_the_refinement_latents_go_to_the_encoded_images(operator: Callable, prior: StableDiffusionPrior):
    module = make(prior, operator=operator, gamma=0.5, refine_share=0.8)
    assert module.refine_from == STEP + 1
    _, clean, image, _ = parts(module)
    take_step(module, STEP)
    x = module.x.detach()
    assert norms(x - image.detach()).min() > 0.1
    torch.testing.assert_close(module.z.detach(), clean.detach() - prior.encode(image) + prior.encode(x))


@pytest.mark.parametrize(
    "settings",
    [{"augmented": False}, {"operator": NullOperator}, {"refine_share": 0.0, "num_steps": STEP + 1}],
    ids=str,
)
def test_without_images_to_go_to_the_loop_ends_at_the_clean_latents(settings: dict, prior: StableDiffusionPrior):
    module = make(prior, **{"gamma": 0.0, "refine_share": 0.8, **settings})
    clean = denoised(module, noisy(module, STEP), STEP).detach()
    take_step(module, STEP)
    torch.testing.assert_close(module.z.detach(), clean)
