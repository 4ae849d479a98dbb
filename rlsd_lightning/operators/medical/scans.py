r"""Scanners' arrays as measurements.

A scanner measures one grey image :math:`g \geq 0`; the prior makes images :math:`x` in [-1, 1], of three channels as a
rule. A scan :math:`A` measures the mean of the channels, and the grey of a particle is its solution: the colours, which
nothing measures, are left to the prior. With the value :math:`w` that is white, :math:`g = w (x + 1) / 2`, and the linear
scan :math:`A(g)` becomes the measurement :math:`y = 2 A(g) / w - A(1)`.
"""

import math
from typing import Protocol, runtime_checkable

import torch
from deepinv.physics import Physics
from torch import Tensor

from rlsd_lightning.errors import InputError

__all__ = [
    "PerMeasurement",
    "SeesGrey",
    "as_seen",
    "check_white",
    "grey_of",
    "in_image_units",
    "require_finite",
    "shape_text",
]


@runtime_checkable
class PerMeasurement(Protocol):
    """Operator that depends on the measurement that it explains."""

    def for_measurement(self, y: Tensor) -> Physics:
        """The operator of one measurement, which has the shape of :math:`A(x)`."""


@runtime_checkable
class SeesGrey(Protocol):
    """Operator that may measure the mean of the channels only."""

    def as_seen(self, images: Tensor) -> Tensor:
        """Images in grey if nothing else is measured, with shape :math:`(N, C, H, W)`; else unchanged."""


def as_seen(physics: Physics, images: Tensor) -> Tensor:
    """Images of shape :math:`(N, C, H, W)`, in grey if the operator measures nothing else."""
    return physics.as_seen(images) if isinstance(physics, SeesGrey) else images


def grey_of(images: Tensor) -> Tensor:
    """Mean of the channels, as an image with as many equal channels."""
    return images.mean(dim=1, keepdim=True).expand_as(images)


def shape_text(**axes: int) -> str:
    """Names and lengths of axes, such as ``(row, column) = (64, 64)``."""
    return f"({', '.join(axes)}) = ({', '.join(map(str, axes.values()))})"


def require_finite(values: Tensor, what: str) -> None:
    """Raises an InputError for values that are infinite or not a number."""
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise InputError(
            f"{what} of finite numbers is expected, got {bad} infinite or NaN values of {values.numel()}; replace them"
        )


def check_white(white: float | None) -> None:
    """Raises an InputError unless white is None or a finite number above 0."""
    if white is not None and not 0 < white < math.inf:
        raise InputError(f"white must be above 0, or null for scans of images in [-1, 1], got {white}")


def in_image_units(scan: Tensor, of_white: Tensor, white: float | None) -> Tensor:
    r"""Scan in units of an image in [-1, 1], :math:`2 A(g) / w - A(1)`.

    Args:
        scan: The scan :math:`A(g)` of an image in [0, w], or of one in [-1, 1] if white is None.
        of_white: The scan :math:`A(1)`.
        white: The value :math:`w` that is white.
    """
    return scan if white is None else 2 / white * scan - of_white
