r"""Likelihood of a measurement: misfits by the kind of noise, and fit in units of the noise.

Everything is in units of a squared error: the misfit of a particle is
:math:`-2 s^2 \log p(y \mid A(x)) / m`, up to a constant that makes its minimum zero, with the standard deviation
:math:`s` of the noise and the number :math:`m` of measured values. For Gaussian noise that is
:math:`\mathrm{mean}((y - A(x))^2)`.
"""

import math
from typing import Protocol, runtime_checkable

import torch
from deepinv.physics import (
    GaussianNoise,
    Inpainting,
    LaplaceNoise,
    NoiseModel,
    Physics,
    SinglePixelCamera,
    StructuredRandom,
    Tomography,
)
from deepinv.physics.forward import ComposedPhysics
from torch import Tensor

from rlsd_lightning.functional.losses import absolute_misfit, at_least_float32, mean_count, photon_misfit, square_misfit
from rlsd_lightning.functional.metrics import residual_rms
from rlsd_lightning.functional.precision import full_precision
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.operators.compressive import MaskedSinglePixelCamera
from rlsd_lightning.operators.medical import CoilMRI, Projections
from rlsd_lightning.operators.noise import PoissonNoise
from rlsd_lightning.operators.nonlinear import FourierMagnitude
from rlsd_lightning.operators.pixels import seen_by

__all__ = [
    "MASKED",
    "NOT_PICTURES",
    "HasEquivalents",
    "data_fit",
    "equivalent_forms",
    "has_square_misfit",
    "hidden_as_zero",
    "last_operator",
    "measured",
    "misfit",
    "noise_std",
    "observed_pixels",
    "observed_values",
]

MASKED = (Inpainting, CoilMRI, MaskedSinglePixelCamera)
"""Operators that set unmeasured values to zero."""
NOT_PICTURES = (CoilMRI, Projections, Tomography, SinglePixelCamera, StructuredRandom, FourierMagnitude)
"""Operators whose measurements are no pictures, whatever their shape."""


@runtime_checkable
class HasEquivalents(Protocol):
    """Operator with the same measurement for several forms of an image."""

    def equivalents(self, images: Tensor) -> Tensor:
        """Forms with the same measurement, with shape :math:`(K, N, C, H, W)`."""


def equivalent_forms(physics: Physics, images: Tensor) -> Tensor | None:
    """Forms of images with the same measurement, with shape :math:`(K, N, C, H, W)`; None if the operator has none."""
    return physics.equivalents(images) if isinstance(physics, HasEquivalents) else None


def measured(physics: Physics, images: Tensor) -> Tensor:
    """Noiseless measurements :math:`A(x)`, in full precision."""
    with full_precision(images.device):
        return physics.A(at_least_float32(images))


def noise_std(noise_model: NoiseModel, y: Tensor) -> float:
    """Standard deviation of the noise, in units of the measurement; zero if unknown.

    Complex Gaussian noise of standard deviation sigma has this as the standard deviation of its real and of its imaginary part.

    Args:
        noise_model: The noise.
        y: The measurement; for Poisson noise the mean variance is taken.
    """
    if isinstance(noise_model, PoissonNoise):
        return math.sqrt((4 * noise_model.gain * mean_count(((y + 1) / 2).clamp_min(0)).mean()).item())
    if isinstance(noise_model, LaplaceNoise):
        return math.sqrt(2) * float(noise_model.b.max())
    if not isinstance(noise_model, GaussianNoise):
        return 0.0
    return float(noise_model.sigma.max()) / (math.sqrt(2) if y.is_complex() else 1)


def has_square_misfit(noise_model: NoiseModel) -> bool:
    """Whether the misfit is a squared error, as operators' own proximal steps assume."""
    return not isinstance(noise_model, PoissonNoise | LaplaceNoise)


def misfit(noise_model: NoiseModel, measured: Tensor, y: Tensor, std: float | None = None) -> Tensor:
    """Misfit of each particle; squared error unless the noise is Laplace or Poisson.

    Args:
        noise_model: The noise.
        measured: The particles' measurements :math:`A(x_i)`, with shape :math:`(N, ...)`.
        y: The measurement, with shape :math:`(1, ...)`.
        std: The standard deviation :math:`s`; None: the noise's own.

    Returns:
        Misfits, with shape :math:`(N,)`.
    """
    if isinstance(noise_model, LaplaceNoise):
        return absolute_misfit(measured, y, math.sqrt(2) * noise_model.b.max() if std is None else std)
    if isinstance(noise_model, PoissonNoise):
        return photon_misfit(measured, y)
    return square_misfit(measured, y)


def observed_pixels(physics: Physics, image_shape: tuple[int, ...]) -> Tensor | None:
    """Pixels that the operator observes unchanged.

    Returns:
        A boolean tensor of the image's shape, or None if the operator is no mask.
    """
    if not isinstance(physics, Inpainting):
        return None
    return seen_by(physics.mask).expand(image_shape)


def last_operator(physics: Physics) -> Physics:
    """The operator that acts last in a composition; another one itself."""
    return physics.physics_list[-1] if isinstance(physics, ComposedPhysics) else physics


def observed_values(physics: Physics, y: Tensor) -> Tensor:
    """Which values of a measurement were measured: boolean, with the shape of ``y``."""
    last = last_operator(physics)
    if isinstance(last, MASKED) and last.mask is not None:
        return (last.mask > 0).expand(y.shape)
    return torch.ones_like(y, dtype=torch.bool)


def hidden_as_zero(measurement: Measurement) -> Measurement:
    """The measurement with zeros where nothing is measured, as the operator's own; users may have white there, or noise."""
    y = measurement.y
    return measurement._replace(y=torch.where(observed_values(measurement.physics, y), y, 0))


def data_fit(physics: Physics, images: Tensor, y: Tensor) -> dict[str, float | None]:
    r"""Residuals of the particles in units of the noise's standard deviation.

    Args:
        physics: The operator and its noise.
        images: The particles, with shape :math:`(N, C, H, W)`.
        y: The measurement, with shape :math:`(1, \dots)`.

    Returns:
        ``residual_sigmas``, the root mean square of :math:`(y - A(x)) / s` over the values that were measured, about 1
        for the truth; ``within_3_sigmas``, the share of these values with :math:`|y - A(x)| \le 3 s`. For Poisson noise
        :math:`s^2` is its mean variance. None where no noise is known.
    """
    at_particles = measured(physics, images).expand(len(images), *y.shape[1:])
    seen = observed_values(physics, y)[0]
    at_particles, y = at_particles[:, seen], y[:, seen]
    std = noise_std(physics.noise_model, y) if y.numel() else 0.0
    if not std:
        return {"residual_sigmas": None, "within_3_sigmas": None}
    return {
        "residual_sigmas": residual_rms(at_particles, y).item() / std,
        "within_3_sigmas": ((y - at_particles).abs() <= 3 * std).float().mean().item(),
    }
