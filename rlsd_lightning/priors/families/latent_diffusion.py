"""Unconditional latent diffusion, as a prior."""

import logging
from pathlib import Path
from typing import Any

import torch
from diffusers import LDMPipeline, ModelMixin, UNet2DModel, VQModel
from torch import Tensor

from rlsd_lightning.priors.latent import PipelinePrior

__all__ = ["LatentDiffusionPrior"]

log = logging.getLogger(__name__)


class LatentDiffusionPrior(PipelinePrior):
    r"""The unconditional UNet of an ``LDMPipeline``, on the latents of a ``VQModel``.

    Latents are encoded without quantization. The decoder sees the nearest vectors of the codebook; the gradient passes
    the quantization unchanged (straight-through), as in ReSample and LatentDAPS.

    Args:
        pretrained: As in :class:`~rlsd_lightning.priors.PipelinePrior`, like the other arguments. An autoencoder whose
            configuration has no ``scaling_factor`` is older than that setting, and its latents are not scaled.

    References:
        | High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022)
        | https://arxiv.org/abs/2112.10752
        | Neural Discrete Representation Learning (van den Oord et al., 2017)
        | https://arxiv.org/abs/1711.00937
        | Solving Inverse Problems with Latent Diffusion Models via Hard Data Consistency (Song et al., 2024)
        | https://arxiv.org/abs/2307.08123
    """

    pipeline = LDMPipeline
    parts = ("scheduler", "unet", "vqvae")
    network_class = UNet2DModel

    def __init__(
        self,
        pretrained: str | Path | LDMPipeline,
        image_size: int | tuple[int, int] | None = None,
        variant: str | None = None,
        weights: str = "float32",
        tile: int | str | None = "auto",
        decoder_checkpointing: bool = False,
        local_files_only: bool = False,
        allow_pickle: bool = False,
        tiny_decoder: str | Path | None = "auto",
    ) -> None:
        super().__init__(
            pretrained,
            image_size=image_size,
            variant=variant,
            weights=weights,
            tile=tile,
            decoder_checkpointing=decoder_checkpointing,
            local_files_only=local_files_only,
            allow_pickle=allow_pickle,
            tiny_decoder=tiny_decoder,
        )

    def unit_of(self, network: UNet2DModel) -> int:
        return 2 ** (len(network.config.block_out_channels) - 1)  # its levels halve and join latents without padding

    def autoencoder_of(self, pipeline: LDMPipeline) -> ModelMixin:
        return pipeline.vqvae

    def set_latent_scale(self, vae: ModelMixin) -> None:
        super().set_latent_scale(vae)
        if "scaling_factor" in vae.config.get("_use_default_values", ()):
            log.info("the autoencoder's configuration has no scaling_factor; latents are not scaled")
            self.scaling = 1.0

    def conditions(self, pipeline: LDMPipeline, *_: Any) -> dict[str, Tensor]:
        return {}

    def evaluate(self, z_t: Tensor, t: Tensor) -> Tensor:
        return self.denoiser(z_t, t).sample

    def _decode(self, z: Tensor) -> Tensor:
        latents = z / self.scaling + self.shift
        if not isinstance(self.vae, VQModel):
            return self.vae.decode(latents.to(self.vae.dtype)).sample.to(z.dtype)
        latents = quantized(latents, self.vae.quantize.embedding.weight.float())
        return self.vae.decode(latents.to(self.vae.dtype), force_not_quantize=True).sample.to(z.dtype)


def quantized(latents: Tensor, codebook: Tensor) -> Tensor:
    """The nearest vectors of a codebook, with the gradient of the identity.

    In float32 and without the expansion of the square: rounded distances would pick other vectors.

    Args:
        latents: With shape :math:`(N, C, h, w)`.
        codebook: With shape :math:`(K, C)`.
    """
    positions = latents.detach().float().movedim(1, -1)
    nearest = torch.cdist(positions.flatten(0, -2), codebook, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
    vectors = codebook[nearest].view(positions.shape).movedim(-1, 1).to(latents)
    return latents + (vectors - latents).detach()
