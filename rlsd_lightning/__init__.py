"""Repulsive Latent Score Distillation on PyTorch Lightning: diverse solutions of inverse problems."""

from rlsd_lightning.daps import LatentDAPS
from rlsd_lightning.errors import InputError, NonFiniteError
from rlsd_lightning.features import LatentFeatures, LPIPSFeatures, PixelFeatures, VAEFeatures, ViTFeatures
from rlsd_lightning.guided import LatentDPS
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.mixture import MixtureDistillation
from rlsd_lightning.module import RLSD
from rlsd_lightning.paper import RLSDPaper
from rlsd_lightning.priors import GaussianMixturePrior, Prior, StableDiffusionPrior
from rlsd_lightning.solve import solve
from rlsd_lightning.twisted import TwistedFilter

__all__ = [
    "RLSD",
    "GaussianMixturePrior",
    "InputError",
    "LPIPSFeatures",
    "LatentDAPS",
    "LatentDPS",
    "LatentFeatures",
    "Measurement",
    "MixtureDistillation",
    "NonFiniteError",
    "PixelFeatures",
    "Prior",
    "RLSDPaper",
    "StableDiffusionPrior",
    "TwistedFilter",
    "VAEFeatures",
    "ViTFeatures",
    "solve",
]
