"""Families of diffusers pipelines, one file each."""

from rlsd_lightning.priors.families.flux import FluxPrior
from rlsd_lightning.priors.families.latent_diffusion import LatentDiffusionPrior
from rlsd_lightning.priors.families.sana import SanaPrior
from rlsd_lightning.priors.families.stable_diffusion import StableDiffusionPrior
from rlsd_lightning.priors.families.stable_diffusion_3 import StableDiffusion3Prior
from rlsd_lightning.priors.families.stable_diffusion_xl import StableDiffusionXLPrior

__all__ = [
    "FluxPrior",
    "LatentDiffusionPrior",
    "SanaPrior",
    "StableDiffusion3Prior",
    "StableDiffusionPrior",
    "StableDiffusionXLPrior",
]
