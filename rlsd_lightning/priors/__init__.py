"""Diffusion priors behind one contract."""

from rlsd_lightning.priors.base import Prior
from rlsd_lightning.priors.families import (
    FluxPrior,
    LatentDiffusionPrior,
    SanaPrior,
    StableDiffusion3Prior,
    StableDiffusionPrior,
    StableDiffusionXLPrior,
)
from rlsd_lightning.priors.gaussian_mixture import GaussianMixture, GaussianMixturePrior
from rlsd_lightning.priors.latent import PipelinePrior
from rlsd_lightning.priors.measured import Calibration, measure, save_calibration
from rlsd_lightning.priors.pixel import PixelPrior

__all__ = [
    "Calibration",
    "FluxPrior",
    "GaussianMixture",
    "GaussianMixturePrior",
    "LatentDiffusionPrior",
    "PipelinePrior",
    "PixelPrior",
    "Prior",
    "SanaPrior",
    "StableDiffusion3Prior",
    "StableDiffusionPrior",
    "StableDiffusionXLPrior",
    "measure",
    "save_calibration",
]
