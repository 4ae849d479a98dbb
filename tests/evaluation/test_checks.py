"""Checks without a truth: closed forms, right sets that pass, and wrong ones that fail."""

import math
from types import SimpleNamespace

import pytest
import torch
from deepinv.physics import GaussianNoise, LinearPhysics
from torch import Tensor

from rlsd_lightning import GaussianMixturePrior, Measurement, Prior
from rlsd_lightning.evaluation.checks import principal_directions, truth_free_checks
from rlsd_lightning.evaluation.checks import whiteness as whiteness_checks
from rlsd_lightning.evaluation.checks.predictive import predictive_check
from rlsd_lightning.evaluation.checks.stein import (
    Scores,
    posterior_scores,
    stein_check,
    stein_discrepancy,
    stein_spread,
)
from rlsd_lightning.evaluation.checks.whiteness import twice_median, whiteness
from rlsd_lightning.evaluation.health import HealthMetrics
from rlsd_lightning.evaluation.scores import Solved
from rlsd_lightning.operators import colorization, denoising, gaussian_blur, inpainting, super_resolution
from rlsd_lightning.operators.noise import PoissonNoise
from rlsd_lightning.operators.proximal import ProximalSteps, proximal_step

SHAPE = (3, 32, 32)
PRIOR_STD, DECODER_STD = 0.3, 0.05


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class GaussianPrior(Prior):
    """Images of independent normal values with a deviation; the latent is the image, and its score is exact."""

    def __init__(self, std: float = PRIOR_STD) -> None:
        levels = GaussianMixturePrior([[0.0]])
        super().__init__(levels.alphas, levels.sigmas, SHAPE, SHAPE)
        self.std = std
        self.freeze()

    def network(self, z_t: Tensor, t: int) -> Tensor:
        return self.sigma(t) * z_t / (self.alpha(t) ** 2 * self.std**2 + self.sigma(t) ** 2)


def method(measurement: Measurement, decoder_std: float = DECODER_STD, prior: Prior | None = None) -> SimpleNamespace:
    """What the checks need of a method."""
    prior = prior or GaussianPrior()
    return SimpleNamespace(
        prior=prior,
        decoder_std=decoder_std,
        has_proximal_results=decoder_std > 0,
        seed=0,
        proximal=ProximalSteps([measurement], math.prod(SHAPE), 1e-9),
        denoise=prior.denoise,
        decode=prior.decode,
    )


OPERATORS = {
    "mask": lambda sigma: inpainting(SHAPE, "half", sigma=sigma),
    "colours": lambda sigma: colorization(SHAPE, sigma=sigma),
    "averages": lambda sigma: super_resolution(SHAPE, factor=4, filter="average", sigma=sigma),
    "blur": lambda sigma: gaussian_blur(SHAPE, std=1.0, sigma=sigma),
    "noise": lambda sigma: denoising(SHAPE, sigma=sigma),
}


def exact(name: str, sigma: float, count: int = 4, prior_std: float = PRIOR_STD) -> tuple[Measurement, Solved]:
    """A measurement of a truth z + e, and exact posterior draws of z with their proximal steps.

    A proximal step from a draw of the prior's and the noise's sum is a draw of the posterior of u = z + e; given u, z is normal.
    """
    physics = OPERATORS[name](sigma)
    z, e = PRIOR_STD * normal(1, *SHAPE, seed=1), DECODER_STD * normal(1, *SHAPE, seed=2)
    noise = sigma * normal(*physics.A(z).shape, seed=3) * (physics.A(torch.ones_like(z)) != 0)
    measurement = Measurement("one", physics.A(z + e) + noise, physics)
    total = prior_std**2 + DECODER_STD**2
    weight = ProximalSteps([measurement], z.numel(), 1e-9).mu(measurement, total)
    starts = math.sqrt(total) * normal(count, *SHAPE, seed=4)
    noises = sigma * normal(count, *measurement.y.shape[1:], seed=5) * (physics.A(torch.ones_like(z)) != 0)
    u = proximal_step(physics, measurement.y + noises, starts, weight)
    share = prior_std**2 / total
    latents = share * u + math.sqrt(share) * DECODER_STD * normal(count, *SHAPE, seed=6)
    return measurement, solved(measurement, latents)


def solved(measurement: Measurement, latents: Tensor) -> Solved:
    weight = ProximalSteps([measurement], latents[0].numel(), 1e-9).mu(measurement, DECODER_STD**2)
    return Solved(measurement, proximal_step(measurement.physics, measurement.y, latents, weight), latents, latents)


def verdicts(module: SimpleNamespace, particles: Solved) -> dict[str, bool]:
    return {check.name: check.passed for check in truth_free_checks(module, particles)}


# Stein's check


@pytest.mark.parametrize("std", [0.1, 1.0, 7.0])
@pytest.mark.parametrize("count", [2, 4, 30])
def test_spread_is_the_ratio_of_variances_of_a_gaussian(count: int, std: float) -> None:
    draws = std * normal(count, 4000, seed=count)
    for factor in (0.3, 1.0, 2.0):
        found = stein_spread(factor * draws, -factor * draws / std**2)
        assert found == pytest.approx(factor**2, rel=5 / math.sqrt(4000 * (count - 1)))


@pytest.mark.parametrize("count", [2, 4, 30])
def test_discrepancy_is_the_shift_in_deviations(count: int) -> None:
    draws, shift = normal(count, 4000, seed=count), 3.0
    found = stein_discrepancy(Scores(draws + shift, -(draws + shift), -draws))
    assert found == pytest.approx(shift, rel=0.1)
    assert stein_discrepancy(Scores(draws, -draws, -draws)) < 0.2


@pytest.mark.parametrize("name", ["mask", "averages", "noise"])
@pytest.mark.parametrize("decoder_std", [0.0, DECODER_STD])
def test_score_is_that_of_the_gaussian_posterior(name: str, decoder_std: float) -> None:
    measurement, particles = exact(name, 0.3)
    module = method(measurement, decoder_std)
    found = posterior_scores(module, measurement, particles.z, normal(4, *SHAPE, seed=9))
    t = 1
    prior, physics = module.prior, measurement.physics
    alpha, sigma = prior.alpha(t), prior.sigma(t)
    shrink = alpha * PRIOR_STD**2 / (alpha**2 * PRIOR_STD**2 + sigma**2)
    residual = measurement.y - physics.A(shrink * found.z_t)
    gain = {"mask": 1.0, "averages": 0.25, "noise": 1.0}[name]  # singular values of the operator
    of_data = shrink * physics.A_adjoint(residual) / (0.3**2 + decoder_std**2 * gain**2)
    of_prior = -found.z_t / (alpha**2 * PRIOR_STD**2 + sigma**2)
    assert prior.sigma(t - 1) / prior.alpha(t - 1) < 0.04 <= sigma / alpha
    torch.testing.assert_close(found.score, of_prior + of_data, rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize("name", ["mask", "colours", "averages"])
@pytest.mark.parametrize("sigma", [0.05, 0.2])
def test_exact_draws_pass_and_wrong_sets_are_worse_the_more_wrong_they_are(name: str, sigma: float) -> None:
    measurement, particles = exact(name, sigma)
    module, z = method(measurement), particles.z

    def found(latents: Tensor) -> float:
        return stein_check(module, solved(measurement, latents)).discrepancy

    right, mean, other = found(z), z.mean(dim=0), PRIOR_STD * normal(*z.shape, seed=8)
    assert right < 0.2
    # denoised latents count as exact, though their variance is up to 0.04^2, beside 0.05^2 + 0.05^2 of what is seen
    assert stein_check(module, particles).spread == pytest.approx(1, abs=0.2)
    assert right < found(mean + 1.5 * (z - mean)) < found(mean + 2 * (z - mean)) < found(mean + 4 * (z - mean))
    assert right < found(mean + 0.6 * (z - mean)) < found(mean + 0.2 * (z - mean))  # too alike in all directions
    assert (
        right < found(0.8 * z + 0.2 * other[:1]) < found(0.4 * z + 0.6 * other[:1]) < found(other[:1].expand_as(z) + 0)
    )
    reference = stein_check(module, particles).reference
    assert reference > 3 * right


@pytest.mark.parametrize("std", [0.08, 0.9, 2.0])
def test_draws_under_another_prior_are_told_from_right_ones(std: float) -> None:
    measurement, right = exact("mask", 0.1)
    wrong = exact("mask", 0.1, prior_std=std)[1]
    module = method(measurement)
    assert stein_check(module, wrong).discrepancy > 3 * stein_check(module, right).discrepancy


def test_mixture_draws_have_no_discrepancy() -> None:
    means = normal(3, 200, seed=1)
    prior = GaussianMixturePrior(means, std=0.3)
    physics = denoising((1, 1, 200), sigma=0.5)
    y = means[:1] + 0.3 * normal(1, 200, seed=2) + 0.5 * normal(1, 200, seed=3)
    posterior = prior.mixture.posterior(torch.eye(200), y[0], 0.5)
    measurement = Measurement("points", y, physics)
    module = method(measurement, 0.0, prior)
    found = {}
    for factor in (0.5, 1.0, 2.0):
        z = y.mul(0) + posterior.sample(6, torch.Generator().manual_seed(4))
        z = posterior.means[0] + factor * (z - posterior.means[0])
        found[factor] = stein_check(module, Solved(measurement, z, z, z)).discrepancy
    assert found[1.0] < 0.2
    assert min(found[0.5], found[2.0]) > 2 * found[1.0]


def test_one_particle_or_unknown_noise_has_no_stein_check() -> None:
    measurement, particles = exact("mask", 0.1)
    module = method(measurement)
    assert stein_check(module, Solved(*particles[:3], particles.z[:1])) is None
    measurement.physics.noise_model = GaussianNoise(0.0)
    assert stein_check(module, particles) is None


# residuals


@pytest.mark.parametrize("name", sorted(OPERATORS))
@pytest.mark.parametrize("sigma", [0.005, 0.05, 0.3])
def test_exact_draws_pass_all_checks(name: str, sigma: float) -> None:
    measurement, particles = exact(name, sigma)
    found = verdicts(method(measurement), particles)
    assert {"residual_size", "residual_correlation", "residual_distribution", "latent_residual"} <= found.keys()
    assert all(found.values())


@pytest.mark.parametrize("name", ["mask", "colours", "noise"])
def test_p_values_of_exact_draws_are_spread_over_the_unit_interval(name: str) -> None:
    p_values = []
    for seed in range(20):
        measurement, particles = exact(name, 0.1, count=1)
        physics, y = measurement.physics, measurement.y
        z = particles.z  # another measurement of the same draw: the draw is then one of its posterior
        y = physics.A(z + DECODER_STD * normal(*z.shape, seed=100 + seed))
        y = y + 0.1 * normal(*y.shape, seed=200 + seed) * (physics.A(torch.ones_like(z)) != 0)
        measurement = measurement._replace(y=y, name=str(seed))
        checks = truth_free_checks(method(measurement), solved(measurement, z))
        p_values.append([check.p_value for check in checks if check.p_value is not None])
    least = torch.tensor(p_values).amin(dim=0)
    assert least.min() > 1e-3
    assert torch.tensor(p_values).median(dim=0).values.min() > 0.1


def test_noise_of_another_kind_or_size_fails() -> None:
    size, seen = (2, 3, 32, 32), torch.ones(SHAPE, dtype=torch.bool)
    coloured = normal(2, 3, 32, 34).unfold(3, 3, 1).mean(dim=-1) * math.sqrt(3)
    laplace = torch.distributions.Laplace(0.0, math.sqrt(0.5)).icdf(torch.special.ndtr(normal(*size)))
    line = normal(*size) + torch.linspace(-1, 1, 32)
    for values, part in (
        (coloured, "white_p"),
        (laplace, "normal_p"),
        (line, "white_p"),
        (0.7 * normal(*size), "size_p"),
    ):
        assert twice_median(getattr(whiteness(values, seen), part)) < 1e-4
        assert twice_median(getattr(whiteness(normal(*size, seed=5), seen), part)) > 0.01


@pytest.mark.parametrize("most", [1, 5000])
def test_residuals_of_a_large_image_are_looked_at_in_parts(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    residuals, seen = normal(3, 3, 16, 16), torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1)) > 0.2
    whole, parts = whiteness(residuals, seen), []
    statistics = whiteness_checks._statistics
    monkeypatch.setattr(whiteness_checks, "MOST_VALUES", most)
    monkeypatch.setattr(
        whiteness_checks, "_statistics", lambda part, seen: parts.append(part) or statistics(part, seen)
    )
    for figure, same in zip(whole, whiteness(residuals, seen), strict=True):
        torch.testing.assert_close(same, figure)
    assert max(part.numel() for part in parts) <= max(most, seen.numel())


@pytest.mark.parametrize("part", [1, 1j])
def test_both_parts_of_complex_residuals_are_checked(part: complex) -> None:
    physics = LinearPhysics(
        A=lambda x, **_: torch.fft.fft2(x, norm="ortho"),
        A_adjoint=lambda y, **_: torch.fft.ifft2(y, norm="ortho").real,
        noise_model=GaussianNoise(sigma=0.05 * math.sqrt(2)),
    )
    noise = 0.05 * torch.view_as_complex(normal(1, *SHAPE, 2))
    for factor, passed in ((0, True), (3, False)):
        values = torch.view_as_real(noise) * torch.tensor([1 + factor * (part == 1), 1 + factor * (part == 1j)])
        measurement = Measurement("fourier", torch.view_as_complex(values.contiguous()), physics)
        latents = torch.zeros(4, *SHAPE)
        found = predictive_check(method(measurement, 0.0), Solved(measurement, latents, latents, latents))
        assert (twice_median(found.size_p) > 0.01) == passed


@pytest.mark.parametrize("name", ["mask", "colours", "noise"])
def test_latents_off_the_data_and_a_wrong_operator_fail(name: str) -> None:
    measurement, particles = exact(name, 0.05)
    module = method(measurement)
    off = solved(measurement, PRIOR_STD * normal(4, *SHAPE, seed=8))
    assert not verdicts(module, off)["latent_residual"]
    shifted = measurement._replace(y=measurement.y.roll(3, dims=-1))
    found = verdicts(module, solved(shifted, particles.z))
    assert not found["latent_residual"]
    decoded = method(measurement, 0.0)  # results that are D(z) need not follow the data
    assert not verdicts(decoded, off._replace(images=off.z))["residual_size"]


@pytest.mark.parametrize("gain", [0.3, 0.1, 0.03])
def test_photon_counts_are_compared_with_their_own_distribution(gain: float) -> None:
    physics = denoising(SHAPE, sigma=0.1)
    physics.noise_model = PoissonNoise(gain)
    image = 0.8 * torch.tanh(normal(1, *SHAPE, seed=1))
    torch.manual_seed(0)
    measurement = Measurement("photons", physics.noise_model(image), physics)
    module = method(measurement, 0.0)
    right = Solved(measurement, *[image.expand(4, -1, -1, -1)] * 3)
    assert verdicts(module, right)["residual_size"]
    assert verdicts(module, right)["residual_distribution"]
    brighter = Solved(measurement, *[(image * 0.3 + 0.65).expand(4, -1, -1, -1)] * 3)
    assert not verdicts(module, brighter)["residual_distribution"]


# collapse


@pytest.mark.parametrize(("spread", "diversity", "passed"), [(0.0, 0.0, False), (0.05, 0.001, False), (0.6, 0.2, True)])
def test_collapsed_particles_fail_where_a_null_space_is(spread: float, diversity: float, passed: bool) -> None:
    measurement, particles = exact("mask", 0.1)
    health = HealthMetrics(diversity=diversity, null_space_energy=0.4, null_space_spread=spread)
    found = {check.name: check for check in truth_free_checks(method(measurement), particles, health)}
    assert found["null_space_spread"].passed == passed
    closed = health._replace(null_space_energy=0.01)
    assert "null_space_spread" not in {each.name for each in truth_free_checks(method(measurement), particles, closed)}


# directions


@pytest.mark.parametrize("count", [2, 4, 9])
def test_directions_are_those_of_the_covariance(count: int) -> None:
    images = normal(count, *SHAPE, seed=count)
    found = principal_directions(images)
    values = torch.linalg.svdvals((images - images.mean(dim=0)).flatten(1)).square()
    kept = min(3, count - 1)
    torch.testing.assert_close(found.shares, (values / values.sum())[:kept])
    covariance = torch.cov(images.flatten(1).T)
    for deviation, value in zip(found.deviations.flatten(1), values / (count - 1), strict=False):
        torch.testing.assert_close(covariance @ deviation, value * deviation, rtol=1e-3, atol=1e-3)
        assert deviation.norm().item() == pytest.approx(math.sqrt(value), rel=1e-4)


def test_a_known_direction_is_found() -> None:
    pattern = normal(1, *SHAPE)
    images = torch.tensor([-2.0, -1.0, 1.0, 2.0]).view(4, 1, 1, 1) * pattern + 0.01 * normal(4, *SHAPE, seed=1)
    found = principal_directions(images)
    assert found.shares[0] > 0.99
    cosine = torch.cosine_similarity(found.deviations[0].flatten(), pattern.flatten(), dim=0).abs()
    assert cosine > 0.99


@pytest.mark.parametrize("count", [1, 4])
def test_equal_images_have_no_direction(count: int) -> None:
    assert principal_directions(normal(1, *SHAPE).expand(count, -1, -1, -1)) is None
