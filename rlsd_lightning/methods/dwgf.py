r"""Score distillation of the particles' mixture instead of each particle alone.

The noisy latents of one particle have the score :math:`-\epsilon / \sigma_t`, which score distillation holds against the
prior's. All particles together are a mixture, whose noisy latents have another:

.. math::
    r_i = \hat\epsilon(z_{t,i}, t) - \tfrac{1}{\sigma_t} \big( z_{t,i} - \alpha_t \textstyle\sum_j w_{ij} z_j \big),
    \qquad w_{ij} \propto \exp\big( -\|z_{t,i} - \alpha_t z_j\|^2 / (2 \sigma_t^2) \big)

Where noise joins particles, this keeps them apart, without a strength to choose; where one has :math:`w_{ii} = 1`, it is
score distillation.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlsd_lightning.functional.kernels import squared_distances
from rlsd_lightning.functional.losses import at_least_float32
from rlsd_lightning.functional.schedules import add_noise
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.rlsd import RLSD
from rlsd_lightning.priors import Prior

__all__ = ["MixtureDistillation"]


class MixtureDistillation(RLSD):
    """RLSD with the score of the particles' mixture in place of the kernel's repulsion.

    Args:
        prior: The latent diffusion prior.
        measurements: What is known: one measurement, or several that are solved side by side.
        features: What the kernel compares, where ``gamma`` is not 0.
        gamma: Strength of the kernel's repulsion besides.
        sampling_share: Share of the timesteps in which particles are sampled first; DWGF distils in all.
        antithetic: Whether a measurement's particles have noise that sums to zero; DWGF's is independent.
        settings: Other arguments of :class:`~rlsd_lightning.methods.rlsd.RLSD`.

    Raises:
        InputError: If an argument is out of range.

    References:
        | A Gradient Flow Approach to Solving Inverse Problems with Latent Diffusion Models (Wang & Akyildiz, 2025)
        | https://arxiv.org/abs/2509.19276
    """

    def __init__(
        self,
        prior: Prior,
        measurements: Measurement | Sequence[Measurement],
        features: nn.Module,
        *,
        gamma: float = 0.0,
        sampling_share: float = 0.0,
        antithetic: bool = False,
        **settings: Any,
    ) -> None:
        given = {"gamma": gamma, "sampling_share": sampling_share, "antithetic": antithetic}
        super().__init__(prior, measurements, features, **given, **settings)

    @torch.no_grad()
    def score(self, z: Tensor, eps: Tensor, t: int) -> Tensor:
        alpha, sigma = self.prior.alpha(t), self.prior.sigma(t)
        score = super().score(z, eps, t)
        every = {measurement.name: particles for measurement, particles in self.each(self.z.detach())}
        means = [
            mixture_mean(noisy, every[measurement.name], alpha, sigma)
            for measurement, noisy in self.each_here(add_noise(z, eps, alpha, sigma))
        ]
        return score - alpha / sigma * (z - torch.cat(means)) if means else score


def mixture_mean(z_t: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    r"""The mean :math:`\sum_j w_{ij} z_j` of the clean latent given a noisy one, if each particle is as likely.

    Args:
        z_t: Noisy latents, with shape :math:`(n, \dots)`.
        z: All particles' clean latents, with shape :math:`(N, \dots)`.
        alpha: Signal level :math:`\alpha_t`, with shape :math:`()`.
        sigma: Noise level :math:`\sigma_t`, with shape :math:`()`.

    Returns:
        With the shape of ``z_t``.
    """
    every = at_least_float32(z.flatten(1))
    distances = squared_distances(at_least_float32(z_t.flatten(1)), alpha * every)
    shares = torch.softmax(-distances / (2 * sigma**2), dim=1)
    with torch.autocast(z.device.type, enabled=False):  # with little noise the score magnifies rounding errors
        return (shares @ every).view_as(z_t).to(z)
