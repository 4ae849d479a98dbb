"""What the benchmarks measure a step on: the embedded prior, and the true architectures of Stable Diffusion.

These have random weights: time and memory don't depend on the weights.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from deepinv.physics import Physics
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from rlsd_lightning import StableDiffusionPrior, ViTFeatures
from rlsd_lightning.operators import inpainting
from rlsd_lightning.priors import LatentPrior, Prior

__all__ = ["PRIORS", "Problem", "make_problem"]

DATA = Path(__file__).resolve().parents[1] / "data"

UNETS = {  # the class's defaults are Stable Diffusion 1's, but for the width of the text
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


class RandomStableDiffusion(LatentPrior):
    """Stable Diffusion 1.5 or 2.1-base with random weights and a random text.

    Args:
        architecture: ``sd15`` or ``sd21-base``.
        image_size: Height and width in pixels, or one number for both.
        decoder_checkpointing: Recompute the decoder's activations in the backward pass.
    """

    def __init__(
        self, architecture: str = "sd15", image_size: int | tuple[int, int] = 512, decoder_checkpointing: bool = False
    ) -> None:
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        )
        unet = UNet2DConditionModel(sample_size=64, **UNETS[architecture])
        super().__init__(
            vae,
            stable_diffusion_levels(),
            latent_channels=4,
            image_size=image_size,
            conditions={"text": torch.randn(1, 77, unet.config.cross_attention_dim)},
            guidance_scale=1.0,
            prediction_type="epsilon",
            timestep_offset=1,
            decoder_checkpointing=decoder_checkpointing,
        )
        self.denoiser = unet
        self.freeze()

    def evaluate(self, z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return self.denoiser(z_t, t, text).sample


class RandomViT(nn.Module):
    """DINO's ViT-S/16 with random weights, at the images' own size as in the published runs."""

    def __init__(self) -> None:
        super().__init__()
        config = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, patch_size=16)
        self.vit = ViTModel(config, add_pooling_layer=False)
        self.eval().requires_grad_(False)

    def forward(self, z: Tensor, images: Tensor) -> Tensor:
        return self.vit(pixel_values=images, interpolate_pos_encoding=True).last_hidden_state[:, 0]


PRIORS = ("faces", *UNETS)


class Problem(NamedTuple):
    """What a step is made of."""

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
    """Half-image inpainting on one of :data:`PRIORS`, with a vision transformer for the kernel.

    Images have the prior's own size (64 pixels of the embedded one, 512 of Stable Diffusion) if it is left out.
    """
    with torch.device(device if name != "faces" else "cpu"):  # random weights are drawn where they are needed
        if name == "faces":
            prior = StableDiffusionPrior(str(DATA / "priors/faces"), image_size=image_size)
            features = ViTFeatures(str(DATA / "features/faces"))
        else:
            prior, features = RandomStableDiffusion(name, image_size or 512, decoder_checkpointing), RandomViT()
    physics = inpainting(prior.image_shape, mask="half")
    y = torch.zeros(1, *prior.image_shape)
    return Problem(prior.to(device), features.to(device), physics.to(device), y.to(device), num_particles)
