"""Number formats: what is computed in float32, whatever the networks are computed in."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

__all__ = ["full_precision"]


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Float32 without autocast, and without TF32 in a GPU's matrix products and convolutions.

    Closed forms and likelihoods multiply rounding errors by large weights.
    """
    with torch.autocast(device.type, enabled=False), _without_tf32() if device.type == "cuda" else nullcontext():
        yield


@contextmanager
def _without_tf32() -> Iterator[None]:
    """No TF32, by the interface that is in use: once ``fp32_precision`` was set, torch refuses to read the older settings."""
    try:
        before, off, set_all = _older(), ("highest", False), _set_older
    except RuntimeError:
        before, off, set_all = [each.fp32_precision for each in _kinds()], ["ieee"] * len(_kinds()), _set_newer
    set_all(off)
    try:
        yield
    finally:
        set_all(before)


def _older() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


def _set_older(values: tuple[str, bool]) -> None:
    torch.set_float32_matmul_precision(values[0])
    torch.backends.cudnn.allow_tf32 = values[1]


def _kinds() -> tuple[Any, ...]:
    """What has a precision of its own on a GPU."""
    return torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn


def _set_newer(values: list[str]) -> None:
    for kind, value in zip(_kinds(), values, strict=True):
        kind.fp32_precision = value
