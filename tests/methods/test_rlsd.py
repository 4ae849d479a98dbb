"""RLSD as a whole: its settings, its refinement, what its runs depend on, and problems with known answers."""

import copy

import lightning as L
import pytest
import torch
from deepinv.physics import Denoising, GaussianNoise, LinearPhysics
from support.problems import make, predicted
from support.steps import optimizers_of, take_step
from support.trainers import trainer_with
from torch import Tensor

from benchmarks.distances import within_mode_spread
from rlsd_lightning import (
    RLSD,
    Distilled,
    GaussianMixturePrior,
    InputError,
    LatentFeatures,
    Measurement,
    StableDiffusionPrior,
    solve,
)
from rlsd_lightning.errors import NonFiniteError
from rlsd_lightning.functional.metrics import mode_total_variation
from rlsd_lightning.operators import inpainting

FORMS = pytest.mark.parametrize(
    "form", [{}, {"augmented": False}, {"refine_share": 0.0}, {"refine_share": 1.0}], ids=str
)
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma_mode": "strong"}, "^gamma_mode must be one of relative, absolute, got 'strong'"),
        ({"refine_share": 1.5}, "^refine_share must be from 0 to 1, got 1.5"),
        ({"repulsion_until": 500}, "^repulsion_until must be from 0 to 1, got 500"),
        ({"guidance_scale": -1.0}, "^guidance_scale must be at least 0, got -1"),
        ({"eta": -0.5}, "^eta must be at least 0, got -0.5"),
        ({"eta": float("nan")}, "^eta must be at least 0, got nan"),
        ({"image_std": 0.0}, "^image_std must be above 0, got 0"),
        ({"weighting": "cubic"}, "^weighting must be one of linear, .*, got 'cubic'"),
        ({"gamma": -1.0}, "^gamma must be at least 0, got -1"),
        ({"distillation_weight": -1.0}, "^distillation_weight must be at least 0, got -1"),
        ({"lr_z": -1.0}, "^lr_z must be above 0, got -1"),
        ({"decoder_std": 0.0}, "^decoder_std must be above 0, got 0"),
    ],
)
def test_settings_out_of_range_are_refused_with_the_value(
    settings: dict, message: str, tiny_prior: StableDiffusionPrior
):
    with pytest.raises(InputError, match=message):
        make(tiny_prior, **settings)


@pytest.mark.parametrize("name", ["x_update", "renew_every", "final_lr", "rho", "room", "sampling_share", "zeta"])
def test_options_that_are_gone_are_not_taken(name: str, tiny_prior: StableDiffusionPrior):
    with pytest.raises(TypeError, match=name):
        make(tiny_prior, **{name: 1})


# The refinement


@pytest.mark.parametrize("augmented", [True, False])
@pytest.mark.parametrize("step", [0, 5])
def test_the_refinement_follows_distillation_and_coupling_at_the_latents(
    step: int, augmented: bool, prior: StableDiffusionPrior
):
    module = make(prior, gamma=0.5, refine_share=1.0, augmented=augmented)
    before = copy.deepcopy(module)
    actual = take_step(module, step)
    t, z = module.timesteps[step], before.z
    alpha, sigma, eps = prior.alphas[t], prior.sigmas[t], before.noise(step)
    residual = predicted(before, alpha * z.detach() + sigma * eps, step).detach() - eps
    decoded, measurement = prior.decode(z), before.measurements[0]
    mask, mu = measurement.physics.mask, before.proximal.mu(measurement, 0.08**2)
    x = (mask * measurement.y + mu * decoded.detach()) / (mask + mu)
    objective = 0.5 * (mask * decoded - measurement.y).square()
    if augmented:
        objective = 0.5 * (x - decoded).square()
        torch.testing.assert_close(module.x.detach(), x, rtol=1e-6, atol=1e-8)
    (likelihood,) = torch.autograd.grad(objective.flatten(1).mean(dim=1).sum(), z)
    expected = likelihood + 0.05 * torch.log(1 + sigma / alpha) * residual / z[0].numel()
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-10)


def test_refined_in_all_steps_it_is_distilled_without_repulsion(prior: StableDiffusionPrior):
    refined = make(prior, refine_share=1.0, antithetic=False)
    mu = refined.proximal.mu(refined.measurements[0], 0.08**2)
    distilled = make(prior, method=Distilled, gamma=0.0, distillation_weight=0.05 * (1 + mu))
    adam = optimizers_of(refined)
    gradient = take_step(refined, 0, optimizers=adam)
    torch.testing.assert_close((1 + mu) * gradient, take_step(distilled), rtol=1e-12, atol=0)
    torch.testing.assert_close(refined.z, distilled.z, rtol=1e-4, atol=1e-4)  # Adam's eps is beside the gradient
    assert torch.equal(refined.e, make(prior, antithetic=False).e)  # the refinement draws noise of its own


def test_particles_follow_noisy_data_less(prior: StableDiffusionPrior):
    """The data's pull in the refinement is that of a likelihood with the noise's and the decoder's variance."""
    pulls = []
    for sigma in (0.001, 0.08, 0.8):
        measurement = Measurement("one", torch.ones(1, *prior.image_shape), Denoising(GaussianNoise(sigma)))
        module = RLSD(prior, measurement, LatentFeatures(), refine_share=1.0, distillation_weight=0.0, decoder_std=0.08)
        pulls.append(take_step(module, 0).norm().item())
    assert pulls[1] / pulls[0] == pytest.approx(0.5, rel=1e-2)
    assert pulls[2] / pulls[0] == pytest.approx(1 / 101, rel=1e-2)


def test_where_latents_are_the_images_the_loop_runs_to_the_end(tiny_prior: StableDiffusionPrior):
    points = GaussianMixturePrior([[0.0, 0.0]])
    measurement = Measurement("one", torch.zeros(1, *points.image_shape), Denoising(GaussianNoise(0.1)))
    assert RLSD(points, measurement, LatentFeatures(), num_steps=10).refine_from == 10
    assert RLSD(points, measurement, LatentFeatures(), num_steps=10, refine_share=0.5).refine_from == 5
    assert make(tiny_prior, num_steps=10).refine_from == 8


@pytest.mark.parametrize(("share", "taken"), [(1.0, 10), (0.5, 5), (0.1, 1), (0.0, 0)])
def test_adam_counts_the_steps_of_the_refinement_only(share: float, taken: int, tiny_prior, measurement, tmp_path):
    module = RLSD(tiny_prior, measurement, LatentFeatures(), num_steps=10, refine_share=share, num_particles=2)
    trainer = trainer_with(tmp_path)
    trainer.fit(module)
    sgd, adam = trainer.optimizers
    assert adam.state[module.z].get("step", 0) == taken
    assert sgd.param_groups[0]["lr"] == 1
    assert trainer.global_step == 10  # what checkpoints are timed by


def test_a_start_with_less_noise_leaves_as_many_steps_for_the_refinement(tiny_prior, measurement: Measurement):
    start = tuple(torch.zeros(2, *shape) for shape in (tiny_prior.latent_shape, tiny_prior.image_shape))
    settings = {"num_particles": 2, "num_steps": 20, "refine_share": 0.2, "warm_share": 0.5}
    cold, warm = (
        RLSD(tiny_prior, of, LatentFeatures(), **settings) for of in (measurement, measurement._replace(start=start))
    )
    assert (len(cold.timesteps), cold.refine_from) == (20, 16)
    assert (len(warm.timesteps), warm.refine_from) == (10, 6)


# Whole runs


def run(tiny_prior: StableDiffusionPrior, **settings) -> Tensor:
    physics = inpainting(tiny_prior.image_shape, mask="half")
    truth = 2 * torch.rand(1, *tiny_prior.image_shape, generator=torch.Generator().manual_seed(0)) - 1
    return solve(physics.A(truth), physics, tiny_prior, **{"num_steps": 4, "trainer": QUIET, **settings}).particles


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


@pytest.mark.parametrize("refine_share", [0.0, 1.0])
def test_a_step_leaves_no_mark_on_the_global_generator_and_takes_nothing_from_it(
    refine_share: float, prior: StableDiffusionPrior
):
    gradients = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        gradients.append(take_step(make(prior, refine_share=refine_share)))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*gradients)


def test_proximal_solution_agrees_with_what_was_seen(tiny_prior: StableDiffusionPrior):
    physics = inpainting(tiny_prior.image_shape, mask="half")
    truth = 2 * torch.rand(1, *tiny_prior.image_shape, generator=torch.Generator().manual_seed(0)) - 1
    # x = (y + mu D(z)) / (1 + mu) with mu = 0.001, |D(z)| of order one
    assert (physics.A(run(tiny_prior)) - physics.A(truth)).abs().max() < 0.01


def test_particles_that_become_infinite_are_no_answer(tiny_prior: StableDiffusionPrior) -> None:
    with pytest.raises(NonFiniteError, match="no longer finite"):
        run(tiny_prior, guidance_scale=1e30)


# Known posteriors


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
    settings = {"num_particles": 16, "num_steps": 100, "gamma": 0.0, "refine_share": 0.2, "trainer": QUIET}
    images = solve(y, Matrix(matrix, noise_std), prior, **settings).particles
    std = posterior.covariances[0].diagonal().sqrt()
    error = ((images.mean(0) - posterior.means[0]) / std).norm()
    # The weights of score distillation are not Bayes' at any one noise level, so the balance is near the mean and not
    # on it: a fifth of the posterior's own standard deviation. The prior's mean is more than ten times as far off.
    assert ((prior.mixture.means[0] - posterior.means[0]) / std).norm() > 2
    assert error < 0.2


def test_points_beyond_the_range_of_images_are_not_clipped():
    prior = GaussianMixturePrior([[3.0, -2.0]], std=0.3)
    y, physics = torch.tensor([[3.0, -2.0]]), Matrix(torch.eye(2), 0.1)
    images = solve(y, physics, prior, num_particles=2, num_steps=100, gamma=0.0, trainer=QUIET).particles
    # the measurement and the prior agree: a tenth is the measurement's own noise
    torch.testing.assert_close(images, y.expand(2, -1), atol=0.1, rtol=0)


def seen(noise_std: float) -> Measurement:
    """Of a point in the plane, the first coordinate."""
    return Measurement("seen", torch.tensor([[1.9]]), Matrix(torch.tensor([[1.0, 0.0]]), noise_std))


@pytest.mark.usefixtures("noise_in_one_draw")
def test_the_loop_without_a_pull_draws_from_the_prior():
    prior = GaussianMixturePrior([[-2.0, 2.0], [2.0, 0.0], [0.0, -2.0]], std=0.3, weights=[0.2, 0.3, 0.5])
    settings = {"gamma": 0.0, "num_particles": 1000, "refine_share": 0.0, "guidance_scale": 0.0, "num_steps": 500}
    module = RLSD(prior, seen(0.1), LatentFeatures(), outlier_ratio=None, **settings)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    L.Trainer(max_epochs=1, **QUIET, **quiet).fit(module)
    points = module.z.detach()  # the results would be moved to the measurement
    modes = prior.mixture.assign(points)
    # as for unguided DPS: 1,000 draws are 0.02 off on average, and ancestral steps a little too narrow
    assert mode_total_variation(modes, prior.mixture.weights) < 0.06
    assert within_mode_spread(points, modes, prior.mixture.covariances).item() == pytest.approx(1, abs=0.08)


TWO_MODES = [[2.0, 1.5], [2.0, -1.5], [-2.0, 0.0]]
"""Two modes at the seen coordinate, and one far from it."""


def draws(method: type = RLSD, **settings) -> Tensor:
    measurement, prior = seen(0.1), GaussianMixturePrior(TWO_MODES, std=0.3)
    settings = {"gamma": 0.0, "trainer": QUIET, **settings}
    return solve(measurement.y, measurement.physics, prior, method=method, **settings).particles


@pytest.mark.usefixtures("noise_in_one_draw")
@pytest.mark.parametrize("refine_share", [0.5, 0.0])
def test_particles_take_the_modes_that_the_measurement_allows(refine_share: float):
    points = draws(refine_share=refine_share, num_particles=400)
    modes = GaussianMixturePrior(TWO_MODES, std=0.3).mixture.assign(points)
    shares = torch.bincount(modes, minlength=3) / len(points)
    assert shares[2] < 0.02
    assert (shares[:2] - 0.5).abs().max() < 0.1  # four standard errors


@pytest.mark.usefixtures("noise_in_one_draw")
def test_distillation_alone_takes_fewer_of_the_modes():
    # at equal settings; the loop's default of antithetic noise would widen it
    spreads = [draws(method, num_particles=100, antithetic=False)[:, 1].std() for method in (Distilled, RLSD)]
    assert spreads[1] > 1.2  # of two modes at 1.5 and -1.5
    assert spreads[0] < spreads[1]
