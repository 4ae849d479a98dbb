r"""Scanners' arrays as measurements.

A scanner measures one grey image :math:`g \geq 0`; the prior makes images :math:`x` in [-1, 1], of three channels as a
rule. A scan :math:`A` measures the mean of the channels, and the grey of a particle is its solution: the colours, which
nothing measures, are left to the prior. With the value :math:`w` that is white, :math:`g = w (x + 1) / 2`, and the linear
scan :math:`A(g)` becomes the measurement :math:`y = 2 A(g) / w - A(1)`.
"""

import logging
import math
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor, nn

from rlsd_lightning.errors import InputError
from rlsd_lightning.measurement import Measurement

__all__ = [
    "PerMeasurement",
    "SeesGrey",
    "as_seen",
    "check_white",
    "grey_of",
    "in_image_units",
    "shape_text",
]


log = logging.getLogger(__name__)

DAMPING = 1e4
"""Weight of the misfit against the image's square norm in a pseudo-inverse, for operators of norm one."""


class SolvedByConjugateGradients(LinearPhysics):
    """Linear operator without closed forms.

    Args:
        noise_model: Noise of the measured values.
        steps: Conjugate gradient steps of a proximal step. They are always taken: if a tolerance ended them, the images of a
            batch would depend on each other.
    """

    def __init__(self, noise_model: nn.Module, steps: int) -> None:
        super().__init__(noise_model=noise_model, implicit_backward_solver=False)
        self.steps = steps

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float, **kwargs) -> Tensor:
        r"""Solves :math:`\arg\min_x \tfrac{\gamma}{2} \|A(x) - y\|^2 + \tfrac{1}{2} \|x - z\|^2`."""
        return super().prox_l2(z, y, gamma, max_iter=self.steps, tol=1e-10)

    def A_dagger(self, y: Tensor, **kwargs) -> Tensor:  # noqa: N802
        """Pseudo-inverse, damped and with few steps: conjugate gradients would diverge in the null space."""
        return super().prox_l2(0.0, y, DAMPING, max_iter=self.steps, tol=1e-4)


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


def as_seen(pairs: Iterable[tuple[Measurement, Tensor]]) -> Tensor:
    """Images of several measurements, in grey where an operator measures nothing else.

    Args:
        pairs: Measurements, and their images with shape :math:`(N, C, H, W)`.
    """
    return torch.cat(
        [
            measurement.physics.as_seen(images) if isinstance(measurement.physics, SeesGrey) else images
            for measurement, images in pairs
        ]
    )


def grey_of(images: Tensor) -> Tensor:
    """Mean of the channels, as an image with as many equal channels."""
    return images.mean(dim=1, keepdim=True).expand_as(images)


def shape_text(**axes: int) -> str:
    """Names and lengths of axes, such as ``(row, column) = (64, 64)``."""
    return f"({', '.join(axes)}) = ({', '.join(map(str, axes.values()))})"


def check_white(white: float | None) -> None:
    """Raises an InputError unless white is None or a finite number above 0."""
    if white is not None and not 0 < white < math.inf:
        raise InputError(f"white must be above 0, or null for scans of images in [-1, 1], got {white}")


def say_noise_unit(white: float | None, scale: float = 1.0) -> None:
    """Says what the noise of a file is in units of an image in [-1, 1]."""
    if white is not None:
        log.info("white=%g: noise of deviation s in the file is sigma = %.4g s", white, 2 / (white * scale))


def in_image_units(scan: Tensor, of_white: Tensor, white: float | None) -> Tensor:
    r"""Scan in units of an image in [-1, 1], :math:`2 A(g) / w - A(1)`.

    Args:
        scan: The scan :math:`A(g)` of an image in [0, w], or of one in [-1, 1] if white is None.
        of_white: The scan :math:`A(1)`.
        white: The value :math:`w` that is white.
    """
    return scan if white is None else 2 / white * scan - of_white
