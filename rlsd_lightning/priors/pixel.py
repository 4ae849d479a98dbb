"""Diffusion in pixels as a prior: the latent is the image."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, UNet2DModel
from torch import Tensor

from rlsd_lightning.priors.base import Prior
from rlsd_lightning.priors.loading import (
    check_conditions,
    checked_image_size,
    clip_range,
    ddim_levels,
    load_pipeline,
    pair,
    tile_size,
)
from rlsd_lightning.priors.measured.prediction import try_networks
from rlsd_lightning.priors.tiles import LEAST_TILE
from rlsd_lightning.signatures import typed

__all__ = ["PixelPrior"]

TRIED = 64
"""Largest side of the image of the network's trial, in pixels."""


class PixelPrior(Prior):
    r"""The unconditional UNet of a ``DDPMPipeline`` or ``DDIMPipeline`` folder.

    Arguments are as in :class:`~rlsd_lightning.priors.PipelinePrior`. With a network of one channel, images are grey. Clean images
    are clamped to the range in which the pipeline's scheduler clips its own (``clip_sample``): at high noise a network's error is
    divided by a small :math:`\alpha_t`.

    Raises:
        InputError: If there is no pipeline at ``pretrained``, its network wants class labels, or the image size does not
            fit its stride.

    References:
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020)
        | https://arxiv.org/abs/2006.11239
    """

    @typed
    def __init__(
        self,
        pretrained: str | Path,
        image_size: int | tuple[int, int] | None = None,
        variant: str | None = None,
        weights: str = "float32",
        tile: int | str | None = "auto",
        local_files_only: bool = False,
        allow_pickle: bool = False,
    ) -> None:
        pipeline = load_pipeline(
            DDPMPipeline, pretrained, ("scheduler", "unet"), variant, weights, local_files_only, allow_pickle
        )
        unet = pipeline.unet
        check_conditions(unet, UNet2DModel)
        stride = 2 ** (len(unet.config.block_out_channels) - 1)
        shape = (unet.config.in_channels, *checked_image_size(image_size, unet.config.sample_size, 1, stride))
        levels, prediction_type, offset = ddim_levels(pipeline.scheduler)
        super().__init__(*levels, shape, shape, prediction_type, offset)
        self.origin = Path(pretrained)
        self.multiple, self.trained_size = stride, max(pair(unet.config.sample_size or max(shape[1:])))
        self.clip_range = clip_range(pipeline.scheduler)
        self.denoiser = unet
        self.freeze()
        try_networks(
            self, (shape[0], *(length if length <= TRIED else TRIED // stride * stride for length in shape[1:]))
        )
        self.tile = tile_size(tile, self.trained_size, stride, LEAST_TILE)

    def compile_networks(self, regional: bool = False, **options: Any) -> None:
        self.compiled |= {"denoiser"}
        self.denoiser.compile(**options)

    def denoise(self, z_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        clean, noise = super().denoise(z_t, t)
        if self.clip_range is None:
            return clean, noise
        clean = clean.clamp(-self.clip_range, self.clip_range)
        return clean, (z_t - self.alpha(t) * clean) / self.sigma(t)

    def network(self, z_t: Tensor, t: int) -> Tensor:
        time = torch.full((len(z_t),), t, device=z_t.device)
        # networks that learn their variance have it in further channels
        return self.denoiser(z_t.to(self.denoiser.dtype), time).sample[:, : z_t.shape[1]].to(z_t.dtype)
