"""Problems of the benchmarks: the embedded prior, and Stable Diffusion's architectures with random weights.

Time and memory don't depend on the weights.
"""

from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from deepinv.physics import Physics
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from rlsd_lightning import LatentFeatures, StableDiffusionPrior, ViTFeatures
from rlsd_lightning.operators import inpainting
from rlsd_lightning.priors import Prior
from rlsd_lightning.priors.loading import TinyDecoder
from rlsd_lightning.priors.measured.calibration import Calibration

__all__ = ["PRIORS", "Problem", "RandomStableDiffusion", "make_problem", "stable_diffusion_levels"]

DATA = Path(__file__).resolve().parents[1] / "data"

UNETS = {  # the class's defaults are Stable Diffusion 1's, except the width of the text
    "sd15": {"cross_attention_dim": 768},
    "sd21-base": {
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
}


def stable_diffusion_levels() -> tuple[Tensor, Tensor]:
    """Stable Diffusion's signal and noise levels, always with values."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, device="cpu") ** 2
    alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    return alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()


class RandomStableDiffusion(StableDiffusionPrior):
    """Stable Diffusion 1.5 or 2.1-base with random weights and a random text.

    Args:
        architecture: ``sd15`` or ``sd21-base``.
        tiny: Whether it has a tiny decoder of taesd's architecture.
        settings: Further arguments of the prior.
    """

    def __init__(self, architecture: str = "sd15", tiny: bool = False, **settings: Any) -> None:
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        )
        unet = UNet2DConditionModel(sample_size=64, **UNETS[architecture])
        parts = {
            "text_encoder": None,
            "tokenizer": None,
            "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False),
            **self.left_out,
        }
        # random networks predict nothing, and may be without memory
        with mock.patch("rlsd_lightning.priors.latent.try_networks"):
            super().__init__(StableDiffusionPipeline(vae=vae, unet=unet, **parts), tiny_decoder=None, **settings)
        self.calibration = Calibration(
            0.05, 0.1, 0.5, 1.0, (0.9, 1.1), 1, "samples"
        )  # none is measured on random networks
        self.tiny = TinyDecoder(AutoencoderTiny()) if tiny else None
        self.freeze()

    def warn_of_long_prompts(self, *_, **__) -> None:
        """There is no tokenizer."""

    def schedule(self, pipeline: StableDiffusionPipeline, tokens: int) -> tuple[tuple[Tensor, Tensor], str, int]:
        return stable_diffusion_levels(), "epsilon", 1

    def conditions(self, pipeline: StableDiffusionPipeline, *_: str | float) -> dict[str, Tensor]:
        return {"text": torch.randn(1, 77, pipeline.unet.config.cross_attention_dim)}


class RandomViT(nn.Module):
    """DINO's ViT-S/16 with random weights, at the images' own size as in the published runs."""

    def __init__(self) -> None:
        super().__init__()
        config = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, patch_size=16)
        self.vit = ViTModel(config, add_pooling_layer=False)
        self.eval().requires_grad_(False)

    def forward(self, z: Tensor, images: Tensor) -> Tensor:
        return self.vit(pixel_values=images, interpolate_pos_encoding=True).last_hidden_state[:, 0]


EMBEDDED = ("faces", "photos")
PRIORS = ("faces", *UNETS)


class Problem(NamedTuple):
    """Arguments of a step."""

    prior: Prior
    features: nn.Module
    physics: Physics
    y: Tensor
    num_particles: int


def make_problem(
    name: str,
    num_particles: int,
    device: torch.device | str,
    image_size: int | tuple[int, int] | None = None,
    decoder_checkpointing: bool = False,
) -> Problem:
    """Half-image inpainting on one of :data:`PRIORS`, with a vision transformer for the kernel, or on ``photos``, with latents.

    Images have the prior's own size (64 pixels of the embedded ones, 512 of Stable Diffusion) if it is left out.
    """
    with torch.device(device if name not in EMBEDDED else "cpu"):  # random weights are drawn where they are needed
        if name in EMBEDDED:
            prior = StableDiffusionPrior(str(DATA / "priors" / name), image_size=image_size, tiny_decoder=None)
            features = ViTFeatures(str(DATA / "features/faces")) if name == "faces" else LatentFeatures()
        else:
            settings = {"image_size": image_size, "decoder_checkpointing": decoder_checkpointing}
            prior, features = RandomStableDiffusion(name, **settings), RandomViT()
    physics = inpainting(prior.image_shape, mask="half")
    y = torch.zeros(1, *prior.image_shape)
    return Problem(prior.to(device), features.to(device), physics.to(device), y.to(device), num_particles)
