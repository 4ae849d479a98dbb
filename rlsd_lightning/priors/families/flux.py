"""Flux, a flow-matching model of packed latents, as a prior."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle
from transformers import PreTrainedTokenizerBase

from rlsd_lightning.priors.latent import PipelinePrior
from rlsd_lightning.priors.loading import flow_levels, latent_stride

__all__ = ["FluxPrior"]

TEXT_LENGTH = 512
"""Tokens of the T5, as in diffusers' pipeline."""


class FluxPrior(PipelinePrior):
    r"""The transformer of a ``FluxPipeline``.

    It predicts the velocity :math:`u = \epsilon - z` at :math:`z_t = (1 - \sigma_t) z + \sigma_t \epsilon`; the four latents of
    a square of 2x2 are one token. The scheduler's shift is that of the image size at which the prior was loaded. A
    guidance-distilled model (FLUX.1-dev) takes the guidance scale as an input and needs one network call. Arguments are as
    in :class:`~rlsd_lightning.priors.PipelinePrior`.

    References:
        | FLUX (Black Forest Labs, 2024)
        | https://github.com/black-forest-labs/flux
        | Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al., 2024)
        | https://arxiv.org/abs/2403.03206
    """

    pipeline = FluxPipeline
    parts = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae")
    network_class = FluxTransformer2DModel
    left_out: ClassVar = {"image_encoder": None, "feature_extractor": None}
    packing = 2

    def denoiser_of(self, pipeline: FluxPipeline) -> FluxTransformer2DModel:
        return pipeline.transformer

    def own_size(self, pipeline: FluxPipeline) -> int | Sequence[int] | None:
        return pipeline.vae.config.sample_size // latent_stride(pipeline.vae)

    def tokenizer_of(self, pipeline: FluxPipeline) -> tuple[PreTrainedTokenizerBase, int]:
        return pipeline.tokenizer_2, TEXT_LENGTH

    def schedule(self, pipeline: FluxPipeline, tokens: int) -> tuple[tuple[Tensor, Tensor], str, int]:
        return flow_levels(pipeline.scheduler, tokens)

    def conditions(
        self, pipeline: FluxPipeline, prompt: str, negative_prompt: str, guidance_scale: float
    ) -> dict[str, Tensor]:
        is_distilled = pipeline.transformer.config.guidance_embeds
        texts = [prompt] if guidance_scale == 1 or is_distilled else [negative_prompt, prompt]
        text, pooled, _ = pipeline.encode_prompt(texts, max_sequence_length=TEXT_LENGTH)
        guidance = {"guidance": torch.tensor([float(guidance_scale)])} if is_distilled else {}
        return {"text": text, "pooled": pooled, **guidance}

    def evaluate(self, z_t: Tensor, t: Tensor, text: Tensor, pooled: Tensor, guidance: Tensor | None = None) -> Tensor:
        tokens = pixel_unshuffle(z_t, self.packing)
        output = self.denoiser(
            tokens.flatten(2).mT,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=self.noise_levels(t, len(z_t)),
            guidance=guidance,
            img_ids=places(tokens),
            txt_ids=torch.zeros(text.shape[1], 3, device=z_t.device),
        ).sample
        return pixel_shuffle(output.mT.unflatten(2, tokens.shape[2:]), self.packing)


def places(tokens: Tensor) -> Tensor:
    """Zero, row and column of each token of a grid, with shape :math:`(h w, 3)`."""
    rows, columns = (torch.arange(length, device=tokens.device) for length in tokens.shape[2:])
    return torch.cartesian_prod(rows[:1], rows, columns).to(tokens)
