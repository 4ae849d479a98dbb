"""Tiny random networks in the on-disk formats of the real ones."""

from pathlib import Path

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from examples.face_prior.diffusion import make_tokenizer
from rlsd_lightning.priors import Calibration, save_calibration

IMAGE_SIZE = 32


def tiny_vae(**settings) -> AutoencoderKL:
    """Images 32x32, latents 4x8x8."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=IMAGE_SIZE,
        **{"scaling_factor": 0.5, **settings},
    )


def tiny_tokenizer() -> CLIPTokenizer:
    """A few words."""
    return make_tokenizer(["a face, light skin", "a beard"])


def tiny_text_encoder(kind: type, tokenizer: CLIPTokenizer) -> CLIPTextModel | CLIPTextModelWithProjection:
    """16 wide, with a projection of 16 if the kind has one."""
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            projection_dim=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()


def tiny_unet(**settings) -> UNet2DConditionModel:
    """Latents 4x8x8."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
        **{"cross_attention_dim": 16, **settings},
    ).eval()


def calibrated(folder: Path) -> Path:
    """The folder of a random pipeline, with scales beside it: measuring random networks takes time and means nothing."""
    save_calibration(folder, (3, IMAGE_SIZE, IMAGE_SIZE), Calibration(0.08, 1.0, 0.5, 1.0, (1.0, 1.0), 8, "pictures"))
    return folder
