"""Inverse problems with Gaussian-mixture priors, whose posteriors are known exactly."""

import copy
import math
from typing import NamedTuple

import torch
from deepinv.physics import GaussianNoise, LinearPhysics
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from rlsd_lightning.priors import GaussianMixture, Prior

__all__ = ["MatrixPhysics", "MixtureProblem", "grid_problem", "linear_levels", "three_modes", "two_dimensions"]


class MixturePrior(Prior):
    """A mixture as a prior, with any covariances and any levels; the latent is the point.

    Args:
        mixture: The clean latents' density.
        alphas_cumprod: Squared signal levels, falling, with shape :math:`(T,)`.
    """

    def __init__(self, mixture: GaussianMixture, alphas_cumprod: Tensor) -> None:
        size = mixture.means.shape[1]
        super().__init__(alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt(), (size,), (size,))
        self.mixture = mixture
        identity = torch.eye(size).expand_as(mixture.covariances)
        self.has_unit_covariances = torch.equal(mixture.covariances, identity)
        self.freeze()

    def network(self, z_t: Tensor, t: int) -> Tensor:
        alpha, sigma = self.alpha(t), self.sigma(t)
        if not self.has_unit_covariances:
            return -sigma * self.mixture.diffused(alpha, sigma).score(z_t)
        means = alpha * self.mixture.means
        # squared distances up to a constant of each point; the noisy covariances are unit too
        log_joint = self.mixture.weights.log() + z_t @ means.T - 0.5 * means.square().sum(dim=1)
        return -sigma * (log_joint.softmax(dim=1) @ means - z_t)


class MatrixPhysics(LinearPhysics):
    """A matrix, with its proximal step in closed form and double precision.

    Args:
        matrix: With shape :math:`(d_y, d_x)`.
        noise_std: The noise level.
    """

    def __init__(self, matrix: Tensor, noise_std: float) -> None:
        super().__init__(noise_model=GaussianNoise(sigma=noise_std))
        self.register_buffer("matrix", matrix)
        values, vectors = torch.linalg.eigh(matrix.double() @ matrix.double().T)
        self.register_buffer("values", values)
        self.register_buffer("vectors", vectors)

    def A(self, x: Tensor, **_) -> Tensor:  # noqa: N802
        return x @ self.matrix.T

    def A_adjoint(self, y: Tensor, **_) -> Tensor:  # noqa: N802
        return y @ self.matrix

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float, **_) -> Tensor:
        along = (y - self.A(z)).double() @ self.vectors
        return z + (gamma * along / (1 + gamma * self.values) @ self.vectors.T @ self.matrix.double()).to(z)


class MixtureProblem(NamedTuple):
    """A prior, a measurement, and the posterior.

    Attributes:
        prior: The prior, of size :math:`d_x`.
        physics: The operator with its noise.
        y: The measurement, with shape :math:`(1, d_y)`.
        posterior: What is to be drawn from.
        reference: Exact draws that samples are compared with.
    """

    prior: MixturePrior
    physics: MatrixPhysics
    y: Tensor
    posterior: GaussianMixture
    reference: Tensor

    @property
    def covariance(self) -> Tensor:
        """The prior's, over all modes, with shape :math:`(d_x, d_x)`."""
        weights, means, covariances = (getattr(self.prior.mixture, n) for n in ("weights", "means", "covariances"))
        centred = means - weights @ means
        return torch.einsum("k,kde->de", weights, covariances) + (weights * centred.T) @ centred

    @property
    def latent_std(self) -> float:
        """The prior's standard deviation, a root mean square over coordinates."""
        return math.sqrt(self.covariance.trace() / len(self.covariance))


def linear_levels(first: float = 1e-4, last: float = 0.02, steps: int = 1000) -> Tensor:
    r"""Squared signal levels of DDPM's schedule, :math:`\beta_t` on a straight line."""
    return torch.cumprod(1 - torch.linspace(first, last, steps), dim=0)


def reversed_levels() -> Tensor:
    r"""The public 25-mode benchmark's own levels: :math:`\beta_t` falls, and level 0 is noiseless."""
    return torch.cumprod(torch.cat([torch.ones(1), 1 - torch.linspace(0.02, 1e-4, 999)]), dim=0)


def made(
    mixture: GaussianMixture, levels: Tensor, matrix: Tensor, noise_std: float, y: Tensor, draws: int
) -> MixtureProblem:
    """The problem of a mixture and a measurement of shape (d_y,), with this number of exact draws."""
    exact = copy.deepcopy(mixture).double().posterior(matrix.double(), y.double(), noise_std).float()
    physics = MatrixPhysics(matrix, noise_std)
    return MixtureProblem(MixturePrior(mixture, levels), physics, y[None], exact, exact.sample(draws))


def grid_problem(measured: int, size: int, seed: int, draws: int, levels: Tensor | None = None) -> MixtureProblem:
    """25 modes on a grid and a random matrix; numbers are drawn in the order of the public benchmark.

    Args:
        measured: The number of measured values.
        size: The number of coordinates, even.
        seed: Of everything; 27 in the public benchmark.
        draws: How many exact draws to compare with.
        levels: Squared signal levels; the public benchmark's if left out.

    References:
        | Monte Carlo Guided Diffusion for Bayesian Linear Inverse Problems (Cardoso et al., 2024)
        | https://arxiv.org/abs/2308.07983
    """
    torch.manual_seed(seed)
    grid = [(-8.0 * i, -8.0 * j) for i in range(-2, 3) for j in range(-2, 3)]
    means = torch.tensor(grid).repeat(1, size // 2)
    weights = torch.randn(len(means)).square()
    left, _, right = torch.linalg.svd(torch.randn(measured, size), full_matrices=True)
    values = torch.rand(measured).sort(descending=True).values
    matrix = left @ (torch.diag(values) @ right[:measured])
    covariances = torch.eye(size).repeat(len(means), 1, 1)
    components = MultivariateNormal(means, scale_tril=covariances)
    truth = MixtureSameFamily(Categorical(weights / weights.sum()), components).sample()
    noise_std = (torch.rand(1) * values.max()).item()
    y = matrix @ truth + noise_std * torch.randn(measured)
    levels = reversed_levels() if levels is None else levels
    return made(GaussianMixture(weights, means, covariances), levels, matrix, noise_std, y, draws)


def three_modes(noise_std: float, draws: int, seed: int = 0) -> MixtureProblem:
    """Three modes in ten dimensions of which eight coordinates are seen.

    The third covariance's rotation and the truth are drawn here: those of the public runs are not stated.

    Args:
        noise_std: 5 (high) or 0.1 (low) in the public benchmark.
        draws: How many exact draws to compare with.
        seed: Of the rotation, the truth, the noise and the draws.

    References:
        | Benchmarking Diffusion Annealing-Based Bayesian Inverse Problem Solvers (Scope Crafts & Villa, 2025)
        | https://arxiv.org/abs/2503.03007
    """
    torch.manual_seed(seed)
    spread = torch.diag(torch.linspace(1, 2, 10))
    rotation = torch.linalg.qr(torch.randn(10, 10)).Q
    covariances = torch.stack([torch.eye(10), spread, rotation.T @ spread @ rotation])
    means = torch.tensor([-5.0, 0.0, 5.0])[:, None].repeat(1, 10)
    mixture = GaussianMixture(torch.tensor([0.4, 0.3, 0.3]), means, (covariances + covariances.mT) / 2)
    matrix = torch.eye(10)[[0, 1, 2, 4, 5, 6, 7, 9]]
    y = matrix @ mixture.sample(1)[0] + noise_std * torch.randn(8)
    return made(mixture, linear_levels(), matrix, noise_std, y, draws)


def two_dimensions(draws: int, seed: int = 0) -> MixtureProblem:
    """Five modes in a plane, unequal in weight and shape, and one sum that is seen: three of them explain it."""
    torch.manual_seed(seed)
    means = torch.tensor([[-2.0, 2.0], [0.0, 0.0], [2.0, -2.0], [2.0, 1.0], [-1.5, -2.0]])
    stds = torch.tensor([[0.3, 0.3], [0.5, 0.2], [0.2, 0.4], [0.3, 0.3], [0.3, 0.3]])
    mixture = GaussianMixture(torch.tensor([0.3, 0.1, 0.2, 0.2, 0.2]), means, torch.diag_embed(stds.square()))
    matrix, noise_std = torch.tensor([[1.0, 1.0]]), 0.2
    return made(mixture, linear_levels(), matrix, noise_std, torch.zeros(1), draws)
