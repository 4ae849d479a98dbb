"""Stable Diffusion 3, a flow-matching model, as a prior."""

from pathlib import Path
from typing import Any

from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlsd_lightning.priors.latent import PipelinePrior, text_and_pooled
from rlsd_lightning.priors.loading import flow_levels
from rlsd_lightning.signatures import typed

__all__ = ["StableDiffusion3Prior"]

T5_LENGTH = 256
"""Tokens that diffusers' pipeline gives to the third text encoder."""


class StableDiffusion3Prior(PipelinePrior):
    r"""The transformer of a ``StableDiffusion3Pipeline``.

    It predicts the velocity :math:`u = \epsilon - z` at :math:`z_t = (1 - \sigma_t) z + \sigma_t \epsilon`, from which the
    noise follows. The levels :math:`\sigma_t` are those of the checkpoint's scheduler, its shift included.

    Args:
        pretrained: As in :class:`~rlsd_lightning.priors.PipelinePrior`, like ``settings``.
        t5: Load the third text encoder too (9 GB in float16); without it its part of the text is empty.

    References:
        | Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al., 2024)
        | https://arxiv.org/abs/2403.03206
    """

    pipeline = StableDiffusion3Pipeline
    parts = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae")
    network_class = SD3Transformer2DModel

    @typed
    def __init__(self, pretrained: str | Path | StableDiffusion3Pipeline, t5: bool = False, **settings: Any) -> None:
        self.left_out = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}
        super().__init__(pretrained, **settings)

    def denoiser_of(self, pipeline: StableDiffusion3Pipeline) -> SD3Transformer2DModel:
        return pipeline.transformer

    def tokenizer_of(self, pipeline: StableDiffusion3Pipeline) -> tuple[PreTrainedTokenizerBase, int]:
        return super().tokenizer_of(pipeline) if pipeline.tokenizer_3 is None else (pipeline.tokenizer_3, T5_LENGTH)

    def schedule(self, pipeline: StableDiffusion3Pipeline, tokens: int) -> tuple[tuple[Tensor, Tensor], str, int]:
        return flow_levels(pipeline.scheduler, tokens)

    def conditions(
        self, pipeline: StableDiffusion3Pipeline, prompt: str, negative_prompt: str, guidance_scale: float
    ) -> dict[str, Tensor]:
        prompts = {"prompt": prompt, "prompt_2": None, "prompt_3": None, "negative_prompt": negative_prompt}
        return text_and_pooled(pipeline, guidance_scale, **prompts)

    def evaluate(self, z_t: Tensor, t: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        time = self.num_train_timesteps * self.noise_levels(t, len(z_t))
        return self.denoiser(z_t, encoder_hidden_states=text, pooled_projections=pooled, timestep=time).sample
