"""Automatic choices of a run (precision, batch size, scales of the prior, ...): kept in its folder, so that a resumed run computes the same."""

import json
from pathlib import Path

import torch

from rlsd_lightning.errors import InputError, first_line
from rlsd_lightning.results.store import write_json

__all__ = ["chosen", "keep_chosen", "use_precision"]

Choice = str | int | bool | dict

CHOSEN = "chosen.json"
"""File of a run's choices, in its folder."""


def chosen(folder: Path, name: str) -> Choice | None:
    """A choice of the run in this folder, or None if it has not been made."""
    return _read(folder).get(name)


def keep_chosen(folder: Path, name: str, value: Choice) -> None:
    """Keep a choice, beside the others or in place of an earlier one."""
    write_json(folder / CHOSEN, {**_read(folder), name: value})


def _read(folder: Path) -> dict[str, Choice]:
    file = folder / CHOSEN
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(
            f"'{file}' can't be read ({first_line(error)}); remove it to choose precision and memory anew"
        ) from error


def use_precision(asked: str, device: torch.device) -> str:
    """The Trainer's precision on a device; a GPU's float32 matrix products become TF32.

    ``auto`` is bf16-mixed on a GPU with bfloat16 arithmetic, else 32-true.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    if asked != "auto":
        return asked
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if has_bfloat16 else "32-true"
