r"""Gradient flow of the particles' mixture (DWGF): score distillation of all particles together.

The noisy latents of one particle have the score :math:`-\epsilon / \sigma_t`, which score distillation compares with the
prior's. The noisy latents of all particles of a measurement are a mixture with another score:

.. math::
    r_i = \hat\epsilon(z_{t,i}, t) - \tfrac{1}{\sigma_t} \big( z_{t,i} - \alpha_t \textstyle\sum_j w_{ij} z_j \big),
    \qquad w_{ij} \propto \exp\big( -\|z_{t,i} - \alpha_t z_j\|^2 / (2 \sigma_t^2) \big)

Where noise joins particles, this residual keeps them apart, without a strength to choose. With :math:`w_{ii} = 1` it is
score distillation.

References:
    | A Gradient Flow Approach to Solving Inverse Problems with Latent Diffusion Models (Wang & Akyildiz, 2025)
    | https://arxiv.org/abs/2509.19276
"""

import torch
from torch import Tensor

from rlsd_lightning.functional.kernels import squared_distances
from rlsd_lightning.functional.losses import at_least_float32
from rlsd_lightning.functional.precision import full_precision
from rlsd_lightning.functional.schedules import add_noise
from rlsd_lightning.methods.distillation import ScoreDistillation

__all__ = ["DWGF", "mixture_mean"]


class DWGF(ScoreDistillation):
    """Particles that follow the prior's score minus that of their own mixture.

    The arguments are those of :class:`~rlsd_lightning.methods.distillation.ScoreDistillation`.
    """

    def training_step(self, batch: tuple[int, int], batch_idx: int) -> Tensor:
        step, t, _ = self.begin(batch, batch_idx)
        z = self.z[self.rows]
        denoising = self.denoising_term(z, self.mixture_residual(z, self.noise(step), t), t)
        coupling = self.coupling_term(self.decode(z))
        self.log_terms({"denoising": denoising, "coupling": coupling}, batch_idx)
        return denoising + self.through_decoder(coupling, z)

    @torch.no_grad()
    def mixture_residual(self, z: Tensor, eps: Tensor, t: int) -> Tensor:
        """The residual :math:`r_i` of this process's particles."""
        alpha, sigma = self.prior.alpha(t), self.prior.sigma(t)
        every = {measurement.name: particles for measurement, particles in self.each(self.z.detach())}
        means = [
            mixture_mean(noisy, every[measurement.name], alpha, sigma)
            for measurement, noisy in self.each_here(add_noise(z, eps, alpha, sigma))
        ]
        residual = self.score_residual(z, eps, t)
        return residual - alpha / sigma * (z - torch.cat(means)) if means else residual


def mixture_mean(z_t: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    r"""The mean :math:`\sum_j w_{ij} z_j` of the clean latent given a noisy one, under equal weights of the particles.

    Args:
        z_t: Noisy latents, with shape :math:`(n, \dots)`.
        z: Clean latents of all particles, with shape :math:`(N, \dots)`.
        alpha: Signal level :math:`\alpha_t`, with shape :math:`()`.
        sigma: Noise level :math:`\sigma_t`, with shape :math:`()`.

    Returns:
        With the shape of ``z_t``.
    """
    every = at_least_float32(z.flatten(1))
    distances = squared_distances(at_least_float32(z_t.flatten(1)), alpha * every)
    shares = torch.softmax(-distances / (2 * sigma**2), dim=1)
    with full_precision(z.device):  # with little noise the score magnifies rounding errors
        return (shares @ every).view_as(z_t).to(z)
