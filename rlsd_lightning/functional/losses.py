r"""The terms of the objective.

Means are over one particle's elements, except in :func:`half_square_distance`; the sum is over particles. So a particle's update
depends neither on how many there are nor on which device holds them.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rlsd_lightning.functional.precision import full_precision

__all__ = [
    "absolute_misfit",
    "append_dims",
    "at_least_float32",
    "coupling",
    "distillation",
    "gradients_of_mean",
    "half_mean_square",
    "half_square_distance",
    "mean_count",
    "norms",
    "photon_misfit",
    "square_misfit",
    "square_norms",
]

DARKEST = 1e-4
"""Least expected intensity of a pixel: in the dark the logarithm of the photon likelihood has no lower bound."""


def at_least_float32(value: Tensor) -> Tensor:
    """The tensor in float32, or in its own type if that is wider."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def append_dims(values: Tensor, ndim: int) -> Tensor:
    """Values with shape (n,), with trailing axes of length 1 up to ``ndim``, to multiply particles by."""
    return values.view(-1, *[1] * (ndim - 1))


def _per_particle_mean(value: Tensor) -> Tensor:
    return value.flatten(1).mean(dim=1)


def _squares(value: Tensor) -> Tensor:
    """Squared moduli, of real or complex values."""
    return value.abs().square() if value.is_complex() else value.square()


def gradients_of_mean(loss: Tensor, inputs: Sequence[Tensor], count: int) -> list[Tensor]:
    """Gradients of a loss that is a mean over ``count`` elements, each with the shape of its input.

    The backward pass is scaled by a power of two, so that half precision does not underflow.
    """
    scale = 2.0 ** math.floor(math.log2(count))  # a power of two rounds nothing
    with full_precision(loss.device):  # what ran in full precision goes back in it
        return [gradient / scale for gradient in torch.autograd.grad(scale * loss, inputs)]


def norms(value: Tensor) -> Tensor:
    """Every particle's Euclidean norm, with shape (N,), in float32; 1e-12 below the root gives it a gradient at zero."""
    return (_squares(at_least_float32(value).flatten(1)).sum(dim=1) + 1e-12).sqrt()


def square_norms(value: Tensor) -> Tensor:
    """Every particle's squared norm, with shape (N,)."""
    return _squares(at_least_float32(value)).flatten(1).sum(dim=1)


def half_mean_square(error: Tensor) -> Tensor:
    r"""Returns :math:`\sum_i \frac{1}{2} \mathrm{mean}(e_i^2)` of errors with shape :math:`(N, \dots)`."""
    return 0.5 * _per_particle_mean(_squares(error)).sum()


def square_misfit(measured: Tensor, y: Tensor) -> Tensor:
    r"""For Gaussian noise: :math:`\mathrm{mean}|y - A(x_i)|^2`, with shape :math:`(N,)`."""
    return _per_particle_mean(_squares(y - measured))


def absolute_misfit(measured: Tensor, y: Tensor, std: Tensor | float) -> Tensor:
    r"""For Laplace noise of standard deviation :math:`s`: :math:`2 \sqrt{2} \, s \, \mathrm{mean} |y - A(x_i)|`, of shape (N,)."""
    return 2 * math.sqrt(2) * std * _per_particle_mean((y - measured).abs())


def photon_misfit(measured: Tensor, y: Tensor) -> Tensor:
    r"""For Poisson noise: :math:`8 \bar v \, \mathrm{mean}(u - v - v \log(u / v))`.

    Here :math:`u = (A(x) + 1) / 2` and :math:`v = (y + 1) / 2` are intensities and :math:`\bar v` is the mean of
    :math:`v`. The gain cancels against that of the variance :math:`s^2 = 4 g \bar v`.

    Args:
        measured: The particles' measurements :math:`A(x_i)`, about in [-1, 1], with shape :math:`(N, \dots)`.
        y: The measurement, with shape :math:`(1, \dots)`.

    Returns:
        With shape :math:`(N,)`.
    """
    expected, counted = ((measured + 1) / 2).clamp_min(DARKEST), ((y + 1) / 2).clamp_min(0)
    # a straight line goes on where a negative intensity was clipped, so that its gradient leads back
    below = (DARKEST - (measured + 1) / 2).clamp_min(0)
    deviance = expected - counted - torch.xlogy(counted, expected) + torch.xlogy(counted, counted) + below
    return 8 * mean_count(counted) * _per_particle_mean(deviance)


def mean_count(counted: Tensor) -> Tensor:
    """Every measurement's mean intensity; that of the darkest pixel where no photon was counted."""
    return _per_particle_mean(counted).clamp_min(DARKEST)


def coupling(x: Tensor, decoded: Tensor) -> Tensor:
    r"""Distance of auxiliaries and decoded latents, :math:`\sum_i \frac{1}{2} \mathrm{mean}((x_i - D(z_i))^2)`."""
    return half_mean_square(x - decoded)


def distillation(residual: Tensor, z: Tensor) -> Tensor:
    r"""The score distillation surrogate :math:`\sum_i \mathrm{mean}(\mathrm{sg}[r_i] \, z_i)`.

    Its gradient in :math:`z_i` is the residual :math:`r_i = \hat\epsilon - \epsilon` over the number of elements of a latent.

    References:
        | DreamFusion: Text-to-3D using 2D Diffusion (Poole et al., 2023)
        | https://arxiv.org/abs/2209.14988
    """
    return torch.sum(_per_particle_mean(residual.detach() * z))


def half_square_distance(z: Tensor, target: Tensor) -> Tensor:
    r"""The loss :math:`\frac{1}{2} \|z - \mathrm{sg}[z^*]\|^2`; a step of size 1 down its gradient puts the latents at :math:`z^*`."""
    return 0.5 * (z - target.detach()).square().sum()
