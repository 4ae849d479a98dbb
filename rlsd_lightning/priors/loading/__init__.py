"""Checkpoints from folders, files or the hub: each is understood or refused when it is loaded."""

from rlsd_lightning.priors.loading.lora import add_lora
from rlsd_lightning.priors.loading.parts import (
    check_channels,
    check_conditions,
    checked_image_size,
    encoded_latents,
    latent_scale,
    latent_stride,
    pair,
    tile_size,
)
from rlsd_lightning.priors.loading.pipelines import load_pipeline
from rlsd_lightning.priors.loading.schedules import clip_range, ddim_levels, flow_levels
from rlsd_lightning.priors.loading.tiny import ShuffleDecoder, TinyDecoder, find_tiny, load_tiny

__all__ = [
    "ShuffleDecoder",
    "TinyDecoder",
    "add_lora",
    "check_channels",
    "check_conditions",
    "checked_image_size",
    "clip_range",
    "ddim_levels",
    "encoded_latents",
    "find_tiny",
    "flow_levels",
    "latent_scale",
    "latent_stride",
    "load_pipeline",
    "load_tiny",
    "pair",
    "tile_size",
]
