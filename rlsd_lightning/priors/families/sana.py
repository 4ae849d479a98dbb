"""Sana, a flow-matching model of strongly compressed latents, as a prior."""

import inspect

import torch
from diffusers import SanaPipeline, SanaTransformer2DModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlsd_lightning.priors.latent import PipelinePrior
from rlsd_lightning.priors.loading import flow_levels

__all__ = ["SanaPrior"]

TEXT_LENGTH = 300
"""Tokens of a prompt, as in diffusers' pipeline."""
INSTRUCTION: list[str] = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
"""What diffusers' pipeline writes before a prompt for the text encoder, a large language model."""


class SanaPrior(PipelinePrior):
    r"""The transformer of a ``SanaPipeline``, on latents of 32x32 pixels each.

    It predicts the velocity :math:`u = \epsilon - z` at :math:`z_t = (1 - \sigma_t) z + \sigma_t \epsilon`. Prompts are encoded
    below the pipeline's own instruction, negative and empty ones without it, as there. Arguments are as in
    :class:`~rlsd_lightning.priors.PipelinePrior`.

    References:
        | SANA: Efficient High-Resolution Image Synthesis with Linear Diffusion Transformers (Xie et al., 2024)
        | https://arxiv.org/abs/2410.10629
    """

    pipeline = SanaPipeline
    parts = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
    network_class = SanaTransformer2DModel

    def denoiser_of(self, pipeline: SanaPipeline) -> SanaTransformer2DModel:
        return pipeline.transformer

    def tokenizer_of(self, pipeline: SanaPipeline) -> tuple[PreTrainedTokenizerBase, int]:
        return pipeline.tokenizer, TEXT_LENGTH

    def schedule(self, pipeline: SanaPipeline, tokens: int) -> tuple[tuple[Tensor, Tensor], str, int]:
        return flow_levels(pipeline.scheduler, tokens)

    def conditions(
        self, pipeline: SanaPipeline, prompt: str, negative_prompt: str, guidance_scale: float
    ) -> dict[str, Tensor]:
        guided = guidance_scale != 1
        text, mask, *negative = pipeline.encode_prompt(
            prompt,
            do_classifier_free_guidance=guided,
            negative_prompt=negative_prompt,
            max_sequence_length=TEXT_LENGTH,
            complex_human_instruction=INSTRUCTION if prompt else None,
        )
        if guided:
            text, mask = (torch.cat(pair) for pair in zip(negative, (text, mask), strict=True))
        return {"text": text, "mask": mask}

    def evaluate(self, z_t: Tensor, t: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        time = self.num_train_timesteps * self.denoiser.config.timestep_scale * self.noise_levels(t, len(z_t))
        return self.denoiser(z_t, encoder_hidden_states=text, encoder_attention_mask=mask, timestep=time).sample
