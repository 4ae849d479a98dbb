r"""Gaussian mixtures: a prior whose score and whose posterior under a linear measurement are known exactly.

If :math:`z \sim \sum_k w_k \mathcal{N}(m_k, C_k)` then
:math:`z_t = \alpha_t z + \sigma_t \epsilon \sim \sum_k w_k \mathcal{N}(\alpha_t m_k, \alpha_t^2 C_k + \sigma_t^2 I)`
is a mixture again, and :math:`\hat\epsilon(z_t, t) = -\sigma_t \nabla \log p_t(z_t)`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlsd_lightning.errors import InputError, require_positive
from rlsd_lightning.priors.base import Prior
from rlsd_lightning.signatures import typed

__all__ = ["GaussianMixture", "GaussianMixturePrior"]


class GaussianMixture(nn.Module):
    r"""The density :math:`\sum_k w_k \mathcal{N}(m_k, C_k)` in :math:`\mathbb{R}^d`.

    Args:
        weights: Positive, normalised here, with shape :math:`(K,)`.
        means: With shape :math:`(K, d)`.
        covariances: Symmetric and positive definite, with shape :math:`(K, d, d)`.

    Raises:
        InputError: If the shapes don't fit together or a weight is not positive.
    """

    @typed
    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        super().__init__()
        if means.ndim != 2 or weights.shape != means.shape[:1] or covariances.shape != (*means.shape, means.shape[1]):
            raise InputError(
                "weights (K,), means (K, d) and covariances (K, d, d) expected, got "
                f"{tuple(weights.shape)}, {tuple(means.shape)} and {tuple(covariances.shape)}"
            )
        if not (weights > 0).all():
            raise InputError(f"weights must be positive, got {weights.tolist()}")
        self.register_buffer("weights", weights / weights.sum())
        self.register_buffer("means", means)
        self.register_buffer("covariances", covariances)

    def component_log_prob(self, z: Tensor) -> Tensor:
        r"""Joint log densities :math:`\log w_k \mathcal{N}(z; m_k, C_k)`, with shape :math:`(n, K)`.

        Args:
            z: Points, with shape :math:`(n, d)`.
        """
        cholesky = torch.linalg.cholesky(self.covariances)  # (K, d, d)
        centred = (z[:, None] - self.means).movedim(0, -1)  # (K, d, n)
        white = torch.linalg.solve_triangular(cholesky, centred, upper=False)  # (K, d, n)
        log_det = cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (K,)
        constant = self.weights.log() - log_det - 0.5 * self.means.shape[1] * math.log(2 * math.pi)
        return constant - 0.5 * white.square().sum(dim=1).T

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of points with shape :math:`(n, d)`, with shape :math:`(n,)`."""
        return self.component_log_prob(z).logsumexp(dim=1)

    def assign(self, z: Tensor) -> Tensor:
        """Index of the component that most likely made each point, with shape :math:`(n,)`."""
        return self.component_log_prob(z).argmax(dim=1)

    def score(self, z: Tensor) -> Tensor:
        r"""The gradient :math:`\nabla \log p(z)` in closed form, with the shape of ``z``."""
        responsibility = self.component_log_prob(z).softmax(dim=1)  # (n, K)
        pull = torch.linalg.solve(self.covariances, (self.means - z[:, None]).movedim(0, -1))  # (K, d, n)
        return torch.einsum("nk,kdn->nd", responsibility, pull)

    def diffused(self, alpha: Tensor, sigma: Tensor) -> "GaussianMixture":
        r"""The mixture of :math:`\alpha z + \sigma \epsilon`."""
        identity = torch.eye(self.means.shape[1]).to(self.means)
        return GaussianMixture(self.weights, alpha * self.means, alpha**2 * self.covariances + sigma**2 * identity)

    def posterior(self, operator: Tensor, y: Tensor, noise_std: float) -> "GaussianMixture":
        r"""The exact posterior given :math:`y = A z + \mathcal{N}(0, s^2 I)`, a mixture again.

        Per component :math:`C_k' = (C_k^{-1} + A^\top A / s^2)^{-1}`,
        :math:`m_k' = C_k' (C_k^{-1} m_k + A^\top y / s^2)`, and
        :math:`w_k' \propto w_k \, \mathcal{N}(y; A m_k, A C_k A^\top + s^2 I)`.

        Args:
            operator: The matrix :math:`A`, with shape :math:`(d_y, d)`.
            y: The measurement, with shape :math:`(d_y,)`.
            noise_std: The noise level :math:`s > 0`.
        """
        gain = self.covariances @ operator.T  # (K, d, d_y)
        noise = noise_std**2 * torch.eye(len(y)).to(y)
        evidence = GaussianMixture(self.weights, self.means @ operator.T, operator @ gain + noise)
        kalman = torch.linalg.solve(evidence.covariances, gain.mT).mT  # (K, d, d_y)
        means = self.means + torch.einsum("kde,ke->kd", kalman, y - evidence.means)
        covariances = self.covariances - kalman @ gain.mT
        log_weights = evidence.component_log_prob(y[None])[0]
        # a component that y excludes keeps a weight above zero, so that the result is a valid mixture
        weights = log_weights.softmax(dim=0).clamp_min(torch.finfo(y.dtype).tiny)
        return GaussianMixture(weights, means, (covariances + covariances.mT) / 2)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws points, with shape :math:`(count, d)`."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        white = torch.randn(count, self.means.shape[1], generator=generator).to(self.means)
        scaled = torch.einsum("nde,ne->nd", torch.linalg.cholesky(self.covariances)[component], white)
        return self.means[component] + scaled


class GaussianMixturePrior(Prior):
    """A mixture of isotropic Gaussians as a prior, with Stable Diffusion's schedule; the latent is the image.

    Args:
        means: Centres, with shape :math:`(K, d)`.
        std: Standard deviation of every component, above 0.
        weights: With shape :math:`(K,)`; equal if left out.

    Raises:
        InputError: If the shapes don't fit together, or ``std`` is out of range.
    """

    @typed
    def __init__(
        self,
        means: Sequence[Sequence[float]] | Tensor,
        std: float = 0.1,
        weights: Sequence[float] | Tensor | None = None,
    ) -> None:
        require_positive(std=std)
        means = torch.as_tensor(means)
        if means.ndim != 2:
            raise InputError(f"means must have shape (K, d), got {tuple(means.shape)}")
        means = means if means.is_floating_point() else means.float()
        weights = torch.ones(len(means)) if weights is None else torch.as_tensor(weights)
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        shape = means.shape[1:]
        alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        super().__init__(alphas_cumprod.sqrt().to(means), (1 - alphas_cumprod).sqrt().to(means), shape, shape)
        covariance = std**2 * torch.eye(means.shape[1]).to(means)
        self.mixture = GaussianMixture(weights.to(means), means, covariance.expand(len(means), -1, -1))
        self.freeze()

    def network(self, z_t: Tensor, t: int) -> Tensor:
        sigma = self.sigma(t)
        return -sigma * self.mixture.diffused(self.alpha(t), sigma).score(z_t)
