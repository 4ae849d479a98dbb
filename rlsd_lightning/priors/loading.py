"""Pipelines from folders or the hub, and the noise levels of their schedulers."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import Tensor, nn

from rlsd_lightning.errors import LOADING_ERRORS, InputError, first_line

__all__ = ["ddim_levels", "height_and_width", "load_pipeline"]

WEIGHT_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of a size in pixels; one number stands for both."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def ddim_levels(scheduler: Any) -> tuple[tuple[Tensor, Tensor], str, int]:
    """Signal and noise levels, prediction type and timestep offset of a checkpoint's own scheduler.

    Zero-terminal-SNR schedules are rescaled as their configuration says.

    Raises:
        InputError: If the schedule ends in pure noise but the network predicts noise, which says nothing there.
    """
    config = DDIMScheduler.from_config(scheduler.config)
    alphas_cumprod = config.alphas_cumprod.clamp(0, 1)
    kind = config.config.prediction_type
    if alphas_cumprod[-1] == 0 and kind == "epsilon":
        raise InputError(
            "the checkpoint's schedule ends in pure noise (rescale_betas_zero_snr), where a prediction of type epsilon "
            "says nothing; set prediction_type to v_prediction in its scheduler_config.json if it was trained so"
        )
    return (alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()), kind, config.config.steps_offset


def load_pipeline(
    kind: type[DiffusionPipeline],
    pretrained: str,
    parts: Sequence[str],
    variant: str | None = None,
    weights: str = "float32",
    local_files_only: bool = False,
    allow_pickle: bool = False,
    **options: Any,
) -> DiffusionPipeline:
    """Loads a pipeline from a folder or the hub.

    Args:
        kind: The pipeline's class; the further arguments are as in :class:`~rlsd_lightning.priors.PipelinePrior`.
        parts: Subfolders that a local folder must have.
        options: Further arguments of ``from_pretrained``.

    Raises:
        InputError: If there is no such pipeline.
    """
    if weights not in WEIGHT_TYPES:
        raise InputError(f"weights must be one of {', '.join(WEIGHT_TYPES)}, got '{weights}'")
    folder = Path(pretrained)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise InputError(
            f"pretrained must be a diffusers pipeline folder, but '{pretrained}' has no model_index.json; give the folder "
            "that the pipeline's save_pretrained wrote"
        )
    missing = [part for part in parts if folder.exists() and not (folder / part).is_dir()]
    if missing:
        raise InputError(
            f"pretrained must be a complete folder of a {kind.__name__}, but '{pretrained}' has no "
            f"{', '.join(missing)}; copy or save the whole folder again, or choose the prior that fits it"
        )
    try:
        with warnings.catch_warnings():
            # the only name of it that all supported versions of diffusers know
            warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
            pipeline = kind.from_pretrained(
                pretrained,
                variant=variant,
                torch_dtype=WEIGHT_TYPES[weights],
                use_safetensors=None if allow_pickle else True,
                local_files_only=local_files_only,
                low_cpu_mem_usage=False,  # the other way needs accelerate
                **options,
            )
        for part in pipeline.components.values():  # some are left in float32
            if isinstance(part, nn.Module) and part.dtype != WEIGHT_TYPES[weights]:
                part.to(WEIGHT_TYPES[weights])
        return pipeline
    except LOADING_ERRORS as error:
        reason = first_line(error)
        hint = "" if allow_pickle else "; if it has pickled weights only and you trust it, set allow_pickle=true"
        raise InputError(
            f"pretrained must be a complete diffusers folder or a model that can be fetched, got '{pretrained}' "
            f"({reason}); check the path, or fetch it with `hf download {pretrained}`{hint}"
        ) from error
