"""Checkpoints from folders, files or the hub: each is understood or refused when it is loaded."""

from rlsd_lightning.priors.loading.lora import add_lora
from rlsd_lightning.priors.loading.parts import check_channels, check_conditions, image_and_unit, latent_scale
from rlsd_lightning.priors.loading.pipelines import load_pipeline
from rlsd_lightning.priors.loading.schedules import ddim_levels, flow_levels

__all__ = [
    "add_lora",
    "check_channels",
    "check_conditions",
    "ddim_levels",
    "flow_levels",
    "image_and_unit",
    "latent_scale",
    "load_pipeline",
]
