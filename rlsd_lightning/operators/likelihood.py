r"""How badly an image explains a measurement, by the kind of its noise.

Everything is in units of a squared error: the misfit of a particle is
:math:`-2 s^2 \log p(y \mid A(x)) / m`, up to a constant that makes its minimum zero, with the standard deviation
:math:`s` of the noise and the number :math:`m` of measured values. For Gaussian noise that is
:math:`\mathrm{mean}(y - A(x))^2`.
"""

import math

import torch
from deepinv.physics import LaplaceNoise, NoiseModel, Physics
from torch import Tensor

from rlsd_lightning.functional.losses import absolute_misfit, at_least_float32, photon_misfit, square_misfit
from rlsd_lightning.operators.noise import PoissonNoise

__all__ = ["has_square_misfit", "measured", "misfit", "noise_std"]


def measured(physics: Physics, images: Tensor) -> Tensor:
    """The noiseless measurements of images, in full precision."""
    with torch.autocast(images.device.type, enabled=False):
        return physics.A(at_least_float32(images))


def noise_std(noise_model: NoiseModel, y: Tensor) -> float:
    """The standard deviation of a measurement's noise, in units of the measurement; zero if it is not known.

    Args:
        noise_model: The noise.
        y: The measurement; Poisson noise depends on it, and its mean variance counts.
    """
    if isinstance(noise_model, PoissonNoise):
        return math.sqrt((4 * noise_model.gain * ((y + 1) / 2).clamp_min(0).mean()).item())
    if isinstance(noise_model, LaplaceNoise):
        return math.sqrt(2) * float(noise_model.b.max())
    return float(getattr(noise_model, "sigma", torch.zeros(())).max())


def has_square_misfit(noise_model: NoiseModel) -> bool:
    """Whether the misfit is a squared error, which those proximal steps are for that operators bring along."""
    return not isinstance(noise_model, PoissonNoise | LaplaceNoise)


def misfit(noise_model: NoiseModel, measured: Tensor, y: Tensor) -> Tensor:
    """The particles' misfits under a kind of noise, Gaussian unless it is known to be another.

    Args:
        noise_model: The noise.
        measured: The particles' measurements :math:`A(x_i)`, with shape :math:`(N, ...)`.
        y: The measurement, with shape :math:`(1, ...)`.

    Returns:
        With shape :math:`(N,)`.
    """
    if isinstance(noise_model, LaplaceNoise):
        return absolute_misfit(measured, y, math.sqrt(2) * noise_model.b.max())
    if isinstance(noise_model, PoissonNoise):
        return photon_misfit(measured, y)
    return square_misfit(measured, y)
