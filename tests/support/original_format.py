"""Stable Diffusion folders as one file of the original format, with one layer per block."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

Rule = tuple[str, str | Callable[[re.Match], str]]
RESNET = (
    (r"\.norm1\.", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.norm2\.", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.conv_shortcut\.", ".skip_connection."),
)
UNET: tuple[Rule, ...] = (
    (r"^time_embedding\.linear_1", "time_embed.0"),
    (r"^time_embedding\.linear_2", "time_embed.2"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    (r"^down_blocks\.(\d+)\.resnets\.0", lambda m: f"input_blocks.{1 + 2 * int(m[1])}.0"),
    (r"^down_blocks\.(\d+)\.attentions\.0", lambda m: f"input_blocks.{1 + 2 * int(m[1])}.1"),
    (r"^down_blocks\.(\d+)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{2 + 2 * int(m[1])}.0.op"),
    (r"^up_blocks\.(\d+)\.resnets\.(\d)", lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.0"),
    (r"^up_blocks\.(\d+)\.attentions\.(\d)", lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.1"),
    (r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
)


def vae_rules(blocks: int) -> tuple[Rule, ...]:
    """Names of an autoencoder's weights; its decoder's blocks are counted from the other end."""
    return (
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
        (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block"),
        (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
    )


def renamed(name: str, rules: Iterable[Rule]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def in_one(folder: Path) -> dict[str, Tensor]:
    """All weights of a pipeline's folder, by their original names."""
    unet, vae = (load_file(folder / part / "diffusion_pytorch_model.safetensors") for part in ("unet", "vae"))
    text = load_file(folder / "text_encoder" / "model.safetensors")
    attends = {name.split(".")[1] for name in unet if name.startswith("up_blocks") and ".attentions." in name}

    def upsampler(match: re.Match) -> str:
        return f"output_blocks.{2 * int(match[1]) + 1}.{2 if match[1] in attends else 1}.conv"

    rules = ((r"^up_blocks\.(\d+)\.upsamplers\.0\.conv", upsampler), *UNET)
    named = {}
    for name, value in unet.items():
        inner = RESNET if ".resnets." in name else ()
        named[f"model.diffusion_model.{renamed(renamed(name, rules), inner)}"] = value
    blocks = len({name.split(".")[2] for name in vae if name.startswith("decoder.up_blocks")})
    named |= {f"first_stage_model.{renamed(name, vae_rules(blocks))}": value for name, value in vae.items()}
    prefix = "" if any(name.startswith("text_model") for name in text) else "text_model."
    named |= {f"cond_stage_model.transformer.{prefix}{name}": value for name, value in text.items()}
    return {name: value.contiguous() for name, value in named.items()}
