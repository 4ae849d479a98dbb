"""Stable Diffusion 1 and 2, and latent consistency models, as priors."""

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from rlsd_lightning.errors import InputError
from rlsd_lightning.priors.latent import LatentPrior, ddim_levels, load_pipeline

__all__ = ["StableDiffusionPrior"]

PARTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")


class StableDiffusionPrior(LatentPrior):
    r"""The UNet of a ``StableDiffusionPipeline``, or of a latent consistency model.

    The prediction type, the noise schedule and the latents' scale and shift are those of the checkpoint's own
    configuration. A latent consistency model takes the guidance scale as an input and needs one network call.

    Args:
        pretrained: A local folder in the diffusers format, or the name of a model on the hub.
        prompt: Text that describes the image; the paper uses the empty prompt.
        negative_prompt: Text that guidance moves away from.
        guidance_scale: Strength :math:`g` of classifier-free guidance; 1 is off and costs one network call less.
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
        | High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022)
        | https://arxiv.org/abs/2112.10752
        | Latent Consistency Models (Luo et al., 2023)
        | https://arxiv.org/abs/2310.04378
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
            StableDiffusionPipeline,
            pretrained,
            PARTS,
            variant,
            weights,
            local_files_only,
            allow_pickle,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        vae, unet = pipeline.vae, pipeline.unet
        if unet.config.addition_embed_type is not None:
            raise InputError(
                f"a UNet that is told nothing but a text is expected, but that of '{pretrained}' wants "
                f"{unet.config.addition_embed_type}; choose prior=sdxl if it is of Stable Diffusion XL"
            )
        levels, prediction_type, offset = ddim_levels(pipeline.scheduler)
        width = unet.config.time_cond_proj_dim
        texts = [prompt] if guidance_scale == 1 or width else [negative_prompt, prompt]
        conditions = {"text": _encode_text(pipeline, texts)}
        if width:
            scale = torch.tensor([guidance_scale - 1.0])
            conditions["guidance"] = pipeline.get_guidance_scale_embedding(scale, width, unet.dtype)
        super().__init__(
            vae,
            levels,
            unet.config.in_channels,
            image_size or unet.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1),
            conditions,
            guidance_scale,
            prediction_type,
            offset,
            vae_tiling,
            decoder_checkpointing,
        )
        self.unet = unet
        self.freeze()

    def evaluate(self, z_t: Tensor, t: int, text: Tensor, guidance: Tensor | None = None) -> Tensor:
        return self.unet(z_t, t, text, timestep_cond=guidance).sample


@torch.no_grad()
def _encode_text(pipeline: StableDiffusionPipeline, texts: list[str]) -> Tensor:
    tokenizer = pipeline.tokenizer
    length = tokenizer.model_max_length
    tokens = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return pipeline.text_encoder(tokens.input_ids).last_hidden_state
