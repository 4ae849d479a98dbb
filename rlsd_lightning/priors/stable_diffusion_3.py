"""Stable Diffusion 3, a flow-matching model, as a prior."""

from collections.abc import Sequence

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from rlsd_lightning.priors.latent import LatentPrior, load_pipeline

__all__ = ["StableDiffusion3Prior"]

PARTS = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae")


class StableDiffusion3Prior(LatentPrior):
    r"""The transformer of a ``StableDiffusion3Pipeline``.

    It predicts the velocity :math:`u = \epsilon - z` at :math:`z_t = (1 - \sigma_t) z + \sigma_t \epsilon`, from which the
    noise follows. The levels :math:`\sigma_t` are those of the checkpoint's scheduler, its shift included.

    Args:
        pretrained: A local folder in the diffusers format, or the name of a model on the hub.
        prompt: Text that describes the image.
        negative_prompt: Text that guidance moves away from.
        guidance_scale: Strength of classifier-free guidance; 1 is off and costs one network call less.
        image_size: Height and width in pixels, or one number for both, multiples of the autoencoder's stride times the
            transformer's patch; the checkpoint's own if left out.
        t5: Load the third text encoder too (9 GB in float16); without it its part of the text is empty.
        variant: Weights' variant on the hub, such as ``fp16``.
        weights: The type the weights are held in: ``float32``, ``float16`` or ``bfloat16``.
        vae_tiling: Decode in tiles, for images that do not fit otherwise.
        decoder_checkpointing: Recompute the decoder's activations in the backward pass instead of keeping them.
        local_files_only: Never reach for the hub.
        allow_pickle: Take weights in pickle files too, which can run code; else safetensors only.

    Raises:
        InputError: If there is no pipeline at ``pretrained``, or the image size does not fit the autoencoder.

    References:
        | Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al., 2024)
        | https://arxiv.org/abs/2403.03206
    """

    def __init__(
        self,
        pretrained: str,
        prompt: str = "",
        negative_prompt: str = "",
        guidance_scale: float = 1.0,
        image_size: int | Sequence[int] | None = None,
        t5: bool = False,
        variant: str | None = None,
        weights: str = "float32",
        vae_tiling: bool = False,
        decoder_checkpointing: bool = False,
        local_files_only: bool = False,
        allow_pickle: bool = False,
    ) -> None:
        without_t5 = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}
        pipeline = load_pipeline(
            StableDiffusion3Pipeline, pretrained, PARTS, variant, weights, local_files_only, allow_pickle, **without_t5
        )
        vae, transformer = pipeline.vae, pipeline.transformer
        with torch.no_grad():
            text, negative, pooled, negative_pooled = pipeline.encode_prompt(
                prompt,
                None,
                None,
                do_classifier_free_guidance=guidance_scale != 1,
                negative_prompt=negative_prompt,
            )
        if guidance_scale != 1:
            text, pooled = torch.cat((negative, text)), torch.cat((negative_pooled, pooled))
        sigmas = pipeline.scheduler.sigmas[: pipeline.scheduler.config.num_train_timesteps].flip(0)
        super().__init__(
            vae,
            (1 - sigmas, sigmas),
            transformer.config.in_channels,
            image_size or transformer.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1),
            {"text": text, "pooled": pooled},
            guidance_scale,
            "flow",
            0,
            vae_tiling,
            decoder_checkpointing,
        )
        self.transformer = transformer
        self.freeze()

    def evaluate(self, z_t: Tensor, t: int, text: Tensor, pooled: Tensor) -> Tensor:
        time = (self.num_train_timesteps * self.sigma(t)).expand(len(z_t))
        return self.transformer(z_t, encoder_hidden_states=text, pooled_projections=pooled, timestep=time).sample
