"""Tiny random networks in the on-disk formats of the real ones."""

from pathlib import Path

from diffusers import AutoencoderDC, AutoencoderKL, SanaTransformer2DModel, UNet2DConditionModel, VQModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from examples.face_prior.diffusion import make_tokenizer
from rlsd_lightning.priors import Calibration, save_calibration

IMAGE_SIZE = 32
TINY = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (8, 8, 8),
    "latent_channels": 4,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}
"""Of autoencoders from images 32x32 to latents 4x8x8."""


def tiny_vae(**settings) -> AutoencoderKL:
    """Images 32x32, latents 4x8x8."""
    return AutoencoderKL(
        **TINY,
        sample_size=IMAGE_SIZE,
        **{"scaling_factor": 0.5, **settings},
    )


def tiny_vq_vae(**settings) -> VQModel:
    """Images 32x32, latents 4x8x8, with a codebook as far spread as the latents are."""
    vae = VQModel(
        **TINY,
        num_vq_embeddings=64,
        **{"scaling_factor": 0.5, **settings},
    )
    vae.quantize.embedding.weight.data.normal_(std=8)
    return vae


def tiny_dc_vae(widths: tuple[int, ...] = (8, 8, 8)) -> AutoencoderDC:
    """Images 32x32, latents 4x8x8; each further width halves the latents' sides."""
    blocks = {}
    for part in ("encoder", "decoder"):
        blocks[f"{part}_block_types"] = ("ResBlock",) * (len(widths) - 1) + ("EfficientViTBlock",)
        blocks[f"{part}_block_out_channels"] = widths
        blocks[f"{part}_layers_per_block"] = (1,) * len(widths)
        blocks[f"{part}_qkv_multiscales"] = ((),) * (len(widths) - 1) + ((5,),)
    return AutoencoderDC(latent_channels=4, attention_head_dim=4, scaling_factor=0.5, **blocks)


def tiny_sana_transformer() -> SanaTransformer2DModel:
    """Latents 4x8x8."""
    return SanaTransformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        cross_attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_dim=16,
        caption_channels=16,
    ).eval()


def tiny_words(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of a few words in the fast format, as the large text encoders have."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "a", "face", ",", "light", "skin", "beard", "Given", "user", "prompt"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=size, **special)


def tiny_t5() -> T5EncoderModel:
    """32 wide."""
    return T5EncoderModel(T5Config(vocab_size=16, d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2)).eval()


def tiny_gemma() -> Gemma2Model:
    """16 wide."""
    return Gemma2Model(
        Gemma2Config(
            vocab_size=16,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            query_pre_attn_scalar=8,
        )
    ).eval()


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
