"""Latent diffusion priors behind one contract."""

from rlsd_lightning.priors.base import Prior
from rlsd_lightning.priors.gaussian_mixture import GaussianMixture, GaussianMixturePrior
from rlsd_lightning.priors.stable_diffusion import StableDiffusionPrior

__all__ = ["GaussianMixture", "GaussianMixturePrior", "Prior", "StableDiffusionPrior"]
