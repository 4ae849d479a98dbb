r"""Computed tomography: line integrals of an image along parallel rays or a fan of rays.

The rotation axis passes through the pixel in row :math:`H // 2` and column :math:`W // 2`. At the angle
:math:`\theta` the central ray runs along :math:`(\sin \theta, \cos \theta)` in (column, row), and the detector along
:math:`(\cos \theta, -\sin \theta)`. These are the conventions of ``skimage.transform.radon``. Lengths are in pixels of
the image. The operator is divided by its norm.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from deepinv.physics import Physics
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from rlsd_lightning.errors import InputError, require_one_of
from rlsd_lightning.operators.medical.rays import detector_positions, directions, fan_of, points_along_rays
from rlsd_lightning.operators.medical.scans import (
    Scan,
    check_white,
    in_image_units,
    log_noise_unit,
    shape_text,
)
from rlsd_lightning.operators.noise import make_noise
from rlsd_lightning.reading.values import check_finite
from rlsd_lightning.signatures import typed

__all__ = ["Projections", "tomography"]

log = logging.getLogger(__name__)

CG_STEPS = 15
"""Conjugate gradient steps of one proximal step, which starts at D(z)."""
SLACK = 0.1
"""Largest excess over the values of images in [-1, 1], as a share of the largest; the excess is noise."""
GEOMETRIES = ("parallel", "fan", "fanbeam")
"""Names of geometries; the last is another name of a fan."""


class Projections(Scan):
    """Line integrals of images, divided by the operator's norm.

    Measurements have shape ``(N, C, detector, angle)``, or ``(N, 1, detector, angle)`` of grey.

    Args:
        image_shape: Shape of the images, :math:`(C, H, W)`.
        points: Positions (column, row) along the rays, with shape (steps, detectors, angles, 2).
        lengths: Length of a step along each detector's ray, with shape (detectors,).
        noise_model: As in :class:`~rlsd_lightning.operators.medical.Scan`, like ``white`` and ``grey``.

    Attributes:
        scale: The norm that integrals are divided by.
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        points: Tensor,
        lengths: Tensor,
        noise_model: nn.Module,
        white: float | None = None,
        grey: bool = False,
    ) -> None:
        super().__init__(noise_model, CG_STEPS, image_shape[0], white, grey)
        self.image_shape = tuple(image_shape)
        self.detectors, self.angles = points.shape[1:3]
        size = torch.tensor(image_shape[:0:-1], dtype=points.dtype)  # (W, H)
        grid = ((2 * points + 1) / size - 1).flatten(1, 2)[None]  # of grid_sample: the outer edges are -1 and 1
        self.register_buffer("grid", grid.float(), persistent=False)
        self.register_buffer("lengths", lengths[:, None].float(), persistent=False)
        self.register_buffer("scale", torch.ones(()))
        self.scale = self._norm()

    def A(self, x: Tensor, **kwargs) -> Tensor:  # noqa: N802
        return self.project(self.measured_channels(x))

    def A_adjoint(self, y: Tensor, **kwargs) -> Tensor:  # noqa: N802
        return self.measured_channels_adjoint(_BackProjection.apply(y, self))

    def project(self, x: Tensor) -> Tensor:
        """Projections of every channel."""
        grid = self.grid.expand(len(x), -1, -1, -1)
        integrals = grid_sample(x, grid, align_corners=False).sum(dim=2).unflatten(-1, (self.detectors, self.angles))
        return integrals * (self.lengths / self.scale)

    def _norm(self) -> Tensor:
        """Largest singular value; power iteration from an even image, as all weights are at least 0."""
        x, before, norm = torch.ones(1, 1, *self.image_shape[1:]), 0.0, 1.0
        while abs(norm - before) > 1e-4 * norm:
            x = _BackProjection.apply(self.project(x / x.norm()), self)
            before, norm = norm, x.norm().item()
        return torch.tensor(norm).sqrt()

    def from_array(self, values: np.ndarray) -> Tensor:
        """Measurements of an array of sinograms: ``(n, 1, detector, angle)`` unless every channel was measured.

        Args:
            values: Real numbers in units of :math:`A(x)`; or, with a white, line integrals of attenuation whose unit of
                length is a pixel. The axes are ``(detector, angle)`` or, if their lengths differ, ``(angle, detector)``;
                before these an axis of scans, of the images' channels, or both.

        Raises:
            InputError: If the array has other axes, or values that no image in [-1, 1] gives.
        """
        scans = self._scans(values)
        check_finite(scans.numpy(), "sinogram")
        of_white = self.project(torch.ones(1, 1, *self.image_shape[1:]))
        y = in_image_units(scans if self.white is None else scans / self.scale, of_white, self.white)
        self._check_magnitude(y, of_white)
        return y

    def _scans(self, values: np.ndarray) -> Tensor:
        """Sinograms with shape (n, channels, detector, angle), as they were measured."""
        size = (self.detectors, self.angles)
        expected = f"a sinogram of real numbers of shape {shape_text(detector=size[0], angle=size[1])} is expected"
        if np.iscomplexobj(values):
            raise InputError(f"{expected}, got complex ones; save their real part")
        sinograms = torch.from_numpy(np.array(values, dtype=np.float32))
        if tuple(sinograms.shape[-2:]) == size[::-1] != size:
            log.info("sinogram: the axes (angle, detector) are swapped to (detector, angle)")
            sinograms = sinograms.mT
        if tuple(sinograms.shape[-2:]) != size or not sinograms.numel():
            raise InputError(f"{expected}, got {tuple(values.shape)}; {self._remedy(values)}")
        if sinograms.ndim > 2 and sinograms.shape[-3] == self.channels > 1 and not self.grey:
            said = "sinogram: its axis of length %d is taken for the images' channels; set grey=true for %d scans"
            log.info(said, self.channels, self.channels)
            return sinograms.reshape(-1, self.channels, *size)
        return sinograms.reshape(-1, 1, *size)

    def for_measurement(self, y: Tensor) -> Physics:
        """The operator of a measurement: that of grey for one channel."""
        return self.in_grey if y.shape[1] == 1 and not self.grey else self

    def _remedy(self, values: np.ndarray) -> str:
        """What to do with a sinogram of another shape."""
        *_, first, last = (0, 0, *values.shape)
        for length, other in ((first, last), (last, first)):
            if length == self.angles:
                return f"set n_detector_pixels={other}"
            if length == self.detectors:
                return f"set angles to the {other} directions in degrees, or to their number"
        return f"set n_detector_pixels and angles (now {self.detectors} and {self.angles}) to those of the scan"

    def _check_magnitude(self, y: Tensor, of_white: Tensor) -> None:
        """Checks that images in [-1, 1] give such values: a ray's integral is largest for a white image."""
        if (y.abs() <= of_white + SLACK * of_white.max()).all():
            return
        remedy = f"set white (now {self.white}) to the largest attenuation per pixel"
        if self.white is None:
            remedy = (
                f"divide line integrals in pixels by the norm {self.scale.item():.5g}, or set white to the attenuation per "
                "pixel that is white"
            )
        raise InputError(
            f"a sinogram up to {of_white.max().item():.4g} is expected, that of images in [-1, 1] under an operator of norm "
            f"one, got {y.abs().max().item():.4g}; {remedy}"
        )


class _BackProjection(torch.autograd.Function):
    """The exact transpose of :meth:`Projections.project`, which can be differentiated."""

    @staticmethod
    def forward(ctx, y: Tensor, physics: Projections) -> Tensor:
        ctx.physics = physics
        weighted = (y * (physics.lengths / physics.scale)).flatten(2)[:, :, None]
        grid = physics.grid.expand(len(y), -1, -1, -1)
        image = y.new_zeros(*y.shape[:2], *physics.image_shape[1:])
        # the transpose of grid_sample is its own backward pass, for which torch has no public name
        bilinear, zeros, align_corners, of_image_only = 0, 0, False, [True, False]
        return torch.ops.aten.grid_sampler_2d_backward(
            weighted.expand(-1, -1, grid.shape[1], -1), image, grid, bilinear, zeros, align_corners, of_image_only
        )[0]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.physics.project(gradient), None


@typed
def tomography(
    image_shape: tuple[int, int, int],
    angles: int | str | Path | Sequence[float] = 20,
    angular_range: float | None = None,
    geometry: str = "parallel",
    n_detector_pixels: int | None = None,
    detector_spacing: float | None = None,
    rotation_axis: float | None = None,
    source_radius: float | None = None,
    detector_radius: float | None = None,
    grey: bool = False,
    white: float | None = None,
    sigma: float = 0.001,
    noise: str = "gaussian",
) -> Projections:
    """Projections along parallel rays or a fan of rays; see this module for the conventions.

    Args:
        angles: Number of evenly spaced directions from 0 on, or the directions in degrees: a list or a .npy file.
        angular_range: Degrees over which a number of directions is spread; None: 180 for parallel rays, 360 for a fan.
        geometry: ``parallel`` or ``fan``.
        n_detector_pixels: Number of detectors; None: as many as see the whole image.
        detector_spacing: Distance of two detectors, in pixels of the image; None: one pixel, at the rotation axis.
        rotation_axis: Detector that sees the rotation axis, counted from 0, with fractions; None: half their number,
            rounded down.
        source_radius: Distance from the source to the rotation axis in pixels, for a fan; None: twice the diagonal.
        detector_radius: Distance from the rotation axis to the detectors in pixels, for a fan; None: as the source's.
        grey: Whether the mean of the channels is measured, as by a scanner, instead of every channel. A sinogram from a
            file decides itself.
        white: Attenuation per pixel that is white, above 0; None for a sinogram of an image in [-1, 1].
        sigma: Standard deviation of the noise, in units of the operator of norm one and an image in [-1, 1].

    Raises:
        InputError: If an argument is out of range.
    """
    check_white(white)
    require_one_of(GEOMETRIES, geometry=geometry)
    diagonal = math.hypot(*image_shape[1:])
    fan = None if geometry == "parallel" else fan_of(diagonal, source_radius, detector_radius)
    whole = 180.0 if fan is None else 360.0
    degrees = directions(angles, whole if angular_range is None else angular_range)
    detectors = detector_positions(diagonal / 2, fan, n_detector_pixels, detector_spacing, rotation_axis)
    physics = Projections(
        image_shape,
        *points_along_rays(image_shape, degrees, detectors, fan),
        make_noise(noise, sigma, of_images=False),
        white,
        grey,
    )
    log.info(
        "sinogram: (detector, angle) = (%d, %d), line integrals in pixels divided by the operator's norm %.5g",
        physics.detectors,
        physics.angles,
        physics.scale,
    )
    log_noise_unit(white, physics.scale.item())
    return physics
