"""Stable Diffusion XL as a prior."""

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from rlsd_lightning.priors.latent import PipelinePrior, text_and_pooled

__all__ = ["StableDiffusionXLPrior"]


class StableDiffusionXLPrior(PipelinePrior):
    """The UNet of a ``StableDiffusionXLPipeline``, conditioned on an uncropped image of its own
    size, or of a tile's.

    Its autoencoder overflows in float16; hold the weights in bfloat16, or give a folder with a repaired autoencoder.
    Arguments are as in :class:`~rlsd_lightning.priors.PipelinePrior`.

    References:
        | SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis (Podell et al., 2023)
        | https://arxiv.org/abs/2307.01952
    """

    pipeline = StableDiffusionXLPipeline
    parts = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae")

    def conditions(
        self, pipeline: StableDiffusionXLPipeline, prompt: str, negative_prompt: str, guidance_scale: float
    ) -> dict[str, Tensor]:
        # None, as diffusers' own pipeline: zeros in place of the encoded empty text
        return text_and_pooled(pipeline, guidance_scale, prompt=prompt, negative_prompt=negative_prompt or None)

    def evaluate(self, z_t: Tensor, t: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        height, width = (self.stride * length for length in z_t.shape[-2:])
        original_crop_target = torch.tensor([[height, width, 0, 0, height, width]], device=z_t.device, dtype=z_t.dtype)
        added = {"text_embeds": pooled, "time_ids": original_crop_target.expand(len(z_t), -1)}
        return self.denoiser(z_t, t, text, added_cond_kwargs=added).sample
