"""RLSD's step: what it depends on, its gradient, its limits, and a problem with a known answer."""

import copy
from collections.abc import Callable

import lightning as L
import pytest
import torch
from deepinv.physics import GaussianNoise, LinearPhysics
from torch import Tensor, nn

from rlsd_lightning import (
    RLSD,
    GaussianMixturePrior,
    InputError,
    LatentFeatures,
    Measurement,
    PixelFeatures,
    StableDiffusionPrior,
    ViTFeatures,
    solve,
)
from rlsd_lightning.errors import NonFiniteError
from rlsd_lightning.functional.kernels import log_density, median_bandwidth
from rlsd_lightning.operators import inpainting, super_resolution

F64 = torch.float64
FORMS = pytest.mark.parametrize(
    "form",
    [{}, {"x_update": "adam", "sampling_share": 0.0}, {"augmented": False}],
    ids=["proximal", "adam", "not_augmented"],
)
KINDS = pytest.mark.parametrize("kind", ["latents", "pixels", "vit"])


@pytest.fixture
def prior(tiny_prior: StableDiffusionPrior) -> StableDiffusionPrior:
    return tiny_prior.double()


@pytest.fixture
def features_of(tiny_features: ViTFeatures) -> Callable[[str], nn.Module]:
    return {"latents": LatentFeatures(), "pixels": PixelFeatures(), "vit": tiny_features.double()}.__getitem__


def make(prior: StableDiffusionPrior, features: nn.Module | None = None, **settings) -> RLSD:
    """A half-face problem of a random image, all in float64."""
    physics = inpainting(prior.image_shape, mask="half").double()
    truth = 2 * torch.rand(1, *prior.image_shape, generator=torch.Generator().manual_seed(0), dtype=F64) - 1
    measurement = Measurement("face", physics.A(truth), physics)
    settings = {"num_particles": 3, "num_steps": 20, "sigma_break": 1000, "sampling_share": 0.0, **settings}
    return RLSD(prior, measurement, features or PixelFeatures(), **settings).double()


def test_measurements_of_one_name_are_refused(prior: StableDiffusionPrior, measurement: Measurement) -> None:
    with pytest.raises(InputError, match="no two alike are expected, got"):
        RLSD(prior, [measurement, measurement], PixelFeatures())


def test_the_callers_operator_stays_where_it_is(tiny_prior: StableDiffusionPrior, measurement: Measurement) -> None:
    module = RLSD(copy.deepcopy(tiny_prior), measurement, PixelFeatures()).to("meta")  # as if it were a GPU
    module.on_fit_start()
    assert {each.physics.mask.device.type for each in module.measurements} == {"meta"}
    assert measurement.physics.mask.device.type == "cpu"
    RLSD(tiny_prior, measurement, PixelFeatures())


def test_a_lone_particle_costs_no_features(prior: StableDiffusionPrior) -> None:
    class Refusing(nn.Module):
        def forward(self, z: Tensor, images: Tensor) -> Tensor:
            raise AssertionError("nothing to compare")

    assert gradient(make(prior, Refusing(), num_particles=1)).abs().sum() > 0


def test_particles_that_become_infinite_are_no_answer(tiny_prior: StableDiffusionPrior, measurement) -> None:
    settings = {"num_steps": 4, "zeta": 1e30, "trainer": {"accelerator": "cpu", "enable_progress_bar": False}}
    with pytest.raises(NonFiniteError, match="no longer finite"):
        solve(measurement.y, measurement.physics, tiny_prior, **settings)


def gradient(module: RLSD, step: int = 0) -> Tensor:
    """The gradient of z after one training step."""
    module.zero_grad()
    module.training_step((step, module.timesteps[step]), step).backward()
    return module.z.grad.clone()


def weight(module: RLSD, step: int = 0) -> tuple[Tensor, Tensor]:
    """lambda log(1 + sigma / alpha), and sigma."""
    t = module.timesteps[step]
    alpha, sigma = module.prior.alphas[t], module.prior.sigmas[t]
    return module.hparams.distillation_weight * torch.log(1 + sigma / alpha), sigma


def score(module: RLSD, step: int = 0) -> Tensor:
    """The distillation residual, from the network itself."""
    t, eps = module.timesteps[step], module.noise(step)
    z_t = module.prior.alphas[t] * module.z.detach() + module.prior.sigmas[t] * eps
    with torch.no_grad():
        return module.prior.denoiser(z_t, t, module.prior.text.expand(len(z_t), -1, -1)).sample - eps


def norms(value: Tensor) -> Tensor:
    return value.flatten(1).norm(dim=1)


# What a particle depends on


@FORMS
def test_without_repulsion_and_antithetic_noise_a_particle_ignores_how_many_there_are(
    form: dict, prior: StableDiffusionPrior
):
    alone, among = (make(prior, gamma=0.0, num_particles=count, antithetic=False, **form) for count in (1, 3))
    torch.testing.assert_close(gradient(among)[:1], gradient(alone), rtol=1e-8, atol=1e-12)
    for module in (alone, among):
        config = module.configure_optimizers()
        config["optimizer"].step()
    torch.testing.assert_close(among.z[:1], alone.z, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(among.x[:1], alone.x, rtol=1e-8, atol=1e-10)
    assert not torch.equal(alone.z, make(prior, num_particles=1).z)  # the step did something


def test_with_repulsion_a_particle_does_not_ignore_the_others(prior: StableDiffusionPrior):
    settings = {"gamma": 1.0, "gamma_mode": "absolute"}
    two, three = (gradient(make(prior, LatentFeatures(), num_particles=count, **settings)) for count in (2, 3))
    assert not torch.allclose(two, three[:2], rtol=1e-4)


def test_a_step_leaves_no_mark_on_the_global_generator_and_takes_nothing_from_it(prior: StableDiffusionPrior):
    gradients = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        gradients.append(gradient(make(prior)))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*gradients)


def test_another_seed_draws_other_particles_and_other_noise(prior: StableDiffusionPrior):
    first, second = make(prior, seed=0), make(prior, seed=1)
    for values in ((first.z, second.z), (first.x, second.x), (first.noise(3), second.noise(3))):
        assert not torch.isclose(*values).any(dim=-1).all()
    assert not torch.equal(first.noise(3), first.noise(4))


def test_a_step_that_is_not_the_batch_is_a_schedule_not_restored(prior: StableDiffusionPrior):
    with pytest.raises(AssertionError, match="not restored"):
        make(prior).training_step((1, 900), 0)


# The gradient


@FORMS
def test_gradient_without_repulsion_is_that_of_the_written_objective(form: dict, prior: StableDiffusionPrior):
    module = make(prior, gamma=0.0, rho=0.3, **form)
    x, actual = module.x.detach().clone(), gradient(module)
    decoded = prior.decode(module.z)
    (_, y, physics, *_), mu = module.measurements[0], module.mu(module.measurements[0], 0.08**2)
    mask = physics.mask
    if not form:
        x = (mask * y + mu * decoded.detach()) / (mask + mu)
        rho = 1 + mu
        torch.testing.assert_close(module.x.detach(), x, rtol=1e-6, atol=1e-8)  # the proximal step of a mask
    elif "x_update" in form:
        rho = 0.3
    data = (mask * decoded - y) if "augmented" in form else rho**0.5 * (x - decoded)
    objective = sum(0.5 * particle.square().mean() for particle in data)
    (likelihood,) = torch.autograd.grad(objective, module.z)
    expected = likelihood + weight(module)[0] * score(module) / module.z[0].numel()
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-10)


def test_published_form_sends_a_gradient_to_the_auxiliaries(prior: StableDiffusionPrior):
    module = make(prior, gamma=0.0, rho=0.3, x_update="adam")
    gradient(module)
    decoded = prior.decode(module.z).detach()
    ((_, y, physics, *_),) = module.measurements
    expected = (physics.mask * module.x - y + 0.3 * (module.x - decoded)) / module.x[0].numel()
    torch.testing.assert_close(module.x.grad, expected.detach(), rtol=1e-9, atol=1e-12)


@KINDS
@pytest.mark.parametrize("step", [0, 3])
def test_absolute_repulsion_is_autograd_of_log_density_through_the_decoder(
    kind: str, step: int, prior: StableDiffusionPrior, features_of: Callable
):
    gamma, features = 2.0, features_of(kind)
    actual, without = (gradient(make(prior, features, gamma=g, gamma_mode="absolute"), step) for g in (gamma, 0.0))
    module = make(prior, features)
    f = features(module.z, prior.decode(module.z))
    others = f.detach()
    density = log_density(f, others, median_bandwidth(others)).sum()
    (direct,) = torch.autograd.grad(density, module.z)
    w, sigma = weight(module, step)
    expected = w * gamma * sigma * direct / module.z[0].numel()
    assert (expected.norm() > 1e-3 * without.norm()).item()  # not lost beside the rest
    # relative to the largest element: small ones are differences of large ones
    assert (actual - without - expected).abs().max() < 1e-9 * expected.abs().max()


@KINDS
@pytest.mark.parametrize("gamma", [0.1, 0.5])
def test_relative_repulsion_has_gamma_times_the_scores_norm(
    kind: str, gamma: float, prior: StableDiffusionPrior, features_of: Callable
):
    module = make(prior, features_of(kind), gamma=gamma)
    part = gradient(module) - gradient(make(prior, features_of(kind), gamma=0.0))
    expected = gamma * weight(module)[0] * norms(score(module)) / module.z[0].numel()
    # norms are taken in float32
    torch.testing.assert_close(norms(part), expected, rtol=1e-5, atol=0)


def test_relative_repulsion_falls_with_the_square_of_the_images_distance(prior: StableDiffusionPrior):
    room = 3.0  # far more than images of random latents differ by
    module = make(prior, gamma=0.3, room=room)
    part = gradient(module) - gradient(make(prior, gamma=0.0))
    images = prior.decode(module.z.detach())  # of 32 pixels a side: their own thumbnails
    squares = (images[:, None] - images).square().flatten(2).mean(dim=2).sum(dim=1) / 2
    expected = 0.3 * squares / room**2 * weight(module)[0] * norms(score(module)) / module.z[0].numel()
    assert squares.max() < room**2
    torch.testing.assert_close(norms(part), expected, rtol=1e-5, atol=0)


def test_without_room_repulsion_is_as_strong_for_near_particles_as_for_far_ones(prior: StableDiffusionPrior):
    module = make(prior, gamma=0.3, room=0.0)
    module.z.data[:] = module.z.data[:1] + 1e-3 * module.z.data
    without = make(prior, gamma=0.0)
    without.z.data.copy_(module.z.data)
    expected = 0.3 * weight(module)[0] * norms(score(module)) / module.z[0].numel()
    torch.testing.assert_close(norms(gradient(module) - gradient(without)), expected, rtol=1e-4, atol=0)


def test_between_measurements_the_decoders_gain_is_that_of_the_last(prior: StableDiffusionPrior):
    # z has not moved since step 0, so the remembered gain is still exact
    module = make(prior, gamma=0.2)
    gradient(module, 0)
    part = gradient(module, 1) - gradient(make(prior, gamma=0.0), 1)
    expected = 0.2 * weight(module, 1)[0] * norms(score(module, 1)) / module.z[0].numel()
    torch.testing.assert_close(norms(part), expected, rtol=1e-5, atol=0)


def test_repulsion_moves_the_features_apart(prior: StableDiffusionPrior):
    part = gradient(make(prior, gamma=0.5)) - gradient(make(prior, gamma=0.0))
    z = make(prior).z.detach()
    with torch.no_grad():
        before, after = (
            torch.pdist(prior.decode(latents).flatten(1)) for latents in (z, z - 0.01 * z.norm() * part / part.norm())
        )
    assert after.mean() > before.mean()


# Limits


@FORMS
@pytest.mark.parametrize("mode", ["relative", "absolute"])
@pytest.mark.parametrize("kind", ["latents", "pixels"])
def test_a_lone_particle_is_not_repelled(
    kind: str, mode: str, form: dict, prior: StableDiffusionPrior, features_of: Callable
):
    settings = {"num_particles": 1, "gamma_mode": mode, **form}
    actual, without = (gradient(make(prior, features_of(kind), gamma=gamma, **settings)) for gamma in (5.0, 0.0))
    assert torch.isfinite(actual).all()
    torch.testing.assert_close(actual, without, rtol=1e-12, atol=0)


@pytest.mark.parametrize("mode", ["relative", "absolute"])
@pytest.mark.parametrize("kind", ["latents", "pixels"])
def test_particles_in_one_place_stay_finite(kind: str, mode: str, prior: StableDiffusionPrior, features_of: Callable):
    module = make(prior, features_of(kind), gamma=5.0, gamma_mode=mode)
    module.z.data[:] = module.z.data[:1].clone()
    assert torch.isfinite(gradient(module)).all()


def test_a_gate_of_zero_is_no_repulsion(prior: StableDiffusionPrior):
    assert torch.equal(gradient(make(prior, gamma=5.0, sigma_break=0)), gradient(make(prior, gamma=0.0)))


def test_the_gate_shuts_after_its_share_of_the_steps(prior: StableDiffusionPrior):
    # 20 steps, 500 thousandths
    module, without = make(prior, gamma=5.0, sigma_break=500), make(prior, gamma=0.0)
    assert not torch.allclose(gradient(module, 9), gradient(without, 9))
    assert torch.equal(gradient(module, 10), gradient(without, 10))


def test_frozen_parts_are_neither_in_checkpoints_nor_trained(prior: StableDiffusionPrior, tiny_features: ViTFeatures):
    module = make(prior, tiny_features)
    assert set(module.state_dict()) == {"z", "x", "z_t", "decoder_gain"}
    assert {name for name, _ in module.named_parameters()} == {"z", "x"}
    assert not any("prior" in name or "features" in name for name in module.hparams)


def test_a_step_gives_the_prior_no_gradient(prior: StableDiffusionPrior):
    gradient(make(prior, gamma=1.0))
    assert all(parameter.grad is None for parameter in prior.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_particles": 0}, "num_particles.*got 0"),
        ({"num_particles": -2}, "num_particles.*got -2"),
        ({"num_steps": 0}, "num_steps.*1000.*got 0"),
        ({"num_steps": 1001}, "num_steps.*1000.*got 1001"),
        ({"gamma_mode": "strong"}, "gamma_mode.*'strong'"),
        ({"x_update": "sgd"}, "x_update.*'sgd'"),
        ({"sampling_share": 1.5}, "sampling_share must be from 0 to 1.*got 1.5"),
        ({"sampling_share": 0.5, "x_update": "adam"}, "0 where method.x_update is adam, got 0.5"),
        ({"zeta": -1.0}, "zeta.*got -1"),
        ({"image_std": 0.0}, "image_std.*got 0"),
        ({"seed": -1}, "seed.*got -1"),
        ({"weighting": "cubic"}, "'cubic'"),
        ({"gamma": -1.0}, "gamma.*got -1"),
        ({"sigma_break": -5}, "sigma_break.*got -5"),
        ({"min_mu": 0.0}, "min_mu.*got 0"),
        ({"lr_z": -1.0}, "lr_z.*got -1"),
        ({"decoder_std": 0.0}, "decoder_std.*got 0"),
    ],
)
def test_settings_out_of_range_are_refused_with_the_value(
    settings: dict, message: str, tiny_prior: StableDiffusionPrior
):
    with pytest.raises(InputError, match=message):
        make(tiny_prior, **settings)


def test_operator_that_does_not_take_the_priors_images_is_refused(tiny_prior: StableDiffusionPrior):
    physics = inpainting((3, 16, 16), mask="half")
    with pytest.raises(InputError, match=r"\(3, 32, 32\)"):
        RLSD(tiny_prior, Measurement("face", torch.zeros(1, 3, 16, 16), physics), PixelFeatures())


def test_measurement_that_the_operator_does_not_make_is_refused_with_both_shapes(tiny_prior: StableDiffusionPrior):
    physics = super_resolution(tiny_prior.image_shape)
    with pytest.raises(InputError, match=r"\(1, 3, 8, 8\).*\(1, 3, 16, 16\)"):
        RLSD(tiny_prior, Measurement("face", torch.zeros(1, 3, 16, 16), physics), PixelFeatures())


# Whole runs


def run(tiny_prior: StableDiffusionPrior, **settings) -> Tensor:
    physics = inpainting(tiny_prior.image_shape, mask="half")
    truth = 2 * torch.rand(1, *tiny_prior.image_shape, generator=torch.Generator().manual_seed(0)) - 1
    trainer = {"accelerator": "cpu", "enable_progress_bar": False}
    return solve(physics.A(truth), physics, tiny_prior, num_steps=4, trainer=trainer, **settings)


@FORMS
def test_solve_returns_as_many_images_as_asked(form: dict, tiny_prior: StableDiffusionPrior):
    images = run(tiny_prior, num_particles=2, **form)
    assert images.shape == (2, 3, 32, 32)
    assert torch.isfinite(images).all()
    assert images.dtype == torch.float32
    assert not torch.equal(images[0], images[1])


def test_solve_is_repeatable_whatever_the_global_seed(tiny_prior: StableDiffusionPrior):
    torch.manual_seed(5)
    first = run(tiny_prior, seed=1)
    torch.manual_seed(6)
    assert torch.equal(run(tiny_prior, seed=1), first)
    assert not torch.allclose(run(tiny_prior, seed=2), first)


def test_proximal_solution_agrees_with_what_was_seen(tiny_prior: StableDiffusionPrior):
    physics = inpainting(tiny_prior.image_shape, mask="half")
    truth = torch.rand(1, *tiny_prior.image_shape, generator=torch.Generator().manual_seed(0))
    truth = 2 * truth - 1
    images = run(tiny_prior)
    # x = (y + mu D(z)) / (1 + mu) with mu = 0.001, |D(z)| of order one
    assert (physics.A(images) - physics.A(truth)).abs().max() < 0.01


class Steps(L.Callback):
    """The step sizes of a run."""

    def __init__(self) -> None:
        self.lrs: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, *args) -> None:
        self.lrs.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_step_size_falls_along_half_a_cosine(tiny_prior: StableDiffusionPrior):
    steps = Steps()
    run(tiny_prior, lr_z=0.4, final_lr=0.5, callbacks=[steps])
    assert steps.lrs == pytest.approx([0.4, 0.2 + 0.1 * (1 + 0.5**0.5), 0.3, 0.2 + 0.1 * (1 - 0.5**0.5)])


# A known posterior


class Matrix(LinearPhysics):
    """y = M x for points."""

    def __init__(self, matrix: Tensor, sigma: float) -> None:
        super().__init__(noise_model=GaussianNoise(sigma=sigma))
        self.register_buffer("matrix", matrix)

    def A(self, x: Tensor, **kwargs) -> Tensor:  # noqa: N802
        return x @ self.matrix.T

    def A_adjoint(self, y: Tensor, **kwargs) -> Tensor:  # noqa: N802
        return y @ self.matrix


@pytest.mark.parametrize("noise_std", [0.05, 0.1])
def test_particles_of_a_gaussian_prior_reach_the_posterior_mean(noise_std: float):
    prior = GaussianMixturePrior([[0.2, -0.3, 0.1]], std=0.3)
    matrix, y = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.3, 1.0]]), torch.tensor([[0.5, 0.3]])
    posterior = prior.mixture.posterior(matrix, y[0], noise_std)
    trainer = {"accelerator": "cpu", "enable_progress_bar": False}
    # with the default weight, found for images, the balance is a third of a standard deviation from the mean
    settings = {"num_particles": 16, "num_steps": 100, "gamma": 0.0, "distillation_weight": 0.3, "trainer": trainer}
    images = solve(y, Matrix(matrix, noise_std), prior, **settings)
    std = posterior.covariances[0].diagonal().sqrt()
    error = ((images.mean(0) - posterior.means[0]) / std).norm()
    # The weights of score distillation are not Bayes' at any one noise level, so the balance is near the mean and not
    # on it: a quarter of the posterior's own standard deviation. The prior's mean is about ten times as far off.
    assert ((prior.mixture.means[0] - posterior.means[0]) / std).norm() > 2
    assert error < 0.25


def test_points_beyond_the_range_of_images_are_not_clipped():
    prior = GaussianMixturePrior([[3.0, -2.0]], std=0.3)
    trainer = {"accelerator": "cpu", "enable_progress_bar": False}
    y, physics = torch.tensor([[3.0, -2.0]]), Matrix(torch.eye(2), 0.1)
    images = solve(y, physics, prior, num_particles=2, num_steps=100, gamma=0.0, trainer=trainer)
    # the measurement and the prior agree: a tenth is the measurement's own noise
    torch.testing.assert_close(images, y.expand(2, -1), atol=0.1, rtol=0)
