r"""Scanners' arrays as measurements.

A scanner measures one grey image :math:`g \geq 0`; the prior makes images :math:`x` in [-1, 1], of three channels as a
rule. A scan :math:`A` measures the mean of the channels, and the grey of a particle is its solution: the colours, which
nothing measures, are left to the prior. With the value :math:`w` that is white, :math:`g = w (x + 1) / 2`, and the linear
scan :math:`A(g)` becomes the measurement :math:`y = 2 A(g) / w - A(1)`.
"""

import copy
import functools
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Self

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor, nn

from rlsd_lightning.errors import require
from rlsd_lightning.measurement import Measurement

__all__ = [
    "Scan",
    "as_seen",
    "check_white",
    "in_image_units",
    "shape_text",
]

log = logging.getLogger(__name__)

DAMPING = 1e4
"""Weight of the misfit against the image's square norm in a pseudo-inverse, for operators of norm one."""


class Scan(LinearPhysics, ABC):
    """Scan of real images, of every channel or of their mean, without closed forms.

    Args:
        noise_model: Noise of the measured values.
        steps: Conjugate gradient steps of a proximal step. A tolerance in place of a fixed number would make the images of
            a batch depend on each other.
        channels: Number :math:`C` of the images' channels.
        white: Value of scanned images that is white; None for scans of images in [-1, 1].
        grey: Whether the mean of the channels is measured, instead of every channel.
    """

    def __init__(self, noise_model: nn.Module, steps: int, channels: int, white: float | None, grey: bool) -> None:
        super().__init__(noise_model=noise_model, implicit_backward_solver=False)
        self.steps, self.channels, self.white, self.grey = steps, channels, white, grey

    @functools.cached_property
    def in_grey(self) -> Self:
        """The operator of the mean of the channels: one for all measurements, which can then be solved together."""
        other = copy.deepcopy(self)
        other.grey = True
        return other

    def as_seen(self, images: Tensor) -> Tensor:
        """Images in grey if nothing else is measured, with shape :math:`(N, C, H, W)`; else unchanged."""
        return images.mean(dim=1, keepdim=True).expand_as(images) if self.grey else images

    def measured_channels(self, x: Tensor) -> Tensor:
        """The mean of the channels if nothing else is measured; else every channel."""
        return x.mean(dim=1, keepdim=True) if self.grey else x

    def measured_channels_adjoint(self, x: Tensor) -> Tensor:
        """Adjoint of :meth:`measured_channels`."""
        return x.expand(-1, self.channels, -1, -1) / self.channels if self.grey else x

    @abstractmethod
    def for_measurement(self, y: Tensor) -> Physics:
        """The operator of one measurement, which has the shape of :math:`A(x)`."""

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float, **kwargs) -> Tensor:
        r"""Solves :math:`\arg\min_x \tfrac{\gamma}{2} \|A(x) - y\|^2 + \tfrac{1}{2} \|x - z\|^2`."""
        return super().prox_l2(z, y, gamma, max_iter=self.steps, tol=1e-10)

    def A_dagger(self, y: Tensor, **kwargs) -> Tensor:  # noqa: N802
        """Pseudo-inverse, damped and with few steps: conjugate gradients would diverge in the null space."""
        return super().prox_l2(0.0, y, DAMPING, max_iter=self.steps, tol=1e-4)


def as_seen(pairs: Iterable[tuple[Measurement, Tensor]]) -> Tensor:
    """Images of several measurements, in grey where an operator measures nothing else.

    Args:
        pairs: Measurements, and their images with shape :math:`(N, C, H, W)`.
    """
    return torch.cat(
        [
            measurement.physics.as_seen(images) if isinstance(measurement.physics, Scan) else images
            for measurement, images in pairs
        ]
    )


def shape_text(**axes: int) -> str:
    """Names and lengths of axes, such as ``(row, column) = (64, 64)``."""
    return f"({', '.join(axes)}) = ({', '.join(map(str, axes.values()))})"


def check_white(white: float | None) -> None:
    """Raises an InputError unless white is None or a finite number above 0."""
    expected = "above 0, or null for scans of images in [-1, 1]"
    require(lambda value: value is None or 0 < value < math.inf, expected, white=white)


def log_noise_unit(white: float | None, scale: float = 1.0) -> None:
    """Log what the noise of a file is in units of an image in [-1, 1]."""
    if white is not None:
        log.info("white=%g: noise of standard deviation s in the file is sigma = %.4g s", white, 2 / (white * scale))


def in_image_units(scan: Tensor, of_white: Tensor, white: float | None) -> Tensor:
    r"""Scan in units of an image in [-1, 1], :math:`2 A(g) / w - A(1)`.

    Args:
        scan: The scan :math:`A(g)` of an image in [0, w], or of one in [-1, 1] if white is None.
        of_white: The scan :math:`A(1)`.
        white: The value :math:`w` that is white.
    """
    return scan if white is None else 2 / white * scan - of_white
