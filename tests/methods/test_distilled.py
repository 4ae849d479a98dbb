"""Score distillation in every step: its gradient, its repulsion, its limits."""

import copy
from collections.abc import Callable

import lightning as L
import pytest
import torch
from support.problems import density_gradient, make, norms
from support.steps import take_step
from torch import Tensor

from rlsd_lightning import (
    Distilled,
    Features,
    InputError,
    LatentFeatures,
    PixelFeatures,
    StableDiffusionPrior,
    ViTFeatures,
    solve,
)
from rlsd_lightning.functional.kernels import log_density, median_bandwidth
from rlsd_lightning.operators import inpainting

KINDS = pytest.mark.parametrize("kind", ["latents", "pixels", "vit"])


def distilled(prior: StableDiffusionPrior, features: Features | None = None, **settings) -> Distilled:
    """With repulsion in all steps but the last."""
    return make(prior, features or PixelFeatures(), method=Distilled, **{"repulsion_until": 1.0, **settings})


def weight(module: Distilled, step: int = 0) -> tuple[Tensor, Tensor]:
    """lambda log(1 + sigma / alpha), and sigma."""
    t = module.timesteps[step]
    alpha, sigma = module.prior.alphas[t], module.prior.sigmas[t]
    return module.hparams.distillation_weight * torch.log(1 + sigma / alpha), sigma


def score(module: Distilled, step: int = 0) -> Tensor:
    """The distillation residual, from the network itself."""
    t, eps = module.timesteps[step], module.noise(step)
    z_t = module.prior.alphas[t] * module.z.detach() + module.prior.sigmas[t] * eps
    with torch.no_grad():
        return module.prior.denoiser(z_t, t, module.prior.text.expand(len(z_t), -1, -1)).sample - eps


def gradients(prior: StableDiffusionPrior, *features: Features, step: int = 0, **settings) -> tuple[Tensor, Distilled]:
    """The repulsion's part of a step's gradient, and the module before the step."""
    module, without = distilled(prior, *features, **settings), distilled(prior, *features, gamma=0.0)
    before = copy.deepcopy(module)
    return take_step(module, step) - take_step(without, step), before


def test_without_repulsion_and_antithetic_noise_a_particle_ignores_how_many_there_are(prior: StableDiffusionPrior):
    alone, among = (distilled(prior, gamma=0.0, num_particles=count) for count in (1, 3))
    torch.testing.assert_close(take_step(among)[:1], take_step(alone), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(among.z[:1], alone.z, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(among.x[:1], alone.x, rtol=1e-8, atol=1e-10)
    assert not torch.equal(alone.z, distilled(prior, num_particles=1).z)  # the step did something


def test_with_repulsion_a_particle_does_not_ignore_the_others(prior: StableDiffusionPrior):
    settings = {"gamma": 1.0, "gamma_mode": "absolute"}
    two, three = (take_step(distilled(prior, LatentFeatures(), num_particles=count, **settings)) for count in (2, 3))
    assert not torch.allclose(two, three[:2], rtol=1e-4)


def test_gradient_without_repulsion_is_that_of_the_written_objective(prior: StableDiffusionPrior):
    module = distilled(prior, gamma=0.0)
    before = copy.deepcopy(module)
    actual = take_step(module)
    decoded = prior.decode(before.z)
    measurement = before.measurements[0]
    mask, mu = measurement.physics.mask, before.proximal.mu(measurement, 0.08**2)
    x = (mask * measurement.y + mu * decoded.detach()) / (mask + mu)
    torch.testing.assert_close(module.x.detach(), x, rtol=1e-6, atol=1e-8)  # the proximal step of a mask
    objective = sum(0.5 * (1 + mu) * particle.square().mean() for particle in x - decoded)
    (likelihood,) = torch.autograd.grad(objective, before.z)
    expected = likelihood + weight(before)[0] * score(before) / before.z[0].numel()
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-10)


@KINDS
@pytest.mark.parametrize("step", [0, 3])
def test_absolute_repulsion_is_autograd_of_log_density_through_the_decoder(
    kind: str, step: int, prior: StableDiffusionPrior, features_of: Callable
):
    gamma, features = 2.0, features_of(kind)
    part, before = gradients(prior, features, step=step, gamma=gamma, gamma_mode="absolute")
    compared = features(before.z, prior.decode(before.z))
    density = log_density(compared, compared.detach(), median_bandwidth(compared)).sum()
    (direct,) = torch.autograd.grad(density, before.z)
    w, sigma = weight(before, step)
    expected = w * gamma * sigma * direct / before.z[0].numel()
    # not lost beside the rest
    assert expected.norm() > 1e-3 * take_step(distilled(prior, features, gamma=0.0), step).norm()
    # relative to the largest element: small ones are differences of large ones
    assert (part - expected).abs().max() < 1e-9 * expected.abs().max()


@KINDS
@pytest.mark.parametrize("gamma", [0.1, 0.5])
def test_relative_repulsion_has_gamma_times_the_scores_norm(
    kind: str, gamma: float, prior: StableDiffusionPrior, features_of: Callable
):
    part, before = gradients(prior, features_of(kind), gamma=gamma, repulsion_saturation=0.0)
    expected = gamma * weight(before)[0] * norms(score(before)) / before.z[0].numel()
    # norms are taken in float32
    torch.testing.assert_close(norms(part), expected, rtol=1e-5, atol=0)


def test_relative_repulsion_is_along_the_gradient_of_log_density(prior: StableDiffusionPrior):
    part, before = gradients(prior, gamma=0.3)
    z = before.z.detach().requires_grad_()
    image = prior.decode(z)
    (along,) = torch.autograd.grad(image, z, density_gradient(PixelFeatures(), z, image))
    cosines = torch.nn.functional.cosine_similarity(part.flatten(1), along.flatten(1))
    torch.testing.assert_close(cosines, torch.ones_like(cosines), rtol=1e-6, atol=1e-6)


def test_relative_repulsion_falls_with_the_square_of_the_images_distance(prior: StableDiffusionPrior):
    reach = 3.0  # far more than images of random latents differ by
    part, before = gradients(prior, gamma=0.3, repulsion_saturation=reach)
    images = prior.decode(before.z.detach())  # of 32 pixels a side: their own thumbnails
    squares = (images[:, None] - images).square().flatten(2).mean(dim=2).sum(dim=1) / 2
    expected = 0.3 * squares / reach**2 * weight(before)[0] * norms(score(before)) / before.z[0].numel()
    assert squares.max() < reach**2
    torch.testing.assert_close(norms(part), expected, rtol=1e-5, atol=0)


def test_without_saturation_repulsion_is_as_strong_for_near_particles_as_for_far_ones(prior: StableDiffusionPrior):
    module, without = (distilled(prior, gamma=gamma, repulsion_saturation=0.0) for gamma in (0.3, 0.0))
    module.z.data[:] = module.z.data[:1] + 1e-3 * module.z.data
    without.z.data.copy_(module.z.data)
    expected = 0.3 * weight(module)[0] * norms(score(module)) / module.z[0].numel()
    torch.testing.assert_close(norms(take_step(module) - take_step(without)), expected, rtol=1e-4, atol=0)


def test_between_measurements_the_decoders_gain_is_that_of_the_last(prior: StableDiffusionPrior):
    # z has not moved since step 0, so the remembered gain is still exact
    module, without = (distilled(prior, gamma=gamma, repulsion_saturation=0.0) for gamma in (0.2, 0.0))
    z = module.z.detach().clone()
    take_step(module, 0)
    module.z.data.copy_(z)
    expected = 0.2 * weight(module, 1)[0] * norms(score(module, 1)) / module.z[0].numel()
    torch.testing.assert_close(norms(take_step(module, 1) - take_step(without, 1)), expected, rtol=1e-5, atol=0)


def test_repulsion_moves_the_features_apart(prior: StableDiffusionPrior):
    part, before = gradients(prior, gamma=0.5)
    z = before.z.detach()
    with torch.no_grad():
        near, far = (
            torch.pdist(prior.decode(latents).flatten(1)) for latents in (z, z - 0.01 * z.norm() * part / part.norm())
        )
    assert far.mean() > near.mean()


@pytest.mark.parametrize("mode", ["relative", "absolute"])
@pytest.mark.parametrize("kind", ["latents", "pixels"])
def test_a_lone_particle_is_not_repelled(kind: str, mode: str, prior: StableDiffusionPrior, features_of: Callable):
    settings = {"num_particles": 1, "gamma_mode": mode}
    actual, without = (take_step(distilled(prior, features_of(kind), gamma=gamma, **settings)) for gamma in (5.0, 0.0))
    assert torch.isfinite(actual).all()
    torch.testing.assert_close(actual, without, rtol=1e-12, atol=0)


@pytest.mark.parametrize("mode", ["relative", "absolute"])
@pytest.mark.parametrize("kind", ["latents", "pixels"])
def test_particles_in_one_place_stay_finite(kind: str, mode: str, prior: StableDiffusionPrior, features_of: Callable):
    module = distilled(prior, features_of(kind), gamma=5.0, gamma_mode=mode)
    module.z.data[:] = module.z.data[:1].clone()
    assert torch.isfinite(take_step(module)).all()


def test_a_gate_of_zero_is_no_repulsion(prior: StableDiffusionPrior):
    gated, without = distilled(prior, gamma=5.0, repulsion_until=0), distilled(prior, gamma=0.0)
    assert torch.equal(take_step(gated), take_step(without))


def test_the_gate_shuts_after_its_share_of_the_steps(prior: StableDiffusionPrior):
    for step, alike in ((9, False), (10, True)):
        repelled, without = (distilled(prior, gamma=gamma, repulsion_until=0.5) for gamma in (5.0, 0.0))
        assert torch.equal(take_step(repelled, step), take_step(without, step)) == alike


def test_frozen_parts_are_neither_in_checkpoints_nor_trained(prior: StableDiffusionPrior, tiny_features: ViTFeatures):
    module = distilled(prior, tiny_features)
    assert set(module.state_dict()) == {"z", "x", "decoder_gain"}
    assert {name for name, _ in module.named_parameters()} == {"z", "x"}
    assert not any("prior" in name or "features" in name for name in module.hparams)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": -1.0}, "^gamma must be at least 0, got -1"),
        ({"gamma_mode": "strong"}, "^gamma_mode must be one of relative, absolute, got 'strong'"),
        ({"repulsion_until": -0.5}, "^repulsion_until must be from 0 to 1, got -0.5"),
        ({"repulsion_saturation": -1.0}, "^repulsion_saturation must be at least 0, got -1"),
        ({"weighting": "cubic"}, "^weighting must be one of .*, got 'cubic'"),
        ({"lr_z": 0.0}, "^lr_z must be above 0, got 0"),
        ({"decoder_std": 0.0}, "^decoder_std must be above 0, got 0"),
    ],
)
def test_settings_out_of_range_are_refused_with_the_value(settings: dict, message: str, prior: StableDiffusionPrior):
    with pytest.raises(InputError, match=message):
        distilled(prior, **settings)


class Steps(L.Callback):
    """The step sizes of a run."""

    def __init__(self) -> None:
        self.lrs: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, *args) -> None:
        self.lrs.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_step_size_falls_along_half_a_cosine(tiny_prior: StableDiffusionPrior):
    steps, physics = Steps(), inpainting(tiny_prior.image_shape, mask="half")
    trainer = {"accelerator": "cpu", "enable_progress_bar": False}
    y = physics.A(torch.zeros(1, *tiny_prior.image_shape))
    settings = {"num_particles": 2, "num_steps": 4, "lr_z": 0.4, "callbacks": [steps], "trainer": trainer}
    solve(y, physics, tiny_prior, method=Distilled, **settings)
    assert steps.lrs == pytest.approx([0.4, 0.2 * (1 + 0.5**0.5), 0.2, 0.2 * (1 - 0.5**0.5)])
