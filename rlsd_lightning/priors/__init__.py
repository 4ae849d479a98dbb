"""Diffusion priors behind one contract."""

from rlsd_lightning.priors.base import Prior
from rlsd_lightning.priors.gaussian_mixture import GaussianMixture, GaussianMixturePrior
from rlsd_lightning.priors.latent import PipelinePrior
from rlsd_lightning.priors.pixel import PixelPrior
from rlsd_lightning.priors.stable_diffusion import StableDiffusionPrior
from rlsd_lightning.priors.stable_diffusion_3 import StableDiffusion3Prior
from rlsd_lightning.priors.stable_diffusion_xl import StableDiffusionXLPrior

__all__ = [
    "GaussianMixture",
    "GaussianMixturePrior",
    "PipelinePrior",
    "PixelPrior",
    "Prior",
    "StableDiffusion3Prior",
    "StableDiffusionPrior",
    "StableDiffusionXLPrior",
]
