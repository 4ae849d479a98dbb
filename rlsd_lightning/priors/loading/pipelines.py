"""Pipelines from folders, single files or the hub."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import FromSingleFileMixin
from safetensors import SafetensorError, safe_open
from torch import nn

from rlsd_lightning.errors import InputError, fetch_remedy, first_line, is_out_of_memory
from rlsd_lightning.priors.loading.folders import (
    INDEX,
    ONE_FILE,
    is_lora,
    lora_error,
    not_a_pipeline,
    pipeline_folder,
    read_config,
    recipe,
    variant_of,
)
from rlsd_lightning.priors.loading.schedules import check_named, check_written

__all__ = ["load_pipeline"]

WEIGHT_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


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
    """Loads a pipeline from a folder, a cache of the hub, one file of the original format, or the hub.

    A folder with weights of one variant only is read in that variant.

    Args:
        kind: The pipeline's class; the further arguments are as in :class:`~rlsd_lightning.priors.PipelinePrior`.
        parts: Subfolders that a local folder must have.
        options: Further arguments of ``from_pretrained``.

    Raises:
        InputError: If there is no such pipeline.
    """
    if weights not in WEIGHT_TYPES:
        raise InputError(f"weights must be one of {', '.join(WEIGHT_TYPES)}, got '{weights}'")
    options |= {"torch_dtype": WEIGHT_TYPES[weights], "local_files_only": local_files_only}
    given = Path(pretrained)
    with warnings.catch_warnings():
        # the only name of it that all supported versions of diffusers know
        warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
        if given.is_file() and given.suffix in ONE_FILE:
            pipeline = _from_one_file(kind, given, allow_pickle, options)
        else:
            pipeline = _from_folder(kind, str(pretrained), parts, variant, allow_pickle, options)
    for part in pipeline.components.values():  # some are left in float32
        if isinstance(part, nn.Module) and part.dtype != WEIGHT_TYPES[weights]:
            part.to(WEIGHT_TYPES[weights])
    return pipeline


def _from_folder(
    kind: type[DiffusionPipeline],
    pretrained: str,
    parts: Sequence[str],
    variant: str | None,
    allow_pickle: bool,
    options: dict[str, Any],
) -> DiffusionPipeline:
    folder = Path(pretrained)
    is_local = folder.exists()
    if is_local:
        folder = pipeline_folder(folder)
        _check_folder(folder, kind, parts)
        variant = variant or variant_of(folder, parts, allow_pickle)
    try:
        pipeline = kind.from_pretrained(
            str(folder) if is_local else pretrained,
            variant=variant,
            use_safetensors=None if allow_pickle else True,
            low_cpu_mem_usage=False,  # the other way needs accelerate
            **options,
        )
    except Exception as error:  # diffusers, transformers and the formats' readers raise errors of many kinds
        if is_out_of_memory(error):
            raise
        remedy = (
            _folder_remedy(folder, kind, variant, allow_pickle) if is_local else _hub_remedy(pretrained, allow_pickle)
        )
        raise InputError(
            f"pretrained must be a complete diffusers folder or a model that can be fetched, got '{pretrained}' "
            f"({first_line(error)}); {remedy}"
        ) from error
    if is_local:
        check_written(folder, pipeline.scheduler)
    return pipeline


def _check_folder(folder: Path, kind: type[DiffusionPipeline], parts: Sequence[str]) -> None:
    """Raises an InputError for a local path that is no folder of a pipeline with these parts."""
    if not (folder / INDEX).is_file():
        raise not_a_pipeline(folder, kind)
    missing = [part for part in parts if not (folder / part).is_dir()]
    if missing:
        raise InputError(
            f"pretrained must be a complete folder of a {kind.__name__}, but '{folder}' has no "
            f"{', '.join(missing)}; copy or save the whole folder again, or choose the prior that fits it"
        )
    check_named(folder)


def _folder_remedy(folder: Path, kind: type[DiffusionPipeline], variant: str | None, allow_pickle: bool) -> str:
    """What to do if a local folder can't be loaded."""
    named = read_config(folder / INDEX).get("_class_name")
    if named != kind.__name__:
        return f"it is a {named}, a {kind.__name__} is expected; choose the prior of its family"
    if variant and not list(folder.glob(f"*/*.{variant}*")):
        return f"it has no weights of the variant '{variant}'; leave variant out"
    if not allow_pickle and list(folder.glob("*/*.bin")):
        return "it has pickled weights; if you trust them, set allow_pickle=true"
    return "copy or save the whole folder again"


def _hub_remedy(name: str, allow_pickle: bool) -> str:
    """What to do if a model of the hub can't be loaded."""
    hint = "" if allow_pickle else "; if it has pickled weights only and you trust it, set allow_pickle=true"
    return f"{fetch_remedy(name)} (weights in half precision only: set variant=fp16){hint}"


def _from_one_file(
    kind: type[DiffusionPipeline], file: Path, allow_pickle: bool, options: dict[str, Any]
) -> DiffusionPipeline:
    """A pipeline from one file of the original format; its configuration is beside it or on the hub."""
    if not issubclass(kind, FromSingleFileMixin):
        raise InputError(f"pretrained must be the folder of a {kind.__name__}, got the file '{file}'")
    if file.suffix == ".ckpt" and not allow_pickle:
        raise InputError(
            f"pretrained must be a .safetensors file or a folder, got the pickled '{file}'; if you trust it, set "
            "allow_pickle=true"
        )
    if file.suffix == ".safetensors" and is_lora(_keys(file)):
        raise lora_error(file)
    beside = {"config": str(file.parent)} if (file.parent / INDEX).is_file() else {}
    code = f"from diffusers import {kind.__name__} as P; P.from_single_file('{file}').save_pretrained('{file.stem}')"
    needed = recipe(code, file.stem)
    if not beside and options["local_files_only"]:
        raise InputError(
            f"pretrained: the file '{file}' has no configuration beside it, and local_files_only=true forbids to fetch "
            f"one; where the hub can be reached, {needed}"
        )
    try:
        return kind.from_single_file(str(file), **beside, **options)
    except Exception as error:  # diffusers, transformers and the formats' readers raise errors of many kinds
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"pretrained: '{file}' can't be read as a whole {kind.__name__} ({first_line(error)}); if it is one, then "
            f"where the hub can be reached {needed}"
        ) from error


def _keys(file: Path) -> list[str]:
    """Names of the tensors in a file.

    Raises:
        InputError: If it is no such file.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(f"pretrained: '{file}' can't be read ({first_line(error)}); fetch or copy it again") from error
