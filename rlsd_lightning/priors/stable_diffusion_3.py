"""Stable Diffusion 3, a flow-matching model, as a prior."""

from typing import Any

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor

from rlsd_lightning.priors.latent import PipelinePrior

__all__ = ["StableDiffusion3Prior"]


class StableDiffusion3Prior(PipelinePrior):
    r"""The transformer of a ``StableDiffusion3Pipeline``.

    It predicts the velocity :math:`u = \epsilon - z` at :math:`z_t = (1 - \sigma_t) z + \sigma_t \epsilon`, from which the
    noise follows. The levels :math:`\sigma_t` are those of the checkpoint's scheduler, its shift included.

    Args:
        pretrained: A local folder in the diffusers format, or the name of a model on the hub.
        t5: Load the third text encoder too (9 GB in float16); without it its part of the text is empty.
        settings: Those of :class:`~rlsd_lightning.priors.PipelinePrior`.

    References:
        | Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al., 2024)
        | https://arxiv.org/abs/2403.03206
    """

    pipeline = StableDiffusion3Pipeline
    parts = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae")

    def __init__(self, pretrained: str, t5: bool = False, **settings: Any) -> None:
        self.left_out = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}
        super().__init__(pretrained, **settings)

    def denoiser_of(self, pipeline: StableDiffusion3Pipeline) -> SD3Transformer2DModel:
        return pipeline.transformer

    def schedule(self, pipeline: StableDiffusion3Pipeline) -> tuple[tuple[Tensor, Tensor], str, int]:
        sigmas = pipeline.scheduler.sigmas[: pipeline.scheduler.config.num_train_timesteps].flip(0)
        return (1 - sigmas, sigmas), "flow", 0

    def conditions(
        self, pipeline: StableDiffusion3Pipeline, prompt: str, negative_prompt: str, guidance_scale: float
    ) -> dict[str, Tensor]:
        guided = guidance_scale != 1
        text, negative, pooled, negative_pooled = pipeline.encode_prompt(
            prompt, None, None, do_classifier_free_guidance=guided, negative_prompt=negative_prompt
        )
        if guided:
            text, pooled = torch.cat((negative, text)), torch.cat((negative_pooled, pooled))
        return {"text": text, "pooled": pooled}

    def evaluate(self, z_t: Tensor, t: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        # picked on the device: an index would wait for it
        time = self.num_train_timesteps * self.sigmas.index_select(0, t.view(1)).expand(len(z_t))
        return self.denoiser(z_t, encoder_hidden_states=text, pooled_projections=pooled, timestep=time).sample
