"""Stable Diffusion XL as a prior."""

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from rlsd_lightning.priors.latent import LatentPrior, ddim_levels, load_pipeline

__all__ = ["StableDiffusionXLPrior"]

PARTS = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae")


class StableDiffusionXLPrior(LatentPrior):
    """The UNet of a ``StableDiffusionXLPipeline``, told that the image is whole and of its own size.

    Its autoencoder overflows in float16; hold the weights in bfloat16, or give a folder with a mended autoencoder.

    Args:
        pretrained: A local folder in the diffusers format, or the name of a model on the hub.
        prompt: Text that describes the image.
        negative_prompt: Text that guidance moves away from.
        guidance_scale: Strength of classifier-free guidance; 1 is off and costs one network call less.
        image_size: Height and width in pixels, or one number for both, multiples of the autoencoder's stride; the
            checkpoint's own if left out.
        variant: Weights' variant on the hub, such as ``fp16``.
        weights: The type the weights are held in: ``float32``, ``float16`` or ``bfloat16``.
        vae_tiling: Decode in tiles, for images that do not fit otherwise.
        decoder_checkpointing: Recompute the decoder's activations in the backward pass instead of keeping them.
        local_files_only: Never reach for the hub.
        allow_pickle: Take weights in pickle files too, which can run code; else safetensors only.

    Raises:
        InputError: If there is no pipeline at ``pretrained``, or the image size does not fit the autoencoder.

    References:
        | SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis (Podell et al., 2023)
        | https://arxiv.org/abs/2307.01952
    """

    def __init__(
        self,
        pretrained: str,
        prompt: str = "",
        negative_prompt: str = "",
        guidance_scale: float = 1.0,
        image_size: int | Sequence[int] | None = None,
        variant: str | None = None,
        weights: str = "float32",
        vae_tiling: bool = False,
        decoder_checkpointing: bool = False,
        local_files_only: bool = False,
        allow_pickle: bool = False,
    ) -> None:
        pipeline = load_pipeline(
            StableDiffusionXLPipeline, pretrained, PARTS, variant, weights, local_files_only, allow_pickle
        )
        vae, unet = pipeline.vae, pipeline.unet
        levels, prediction_type, offset = ddim_levels(pipeline.scheduler)
        with torch.no_grad():
            text, negative, pooled, negative_pooled = pipeline.encode_prompt(
                prompt, do_classifier_free_guidance=guidance_scale != 1, negative_prompt=negative_prompt
            )
        if guidance_scale != 1:
            text, pooled = torch.cat((negative, text)), torch.cat((negative_pooled, pooled))
        super().__init__(
            vae,
            levels,
            unet.config.in_channels,
            image_size or unet.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1),
            {"text": text, "pooled": pooled},
            guidance_scale,
            prediction_type,
            offset,
            vae_tiling,
            decoder_checkpointing,
        )
        height, width = self.image_shape[-2:]
        # original size, crop, target size
        self.register_buffer("size", torch.tensor([[height, width, 0, 0, height, width]], dtype=text.dtype))
        self.unet = unet
        self.freeze()

    def evaluate(self, z_t: Tensor, t: int, text: Tensor, pooled: Tensor) -> Tensor:
        added = {"text_embeds": pooled, "time_ids": self.size.expand(len(z_t), -1)}
        return self.unet(z_t, t, text, added_cond_kwargs=added).sample
