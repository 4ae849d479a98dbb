"""Repulsive Latent Score Distillation on PyTorch Lightning: diverse solutions of inverse problems."""

from rlsd_lightning.errors import InputError, NonFiniteError
from rlsd_lightning.features import LatentFeatures, PixelFeatures, ViTFeatures
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.module import RLSD
from rlsd_lightning.paper import RLSDPaper
from rlsd_lightning.priors import GaussianMixturePrior, Prior, StableDiffusionPrior
from rlsd_lightning.solve import solve
from rlsd_lightning.twisted import TwistedFilter

__all__ = [
    "RLSD",
    "GaussianMixturePrior",
    "InputError",
    "LatentFeatures",
    "Measurement",
    "NonFiniteError",
    "PixelFeatures",
    "Prior",
    "RLSDPaper",
    "StableDiffusionPrior",
    "TwistedFilter",
    "ViTFeatures",
    "solve",
]
