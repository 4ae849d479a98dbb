"""Number formats: what is computed in float32, whatever the networks are computed in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["full_precision"]


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Float32 without autocast, and without TF32 in a GPU's matrix products and convolutions.

    Closed forms and likelihoods multiply rounding errors by large weights.
    """
    matmul, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with torch.autocast(device.type, enabled=False):
        try:
            if device.type == "cuda":
                torch.set_float32_matmul_precision("highest")
                torch.backends.cudnn.allow_tf32 = False
            yield
        finally:
            if device.type == "cuda":
                torch.set_float32_matmul_precision(matmul)
                torch.backends.cudnn.allow_tf32 = convolutions
