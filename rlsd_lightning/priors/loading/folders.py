"""Kinds of checkpoints: a pipeline's folder, a cache of the hub, one file, or a part of a pipeline."""

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlsd_lightning.errors import InputError, first_line

__all__ = [
    "INDEX",
    "ONE_FILE",
    "is_lora",
    "lora_error",
    "not_a_pipeline",
    "pipeline_folder",
    "read_config",
    "recipe",
    "variant_of",
]

log = logging.getLogger(__name__)

INDEX = "model_index.json"
ONE_FILE = (".safetensors", ".ckpt")
"""Suffixes of files that hold a whole pipeline."""
WEIGHTS = re.compile(r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(\w+))?\.(safetensors|bin)")
SHARD = re.compile(r"-\d+-of-\d+")
LORA = re.compile(r"lora|adapter_(model|config)", re.IGNORECASE)


def read_config(file: Path) -> dict[str, Any]:
    """Settings of a JSON file.

    Raises:
        InputError: If it is cut off or no such file.
    """
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"pretrained: '{file}' can't be read ({first_line(error)}); fetch or copy the checkpoint again"
        ) from error


def pipeline_folder(given: Path) -> Path:
    """The folder of a pipeline: that given, or the current snapshot of a hub cache's ``models--org--name``.

    Raises:
        InputError: If a cache has several snapshots and does not say which is current.
    """
    snapshots = given / "snapshots"
    if (given / INDEX).is_file() or not snapshots.is_dir():
        return given
    current = given / "refs" / "main"
    if current.is_file() and (snapshots / current.read_text(encoding="utf-8").strip()).is_dir():
        return snapshots / current.read_text(encoding="utf-8").strip()
    found = sorted(snapshot for snapshot in snapshots.iterdir() if snapshot.is_dir())
    if len(found) != 1:
        raise InputError(
            f"pretrained must name one snapshot of the hub cache '{given}', which has {len(found)} and no current one; "
            f"give one folder of '{snapshots}'"
        )
    return found[0]


def variant_of(folder: Path, parts: Sequence[str], allow_pickle: bool) -> str | None:
    """The variant of the weights that a folder has alone, such as ``fp16``; None if it has weights without a variant."""
    suffixes = ("safetensors", "bin") if allow_pickle else ("safetensors",)
    variants = set()
    for part in parts:
        names = [SHARD.sub("", file.name) for file in (folder / part).iterdir()]
        found = {match[1] for match in map(WEIGHTS.fullmatch, names) if match and match[2] in suffixes}
        if found and None not in found:
            variants.add("fp16" if "fp16" in found else min(found))
    if len(variants) != 1:
        return None
    (variant,) = variants
    log.info("%s: only weights of the variant %s are there, they are taken", folder, variant)
    return variant


def recipe(code: str, saved: str) -> str:
    """A command that turns files into a pipeline's folder, and what to do with it."""
    return f'run: python -c "{code}" and give pretrained={saved}'


def not_a_pipeline(given: Path, kind: type) -> InputError:
    """The error for a path that is no pipeline: what it is instead, and how to make a pipeline of it."""
    names = [entry.name for entry in given.iterdir()] if given.is_dir() else [given.name]
    if any(LORA.search(name) and name.endswith((".safetensors", ".bin", ".json")) for name in names):
        return lora_error(given)
    if (given.parent / INDEX).is_file():
        return InputError(
            f"pretrained must be a whole diffusers pipeline folder, but '{given}' is a part of one; give '{given.parent}'"
        )
    single = sorted(name for name in names if Path(name).suffix in ONE_FILE) if given.is_dir() else []
    config = given / "config.json"
    if config.is_file():
        what = read_config(config).get("_class_name", "a single network")
        return InputError(
            f"pretrained must be a whole diffusers pipeline folder, but '{given}' holds {what} alone; put it into a "
            f"{kind.__name__} of the same family and save that with save_pretrained"
        )
    if single:
        return InputError(
            f"pretrained must be a diffusers pipeline folder or one file, but '{given}' has no {INDEX}; give "
            f"'{given / single[0]}'"
        )
    inside = sorted(entry.parent for entry in given.glob(f"*/{INDEX}")) if given.is_dir() else []
    advice = f"give '{inside[0]}'" if inside else "give the folder that the pipeline's save_pretrained wrote"
    return InputError(f"pretrained must be a diffusers pipeline folder, but '{given}' has no {INDEX}; {advice}")


def lora_error(given: Path) -> InputError:
    """The error for LoRA weights in the place of a pipeline."""
    return InputError(
        f"pretrained must be a whole diffusers pipeline folder, but '{given}' holds LoRA weights alone, which change a "
        f"base model; give that base model as pretrained, and lora='{given}'"
    )


def is_lora(keys: Sequence[str]) -> bool:
    """Whether tensors of these names are LoRA weights."""
    return any(LORA.search(key) for key in keys)
