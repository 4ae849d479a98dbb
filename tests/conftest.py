"""A tiny random Stable Diffusion and a tiny random ViT, in the on-disk formats of the real ones."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from transformers import ViTConfig, ViTModel

from rlsd_lightning.features import ViTFeatures
from rlsd_lightning.miniature.diffusion import Diffusion, make_tokenizer, save_pipeline
from rlsd_lightning.priors import StableDiffusionPrior

PROJECT = Path(__file__).resolve().parents[1]
IMAGE_SIZE = 32


@pytest.fixture(scope="session")
def tiny_prior_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusionPipeline folder: images 32x32, latents 4x8x8."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("prior")
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=IMAGE_SIZE,
        scaling_factor=0.5,
    )
    tokenizer = make_tokenizer(["a face, light skin", "a beard"])
    module = Diffusion(len(tokenizer), tokenizer.eos_token_id, latent_size=8, channels=(16, 16))
    save_pipeline(folder, vae, module, tokenizer)
    return folder


@pytest.fixture(scope="session")
def tiny_features_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViTModel folder for images of 32x32."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("features")
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=IMAGE_SIZE,
        patch_size=8,
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_prior(tiny_prior_folder: Path) -> StableDiffusionPrior:
    """The tiny pipeline as a prior."""
    return StableDiffusionPrior(str(tiny_prior_folder), local_files_only=True)


@pytest.fixture
def tiny_features(tiny_features_folder: Path) -> ViTFeatures:
    """The tiny ViT as features."""
    return ViTFeatures(str(tiny_features_folder), local_files_only=True)
