"""Noise levels of a checkpoint's own scheduler."""

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from rlsd_lightning.errors import InputError
from rlsd_lightning.priors.loading.folders import INDEX, read_config

__all__ = ["check_named", "check_written", "ddim_levels", "flow_levels"]

DIFFUSION = frozenset(
    f"{name}Scheduler"
    for name in (
        *("DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep", "DPMSolverMultistep"),
        *("DPMSolverMultistepInverse", "DPMSolverSDE", "DPMSolverSinglestep", "EulerAncestralDiscrete"),
        *("EulerDiscrete", "HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete", "LCM", "LMSDiscrete", "PNDM"),
        *("RePaint", "SASolver", "TCD", "UniPCMultistep"),
    )
)
"""Schedulers whose betas give signal and noise levels with alpha^2 + sigma^2 = 1."""
FLOW_MATCHING = frozenset(f"FlowMatch{name}Scheduler" for name in ("EulerDiscrete", "HeunDiscrete", "LCM"))
"""Schedulers with alpha + sigma = 1."""


def _is_one_of(names: frozenset[str], scheduler: Any) -> bool:
    return not names.isdisjoint(base.__name__ for base in type(scheduler).__mro__)


def ddim_levels(scheduler: Any) -> tuple[tuple[Tensor, Tensor], str, int]:
    """Signal and noise levels, prediction type and timestep offset of a scheduler.

    Zero-terminal-SNR schedules are rescaled as their configuration says.

    Raises:
        InputError: If the scheduler is of another family, or the schedule ends in pure noise but the network predicts
            noise, which says nothing there.
    """
    if not _is_one_of(DIFFUSION, scheduler):
        raise InputError(_unknown(type(scheduler).__name__))
    own = dict(scheduler.config)
    try:
        config = DDIMScheduler.from_config(own)
        alphas_cumprod = config.alphas_cumprod.clamp(0, 1)
    except NotImplementedError:  # a beta schedule that only this scheduler knows
        config, alphas_cumprod = scheduler, scheduler.alphas_cumprod.clamp(0, 1)
    kind = config.config.prediction_type
    if alphas_cumprod[-1] == 0 and kind == "epsilon":
        raise InputError(
            "the checkpoint's schedule ends in pure noise (rescale_betas_zero_snr), where a prediction of type epsilon "
            "says nothing; set prediction_type to v_prediction in its scheduler_config.json if it was trained so"
        )
    return (alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()), kind, config.config.get("steps_offset", 0)


def clip_range(scheduler: Any) -> float | None:
    """Largest magnitude of a scheduler's clean samples, which clips them there; None if it doesn't."""
    return scheduler.config.get("clip_sample_range", 1.0) if scheduler.config.get("clip_sample", False) else None


def flow_levels(scheduler: Any, tokens: int) -> tuple[tuple[Tensor, Tensor], str, int]:
    """Levels, prediction type and timestep offset of a flow-matching scheduler, its shift included.

    Args:
        scheduler: One with alpha + sigma = 1, or a diffusion scheduler with ``use_flow_sigmas``, as Sana's.
        tokens: Number of a latent's patches, on which a dynamic shift depends.

    Raises:
        InputError: If the scheduler is of another family.
    """
    config = scheduler.config
    uses_flow_sigmas = config.get("use_flow_sigmas", False)
    if not (_is_one_of(FLOW_MATCHING, scheduler) or uses_flow_sigmas):
        raise InputError(
            f"pretrained: a flow-matching scheduler is expected, got {type(scheduler).__name__}; give a pipeline with its own "
            "scheduler"
        )
    sigmas = torch.arange(1, config.num_train_timesteps + 1) / config.num_train_timesteps
    if config.get("use_dynamic_shifting", False):
        names = {"base_seq_len": "base_image_seq_len", "max_seq_len": "max_image_seq_len"}
        names |= {name: name for name in ("base_shift", "max_shift")}
        known = {name: config[given] for name, given in names.items() if given in config}
        mu = calculate_shift(tokens, **known)
        is_linear = config.get("time_shift_type", "exponential") == "linear"
        shift = mu if is_linear else math.exp(mu)
    else:
        shift = config.flow_shift if uses_flow_sigmas else config.shift
    sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    return (1 - sigmas, sigmas), "flow", 0


def check_named(folder: Path) -> None:
    """Checks the scheduler that a folder's ``model_index.json`` names, which may be one that can't be loaded.

    Raises:
        InputError: If it is of neither family.
    """
    library_and_name = read_config(folder / INDEX).get("scheduler") or [None]
    name = library_and_name[-1]
    if isinstance(name, str) and name not in DIFFUSION | FLOW_MATCHING:
        raise InputError(_unknown(name))


def _unknown(name: str) -> str:
    return (
        f"pretrained: a schedule of signal and noise levels (betas) is expected, got {name}; give a checkpoint that was "
        "trained with DDPM noise (flow matching: Stable Diffusion 3, Flux or Sana)"
    )


def check_written(folder: Path, scheduler: Any) -> None:
    """Checks that a folder's scheduler was loaded as the family that wrote its configuration.

    Raises:
        InputError: If ``model_index.json`` names another family, whose levels would silently be defaults.
    """
    file = folder / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return
    written = read_config(file).get("_class_name", type(scheduler).__name__)
    for names in (DIFFUSION, FLOW_MATCHING):
        if _is_one_of(names, scheduler) and written not in {*names, type(scheduler).__name__}:
            raise InputError(
                f"pretrained: '{file}' was written by {written}, but model_index.json names "
                f"{type(scheduler).__name__}, which does not know its levels; give a checkpoint with one scheduler"
            )
