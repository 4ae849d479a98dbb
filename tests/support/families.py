"""Tiny priors of every family, and what tests do with their folders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from rlsd_lightning.priors import (
    FluxPrior,
    LatentDiffusionPrior,
    PixelPrior,
    Prior,
    SanaPrior,
    StableDiffusion3Prior,
    StableDiffusionPrior,
    StableDiffusionXLPrior,
)

CLASSES: dict[str, Callable[..., Prior]] = {
    "faces": StableDiffusionPrior,
    "lcm": StableDiffusionPrior,
    "sdxl": StableDiffusionXLPrior,
    "sd3": StableDiffusion3Prior,
    "ldm": LatentDiffusionPrior,
    "flux": FluxPrior,
    "sana": SanaPrior,
    "pixel": PixelPrior,
}


def load(folders: dict[str, Path], family: str, **settings) -> Prior:
    """A family's prior."""
    return CLASSES[family](str(folders[family]), local_files_only=True, **settings)


def noisy(prior: Prior, count: int = 3) -> Tensor:
    """Noisy latents."""
    return torch.randn(count, *prior.latent_shape, generator=torch.Generator().manual_seed(0))


def edited(folder: Path, copy: Path, config: str, **values) -> Path:
    """A copy of a pipeline folder with some values of a configuration changed."""
    shutil.copytree(folder, copy)
    file = copy / config
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return copy
