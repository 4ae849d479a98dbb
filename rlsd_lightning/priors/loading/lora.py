"""Low-rank adaptations (LoRA) of a pipeline's networks, such as LCM-LoRA."""

import warnings
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import is_peft_available
from torch import nn

from rlsd_lightning.errors import InputError, fetch_remedy, first_line

__all__ = ["add_lora"]

NAME = "lora"
"""Name of the adaptation while it is added."""


def add_lora(pipeline: DiffusionPipeline, lora: str | Path, local_files_only: bool = False) -> None:
    """Adds LoRA weights to a pipeline's own, as diffusers does.

    Args:
        pipeline: The base model.
        lora: A folder or a ``.safetensors`` file in a format that diffusers reads, or a name on the hub.
        local_files_only: Never download from the hub.

    Raises:
        InputError: If there are no such weights, they belong to another base model, or peft is not installed.
    """
    if not is_peft_available():
        raise InputError(
            'lora expects the package peft, which is not installed; run: pip install "rlsd-lightning[lora]"'
        )
    from peft import get_peft_model_state_dict  # an extra

    file = Path(lora)
    where = {"weight_name": file.name} if file.is_file() else {}
    source, options = (
        str(file.parent if where else lora),
        {"use_safetensors": True, "local_files_only": local_files_only},
    )
    before = _fingerprint(pipeline)
    try:
        read = pipeline.lora_state_dict(source, **options, **where)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "While injecting the PEFT adapters", RuntimeWarning)  # counted below
            pipeline.load_lora_weights(source, low_cpu_mem_usage=False, adapter_name=NAME, **options, **where)
        taken = sum(
            len(get_peft_model_state_dict(network, adapter_name=NAME))
            for network in _networks(pipeline)
            if _is_adapted(network)
        )
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    except Exception as error:  # diffusers, peft and the formats' readers raise errors of many kinds
        raise InputError(
            f"lora must be LoRA weights for this {type(pipeline).__name__}, got '{lora}' ({first_line(error)}); {fetch_remedy(lora)}, "
            "and that it was made for the same base model"
        ) from error
    held = len([name for name in (read[0] if isinstance(read, tuple) else read) if "lora" in name])
    if taken < held or _fingerprint(pipeline) == before:
        raise InputError(
            f"lora: {taken} of the {held} tensors of '{lora}' fit this {type(pipeline).__name__}; give one that was made for "
            "its base model"
        )


def _networks(pipeline: DiffusionPipeline) -> list[nn.Module]:
    return [part for part in pipeline.components.values() if isinstance(part, nn.Module)]


def _is_adapted(network: nn.Module) -> bool:
    """Whether LoRA layers were put into a network."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return any(isinstance(layer, BaseTunerLayer) for layer in network.modules())


def _fingerprint(pipeline: DiffusionPipeline) -> float:
    """A number that changes with the weights."""
    with torch.no_grad():
        weights = (each for network in _networks(pipeline) for each in network.parameters())
        return sum(each.float().cpu().double().square().sum().item() for each in weights)
