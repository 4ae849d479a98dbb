"""Stable Diffusion 1 and 2, and latent consistency models, as priors."""

from typing import ClassVar

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from rlsd_lightning.errors import InputError
from rlsd_lightning.priors.latent import PipelinePrior

__all__ = ["StableDiffusionPrior"]

TINY_DECODER = "madebyollin/taesd"
"""Tiny decoder of the latents that Stable Diffusion 1 and 2 share."""


class StableDiffusionPrior(PipelinePrior):
    """The UNet of a ``StableDiffusionPipeline``, or of a latent consistency model.

    A latent consistency model takes the guidance scale as an input and needs one network call. Arguments are as in
    :class:`~rlsd_lightning.priors.PipelinePrior`.

    References:
        | Latent Consistency Models (Luo et al., 2023)
        | https://arxiv.org/abs/2310.04378
    """

    pipeline = StableDiffusionPipeline
    parts = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
    left_out: ClassVar = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

    def denoiser_of(self, pipeline: StableDiffusionPipeline) -> UNet2DConditionModel:
        unet = pipeline.unet
        if unet.config.addition_embed_type is not None:
            raise InputError(
                "pretrained must name a UNet with text conditions only, but that of "
                f"'{pipeline.config._name_or_path}' expects {unet.config.addition_embed_type}; choose "
                "StableDiffusionXLPrior for Stable Diffusion XL"
            )
        return unet

    @property
    def usual_tiny_decoder(self) -> str | None:
        return TINY_DECODER if (self.latent_shape[0], self.stride) == (4, 8) else None

    def conditions(
        self, pipeline: StableDiffusionPipeline, prompt: str, negative_prompt: str, guidance_scale: float
    ) -> dict[str, Tensor]:
        width = pipeline.unet.config.time_cond_proj_dim
        texts = [prompt] if guidance_scale == 1 or width else [negative_prompt, prompt]
        tokenizer, length = pipeline.tokenizer, pipeline.tokenizer.model_max_length
        tokens = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        conditions = {"text": pipeline.text_encoder(tokens.input_ids).last_hidden_state}
        if width:
            scale = torch.tensor([guidance_scale - 1.0])
            conditions["guidance"] = pipeline.get_guidance_scale_embedding(scale, width, pipeline.unet.dtype)
        return conditions

    def evaluate(self, z_t: Tensor, t: Tensor, text: Tensor, guidance: Tensor | None = None) -> Tensor:
        return self.denoiser(z_t, t, text, timestep_cond=guidance).sample
