"""The mixture's score, posterior and samples against torch.distributions, autograd and brute force."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from rlsd_lightning.errors import InputError
from rlsd_lightning.priors import GaussianMixture, GaussianMixturePrior

F64 = torch.float64


def make(count: int, size: int, seed: int = 0) -> GaussianMixture:
    """Unequal weights and correlated components, none like another."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(count, size, size, generator=generator, dtype=F64)
    return GaussianMixture(
        torch.rand(count, generator=generator, dtype=F64) + 0.2,
        2 * torch.randn(count, size, generator=generator, dtype=F64),
        root @ root.mT / size + 0.3 * torch.eye(size, dtype=F64),
    )


def reference(weights: Tensor, means: Tensor, covariances: Tensor) -> MixtureSameFamily:
    return MixtureSameFamily(Categorical(weights), MultivariateNormal(means, covariances))


def points(count: int, size: int) -> Tensor:
    return 2 * torch.randn(count, size, generator=torch.Generator().manual_seed(9), dtype=F64)


SIZES = pytest.mark.parametrize(("count", "size"), [(1, 1), (1, 3), (4, 2), (5, 6)])


@SIZES
def test_log_prob_is_that_of_torch_distributions(count: int, size: int):
    mixture, z = make(count, size), points(7, size)
    expected = reference(mixture.weights, mixture.means, mixture.covariances).log_prob(z)
    torch.testing.assert_close(mixture.log_prob(z), expected, rtol=1e-9, atol=1e-10)


@SIZES
def test_score_is_the_gradient_of_log_prob(count: int, size: int):
    mixture, z = make(count, size), points(7, size).requires_grad_()
    (expected,) = torch.autograd.grad(mixture.log_prob(z).sum(), z)
    torch.testing.assert_close(mixture.score(z), expected, rtol=1e-9, atol=1e-10)


def test_score_far_from_every_component_is_finite():
    # there every component's density underflows
    assert torch.isfinite(make(4, 2).score(torch.full((1, 2), 1e4, dtype=F64))).all()


@pytest.mark.parametrize("t", [0, 1, 250, 700, 999])
def test_prior_predicts_minus_sigma_times_the_score_of_the_noisy_density(t: int):
    means, weights, std = [[0.0, -1.0], [1.0, 0.5], [-0.7, 2.0]], torch.tensor([0.2, 0.5, 0.3], dtype=F64), 0.3
    prior = GaussianMixturePrior(torch.tensor(means, dtype=F64), std=std, weights=weights)
    alpha, sigma = prior.alpha(t), prior.sigma(t)
    covariance = (alpha**2 * std**2 + sigma**2) * torch.eye(2, dtype=F64)
    noisy = reference(weights, alpha * prior.mixture.means, covariance.expand(3, 2, 2))
    z_t = points(6, 2).requires_grad_()
    (score,) = torch.autograd.grad(noisy.log_prob(z_t).sum(), z_t)
    torch.testing.assert_close(prior.denoise(z_t, t)[1], -sigma * score, rtol=1e-9, atol=1e-10)


def test_schedule_of_the_prior_is_stable_diffusions():
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    prior = GaussianMixturePrior([[0.0]])
    torch.testing.assert_close(prior.alphas**2, scheduler.alphas_cumprod, rtol=1e-5, atol=0)
    torch.testing.assert_close(prior.sigmas**2, 1 - scheduler.alphas_cumprod, rtol=1e-4, atol=1e-7)
    assert float(prior.alpha(500) ** 2 + prior.sigma(500) ** 2) == pytest.approx(1, abs=1e-6)


def test_latent_of_the_prior_is_the_image():
    prior = GaussianMixturePrior([[0, 1], [1, 0]])
    z = torch.randn(3, 2)
    assert prior.latent_shape == prior.image_shape == (2,)
    assert torch.equal(prior.decode(z), z)
    assert torch.equal(prior.encode(z), z)
    assert not any(p.requires_grad for p in prior.parameters())
    assert prior.mixture.weights.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("noise_std", [0.05, 0.8])
def test_posterior_of_one_gaussian_is_the_closed_form(noise_std: float):
    mixture = make(1, 4)
    generator = torch.Generator().manual_seed(1)
    operator, y = torch.randn(2, 4, generator=generator, dtype=F64), torch.randn(2, generator=generator, dtype=F64)
    # in information form, while the mixture uses the gain form
    precision = torch.linalg.inv(mixture.covariances[0])
    covariance = torch.linalg.inv(precision + operator.T @ operator / noise_std**2)
    mean = covariance @ (precision @ mixture.means[0] + operator.T @ y / noise_std**2)
    posterior = mixture.posterior(operator, y, noise_std)
    torch.testing.assert_close(posterior.means[0], mean, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(posterior.covariances[0], covariance, rtol=1e-7, atol=1e-9)
    assert posterior.weights.item() == 1


def test_posterior_is_prior_times_likelihood_normalised_on_a_grid():
    mixture, noise_std = make(3, 2), 0.7
    operator, y = torch.tensor([[1.0, 0.5]], dtype=F64), torch.tensor([0.4], dtype=F64)
    axis = torch.linspace(-14, 14, 401, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    log_joint = mixture.log_prob(grid) - 0.5 * ((y - grid @ operator.T) / noise_std).square().sum(1)
    expected = log_joint.softmax(0) / (axis[1] - axis[0]) ** 2  # a trapezoid rule: exact for smooth decaying densities
    assert expected[grid.abs().amax(1) > 13.9].max() < 1e-12  # the grid holds all of it
    torch.testing.assert_close(
        mixture.posterior(operator, y, noise_std).log_prob(grid).exp(), expected, atol=1e-9, rtol=0
    )


def test_posterior_with_hopeless_components_is_still_a_mixture():
    mixture = GaussianMixture(torch.ones(2), torch.tensor([[0.0], [1e3]]), 0.01 * torch.ones(2, 1, 1))
    posterior = mixture.posterior(torch.ones(1, 1), torch.zeros(1), 0.1)
    torch.testing.assert_close(posterior.weights, torch.tensor([1.0, 0.0]))
    assert torch.isfinite(posterior.score(torch.zeros(1, 1))).all()


def test_assign_names_the_component_a_point_sits_on():
    mixture = GaussianMixture(torch.ones(3), torch.tensor([[0.0], [5.0], [9.0]]), torch.ones(3, 1, 1))
    assert mixture.assign(torch.tensor([[9.1], [-3.0], [4.4]])).tolist() == [2, 0, 1]


def test_samples_have_the_moments_of_the_mixture():
    mixture, count = make(3, 2), 40_000
    z = mixture.sample(count, torch.Generator().manual_seed(0))
    w, m = mixture.weights, mixture.means
    mean = w @ m
    covariance = torch.einsum("k,kde->de", w, mixture.covariances + m[:, :, None] * m[:, None]) - mean[:, None] * mean
    scale = covariance.diagonal().sqrt()
    assert z.dtype == F64
    # five standard errors; those of a covariance are about sqrt(2 / n) of its scale for a density with light tails
    assert ((z.mean(0) - mean).abs() < 5 * scale / count**0.5).all()
    assert ((z.T.cov() - covariance).abs() < 5 * (2 / count) ** 0.5 * scale[:, None] * scale).all()


def test_samples_fall_on_components_in_the_share_of_their_weights():
    means = torch.tensor([[-50.0], [0.0], [50.0]])
    mixture = GaussianMixture(torch.tensor([1.0, 2.0, 5.0]), means, torch.ones(3, 1, 1))
    shares = torch.bincount(mixture.assign(mixture.sample(20_000, torch.Generator().manual_seed(0)))) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.125, 0.25, 0.625]), atol=5 * 0.5 / 20_000**0.5, rtol=0)


@pytest.mark.parametrize(
    ("weights", "means", "covariances"),
    [
        ((2,), (3, 2), (3, 2, 2)),
        ((3,), (3, 2), (2, 2, 2)),
        ((3,), (3, 2), (3, 2, 3)),
        ((3,), (3,), (3, 1, 1)),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_all_three(weights: tuple, means: tuple, covariances: tuple):
    with pytest.raises(InputError, match=r"weights \(K,\).*got"):
        GaussianMixture(torch.ones(weights), torch.zeros(means), torch.ones(covariances))


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_weights_that_are_not_positive_are_refused(bad: float):
    with pytest.raises(InputError, match="positive"):
        GaussianMixture(torch.tensor([1.0, bad]), torch.zeros(2, 1), torch.ones(2, 1, 1))


def test_prior_with_a_weight_too_many_is_refused():
    with pytest.raises(InputError, match=r"\(3,\)"):
        GaussianMixturePrior([[0.0], [1.0]], weights=[1.0, 1.0, 1.0])


@pytest.mark.parametrize(("means", "std"), [([[0.0]], 0.0), ([[0.0]], -1.0), (torch.zeros(3), 0.1)])
def test_prior_without_a_density_is_refused(means: object, std: float):
    with pytest.raises(InputError, match="must"):
        GaussianMixturePrior(means, std)


def test_prior_of_an_unknown_prediction_type_is_refused_by_name():
    from rlsd_lightning.priors import Prior

    class Odd(Prior):
        def network(self, z_t: Tensor, t: int) -> Tensor:
            return z_t

    with pytest.raises(InputError, match="'score'"):
        Odd(torch.ones(3), torch.ones(3), (1,), (1,), prediction_type="score")
