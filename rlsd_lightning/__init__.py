"""Repulsive Latent Score Distillation on PyTorch Lightning: diverse solutions of inverse problems."""

from importlib import import_module
from typing import Any

_WHERE = {
    "DWGF": "methods.baselines.dwgf",
    "Distilled": "methods.distilled",
    "Features": "features",
    "GaussianMixturePrior": "priors",
    "InputError": "errors",
    "LATINO": "methods.baselines.latino",
    "LPIPSFeatures": "features",
    "LatentDAPS": "methods.baselines.daps",
    "LatentDPS": "methods.baselines.dps",
    "LatentFeatures": "features",
    "Measurement": "measurement",
    "NonFiniteError": "errors",
    "ParticleStrategy": "distributed.strategy",
    "PixelFeatures": "features",
    "Prior": "priors",
    "RLSD": "methods.rlsd",
    "RLSDPaper": "methods.rlsd_paper",
    "Reconstructor": "reconstructor",
    "Result": "results.result",
    "StableDiffusionPrior": "priors",
    "TwistedFilter": "methods.twisted",
    "VAEFeatures": "features",
    "ViTFeatures": "features",
    "embedded": "resources",
    "representatives": "results.result",
    "solve": "solving",
}
"""The module of each public name, which is imported when the name is first used: torch and Lightning take seconds."""

__all__ = sorted(_WHERE)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
