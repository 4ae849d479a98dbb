r"""The terms of the objective. Means are over one particle's elements, the sum is over particles,
so a particle's update depends neither on how many there are nor on which device holds them.
"""

import torch
from torch import Tensor

__all__ = ["coupling", "data_fidelity", "distillation", "half_mean_square"]


def _per_particle_mean(value: Tensor) -> Tensor:
    return value.flatten(1).mean(dim=1)


def half_mean_square(error: Tensor) -> Tensor:
    r"""Returns :math:`\sum_i \frac{1}{2} \mathrm{mean}(e_i^2)` of errors with shape :math:`(N, \dots)`."""
    return 0.5 * _per_particle_mean(error.square()).sum()


def data_fidelity(measured: Tensor, y: Tensor) -> Tensor:
    r"""Distance to the measurement, :math:`\sum_i \frac{1}{2} \mathrm{mean}(y - A(x_i))^2`.

    Args:
        measured: The particles' measurements :math:`A(x_i)`, with shape :math:`(N, \dots)`.
        y: The measurement, with shape :math:`(1, \dots)`.
    """
    return half_mean_square(y - measured)


def coupling(x: Tensor, decoded: Tensor) -> Tensor:
    r"""Distance of auxiliaries and decoded latents, :math:`\sum_i \frac{1}{2} \mathrm{mean}(x_i - D(z_i))^2`."""
    return half_mean_square(x - decoded)


def distillation(residual: Tensor, z: Tensor) -> Tensor:
    r"""The score distillation surrogate :math:`\sum_i \mathrm{mean}(\mathrm{sg}[r_i] \, z_i)`.

    Its gradient in :math:`z_i` is the residual :math:`r_i = \hat\epsilon - \epsilon` (plus repulsion) over the number
    of elements of a latent.

    Args:
        residual: With shape :math:`(N, \dots)`; no gradient flows through it.
        z: Latents, with the same shape.

    References:
        | DreamFusion: Text-to-3D using 2D Diffusion (Poole et al., 2023)
        | https://arxiv.org/abs/2209.14988
    """
    return torch.sum(_per_particle_mean(residual.detach() * z))
