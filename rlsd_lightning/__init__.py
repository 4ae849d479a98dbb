"""Repulsive Latent Score Distillation on PyTorch Lightning: diverse solutions of inverse problems."""

from rlsd_lightning.distributed.strategy import ParticleStrategy
from rlsd_lightning.errors import InputError, NonFiniteError
from rlsd_lightning.features import LatentFeatures, LPIPSFeatures, PixelFeatures, VAEFeatures, ViTFeatures
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.daps import LatentDAPS
from rlsd_lightning.methods.dps import LatentDPS
from rlsd_lightning.methods.dwgf import MixtureDistillation
from rlsd_lightning.methods.rlsd import RLSD
from rlsd_lightning.methods.rlsd_paper import RLSDPaper
from rlsd_lightning.methods.twisted import TwistedFilter
from rlsd_lightning.priors import GaussianMixturePrior, Prior, StableDiffusionPrior
from rlsd_lightning.solve import solve

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
    "ParticleStrategy",
    "PixelFeatures",
    "Prior",
    "RLSDPaper",
    "StableDiffusionPrior",
    "TwistedFilter",
    "VAEFeatures",
    "ViTFeatures",
    "solve",
]
