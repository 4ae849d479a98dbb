"""Diffusion in pixels as a prior: the latent is the image."""

from typing import Any

import torch
from diffusers import DDPMPipeline
from torch import Tensor

from rlsd_lightning.priors.base import Prior
from rlsd_lightning.priors.loading import ddim_levels, height_and_width, load_pipeline

__all__ = ["PixelPrior"]


class PixelPrior(Prior):
    """The unconditional UNet of a ``DDPMPipeline`` or ``DDIMPipeline`` folder.

    Arguments are as in :class:`~rlsd_lightning.priors.PipelinePrior`.

    Raises:
        InputError: If there is no pipeline at ``pretrained``.

    References:
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020)
        | https://arxiv.org/abs/2006.11239
    """

    def __init__(
        self,
        pretrained: str,
        variant: str | None = None,
        weights: str = "float32",
        local_files_only: bool = False,
        allow_pickle: bool = False,
    ) -> None:
        pipeline = load_pipeline(
            DDPMPipeline, pretrained, ("scheduler", "unet"), variant, weights, local_files_only, allow_pickle
        )
        unet = pipeline.unet
        shape = (unet.config.in_channels, *height_and_width(unet.config.sample_size))
        levels, prediction_type, offset = ddim_levels(pipeline.scheduler)
        super().__init__(*levels, shape, shape, prediction_type, offset)
        self.denoiser = unet
        self.freeze()

    def compile_networks(self, **options: Any) -> None:
        self.denoiser.compile(**options)

    def network(self, z_t: Tensor, t: int) -> Tensor:
        time = torch.full((len(z_t),), t, device=z_t.device)
        # networks that learn their variance have it in further channels
        return self.denoiser(z_t.to(self.denoiser.dtype), time).sample[:, : z_t.shape[1]].to(z_t.dtype)
