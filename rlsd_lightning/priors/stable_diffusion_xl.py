"""Stable Diffusion XL as a prior."""

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from rlsd_lightning.priors.latent import PipelinePrior

__all__ = ["StableDiffusionXLPrior"]


class StableDiffusionXLPrior(PipelinePrior):
    """The UNet of a ``StableDiffusionXLPipeline``, told that the image is whole and of its own size.

    Its autoencoder overflows in float16; hold the weights in bfloat16, or give a folder with a mended autoencoder. For
    the arguments see :class:`~rlsd_lightning.priors.PipelinePrior`.

    References:
        | SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis (Podell et al., 2023)
        | https://arxiv.org/abs/2307.01952
    """

    pipeline = StableDiffusionXLPipeline
    parts = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae")

    def conditions(
        self, pipeline: StableDiffusionXLPipeline, prompt: str, negative_prompt: str, guidance_scale: float
    ) -> dict[str, Tensor]:
        guided = guidance_scale != 1
        text, negative, pooled, negative_pooled = pipeline.encode_prompt(
            # None, as diffusers' own pipeline: zeros in place of the encoded empty text
            prompt,
            do_classifier_free_guidance=guided,
            negative_prompt=negative_prompt or None,
        )
        if guided:
            text, pooled = torch.cat((negative, text)), torch.cat((negative_pooled, pooled))
        return {"text": text, "pooled": pooled}

    def evaluate(self, z_t: Tensor, t: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        height, width = self.image_shape[-2:]
        original_crop_target = torch.tensor([[height, width, 0, 0, height, width]], device=z_t.device, dtype=z_t.dtype)
        added = {"text_embeds": pooled, "time_ids": original_crop_target.expand(len(z_t), -1)}
        return self.denoiser(z_t, t, text, added_cond_kwargs=added).sample
