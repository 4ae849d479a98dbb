r"""Noise models, each with its standard deviation :math:`s` in units of an image in [-1, 1]."""

import math

import deepinv
import torch
from deepinv.physics import GaussianNoise, LaplaceNoise, NoiseModel, ZeroNoise
from torch import Tensor

from rlsd_lightning.errors import InputError, require, require_at_least_zero, require_one_of, require_positive
from rlsd_lightning.signatures import typed

__all__ = ["NOISES", "PoissonNoise", "check_noise", "make_noise"]


class PoissonNoise(NoiseModel):
    r"""Poisson (photon) noise of an image in [-1, 1].

    With the intensity :math:`u = (x + 1) / 2` and the gain :math:`g = s^2 / 4` it returns
    :math:`2 g \, \mathrm{Poisson}(u / g) - 1`: the standard deviation is :math:`s > 0` at white and zero at black.
    """

    @typed
    def __init__(self, sigma: float) -> None:
        super().__init__()
        require_positive(sigma=sigma)
        self.register_buffer("gain", torch.tensor(float(sigma) ** 2 / 4))

    def forward(self, x: Tensor, **kwargs) -> Tensor:
        intensity = ((x + 1) / 2).clamp_min(0)
        return 2 * self.gain * torch.poisson(intensity / self.gain) - 1


NOISES = {
    "gaussian": lambda sigma: GaussianNoise(sigma=sigma),
    "laplace": lambda sigma: LaplaceNoise(b=sigma / math.sqrt(2)),
    "poisson": PoissonNoise,
}

NO_PHOTONS = "noise=poisson counts the photons of an image, but this operator does not measure images; choose gaussian or laplace"
"""Message for Poisson noise of another measurement than an image."""


@typed
def make_noise(noise: str, sigma: float, of_images: bool = True) -> NoiseModel:
    """A noise model by name.

    Args:
        noise: ``gaussian``, ``laplace`` or ``poisson``.
        sigma: Standard deviation; of Poisson noise at white.
        of_images: Whether the measurement is an image in [-1, 1], as Poisson noise requires.

    Raises:
        InputError: If the name is unknown, the deviation is out of range, or Poisson noise does not apply.
    """
    require_one_of(NOISES, noise=noise)
    if noise == "gaussian":
        require_at_least_zero(sigma=sigma)
    else:
        require(lambda value: value > 0, f"above 0 for {noise} noise", sigma=sigma)
    if noise == "poisson" and not of_images:
        raise InputError(NO_PHOTONS)
    return NOISES[noise](float(sigma))


def check_noise(noise_model: NoiseModel) -> None:
    """Checks that the likelihood of a noise model is known; another would be taken for exact data.

    Raises:
        InputError: If it is not.
    """
    if isinstance(noise_model, GaussianNoise | LaplaceNoise | PoissonNoise | ZeroNoise):
        return
    if isinstance(noise_model, deepinv.physics.PoissonNoise):
        sigma = 2 * math.sqrt(float(noise_model.gain.max()))
        raise InputError(
            "noise_model: deepinv's PoissonNoise counts the photons of images in [0, 1], but images here are in [-1, 1]; "
            f"set noise_model to PoissonNoise(sigma={sigma:.3g}) of rlsd_lightning.operators, and give 2 * y - 1 "
            "as the measurement (if y was multiplied by the gain)"
        )
    raise InputError(
        "noise_model must be GaussianNoise, LaplaceNoise or ZeroNoise of deepinv or PoissonNoise of "
        f"rlsd_lightning.operators, got {type(noise_model).__name__}; give GaussianNoise with its standard deviation, if "
        "that is close enough"
    )
