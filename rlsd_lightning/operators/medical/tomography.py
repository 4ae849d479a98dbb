r"""Computed tomography: line integrals of an image along parallel rays or a fan of rays.

The rotation axis passes through the pixel in row :math:`H // 2` and column :math:`W // 2`. At the angle
:math:`\theta` the central ray runs along :math:`(\sin \theta, \cos \theta)` in (column, row), and the detector along
:math:`(\cos \theta, -\sin \theta)`. These are the conventions of ``skimage.transform.radon``. Lengths are in pixels of
the image. The operator is divided by its norm.
"""

import logging
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from deepinv.physics import LinearPhysics
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from rlsd_lightning.errors import InputError, first_line
from rlsd_lightning.operators.medical.scans import check_white, in_image_units, require_finite, shape_text
from rlsd_lightning.operators.noise import make_noise
from rlsd_lightning.reading import load_array

__all__ = ["Projections", "tomography"]

log = logging.getLogger(__name__)

CG_STEPS = 15
"""Conjugate gradient steps of one proximal step, which starts at D(z)."""
SLACK = 0.1
"""How far measured values may exceed those of images in [-1, 1], as a share of the largest, for noise."""
GEOMETRIES = ("parallel", "fan", "fanbeam")
"""Names of geometries; the last is another name of a fan."""


class Projections(LinearPhysics):
    """Line integrals of images, divided by the operator's norm, with shape ``(N, C, detector, angle)``.

    Args:
        image_shape: Shape of the images, :math:`(C, H, W)`.
        points: Positions (column, row) along the rays, with shape (steps, detectors, angles, 2).
        lengths: Length of a step along each detector's ray, with shape (detectors,).
        noise_model: Noise of the measured values.
        white: Value of scanned images that is white; None for scans of images in [-1, 1].

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
    ) -> None:
        # a fixed number of steps: a tolerance would make the images of a batch depend on each other
        super().__init__(noise_model=noise_model, max_iter=CG_STEPS, tol=1e-10, implicit_backward_solver=False)
        self.image_shape, self.white = tuple(image_shape), white
        self.detectors, self.angles = points.shape[1:3]
        size = torch.tensor(image_shape[:0:-1], dtype=points.dtype)  # (W, H)
        grid = ((2 * points + 1) / size - 1).flatten(1, 2)[None]  # of grid_sample: the outer edges are -1 and 1
        self.register_buffer("grid", grid.float(), persistent=False)
        self.register_buffer("lengths", lengths[:, None].float(), persistent=False)
        self.register_buffer("scale", torch.ones(()))
        self.scale = self._norm()

    def A(self, x: Tensor, **kwargs) -> Tensor:  # noqa: N802
        grid = self.grid.expand(len(x), -1, -1, -1)
        integrals = grid_sample(x, grid, align_corners=False).sum(dim=2).unflatten(-1, (self.detectors, self.angles))
        return integrals * (self.lengths / self.scale)

    def A_adjoint(self, y: Tensor, **kwargs) -> Tensor:  # noqa: N802
        return _BackProjection.apply(y, self)

    def _norm(self) -> Tensor:
        """Largest singular value; power iteration from an even image, as all weights are at least 0."""
        x, before, norm = torch.ones(1, 1, *self.image_shape[1:]), 0.0, 1.0
        while abs(norm - before) > 1e-4 * norm:
            x = self.A_adjoint(self.A(x / x.norm()))
            before, norm = norm, x.norm().item()
        return torch.tensor(norm).sqrt()

    def from_array(self, values: np.ndarray) -> Tensor:
        """Measurements of an array of sinograms, with shape ``(n, C, detector, angle)``.

        Args:
            values: Real, with axes ``(detector, angle)`` or, if their lengths differ, ``(angle, detector)``. There may be an
                axis of scans before these, or of the images' channels, or both. Every channel has to explain the same
                sinogram if there is no such axis.

        Raises:
            InputError: If the array has other axes, or values that no image in [-1, 1] gives.
        """
        expected = shape_text(detector=self.detectors, angle=self.angles)
        if np.iscomplexobj(values):
            raise InputError(f"a sinogram {expected} of real numbers is expected, got complex ones; save its real part")
        sinograms, size = torch.from_numpy(np.array(values, dtype=np.float32)), (self.detectors, self.angles)
        if tuple(sinograms.shape[-2:]) == size[::-1] != size:
            log.info("sinogram: the axes (angle, detector) are swapped to (detector, angle)")
            sinograms = sinograms.mT
        channels = self.image_shape[0]
        own = sinograms.ndim > 2 and sinograms.shape[-3] == channels
        scans = (
            sinograms.reshape(-1, channels if own else 1, *sinograms.shape[-2:]) if sinograms.ndim > 1 else sinograms
        )
        if tuple(sinograms.shape[-2:]) != size or not len(scans):
            raise InputError(
                f"a sinogram of shape {expected} is expected, got {tuple(values.shape)}; {self._remedy(values)}"
            )
        require_finite(scans, "sinogram")
        of_white = self.A(torch.ones(1, *self.image_shape))
        y = in_image_units(scans.expand(-1, channels, -1, -1) / self.scale, of_white, self.white)
        self._check_size(y, of_white)
        return y

    def _remedy(self, values: np.ndarray) -> str:
        """What to do with a sinogram of another shape."""
        lengths = list(values.shape[-2:])
        for length, other in (lengths, lengths[::-1]) if len(lengths) == 2 else ():
            if length == self.angles:
                return f"set n_detector_pixels={other}"
            if length == self.detectors:
                return f"set angles to the {other} directions in degrees, or to their number"
        return f"set n_detector_pixels and angles (now {self.detectors} and {self.angles}) to those of the scan"

    def _check_size(self, y: Tensor, of_white: Tensor) -> None:
        """Checks that images in [-1, 1] give such values: a ray's integral is largest for a white image."""
        if (y.abs() > of_white + SLACK * of_white.max()).any():
            found, most = (y.abs().max() * self.scale).item(), (of_white.max() * self.scale).item()
            raise InputError(
                f"line integrals up to {most:.4g} pixels of an image in [-1, 1] are expected, got {found:.4g} with "
                f"white={self.white}; set white to the largest attenuation per pixel"
            )


class _BackProjection(torch.autograd.Function):
    """The exact transpose of :meth:`Projections.A`, which can be differentiated."""

    @staticmethod
    def forward(ctx, y: Tensor, physics: Projections) -> Tensor:
        ctx.physics = physics
        weighted = (y * (physics.lengths / physics.scale)).flatten(2)[:, :, None]
        grid = physics.grid.expand(len(y), -1, -1, -1)
        image = y.new_zeros(*y.shape[:2], *physics.image_shape[1:])
        bilinear, zeros = 0, 0
        return torch.ops.aten.grid_sampler_2d_backward(
            weighted.expand(-1, -1, grid.shape[1], -1), image, grid, bilinear, zeros, False, [True, False]
        )[0]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.physics.A(gradient), None


def tomography(
    image_shape: tuple[int, ...],
    angles: int | str | list[float] = 20,
    angular_range: float | None = None,
    geometry: str = "parallel",
    n_detector_pixels: int | None = None,
    detector_spacing: float | None = None,
    rotation_axis: float | None = None,
    source_radius: float | None = None,
    detector_radius: float | None = None,
    white: float | None = None,
    sigma: float = 0.001,
    noise: str = "gaussian",
) -> Projections:
    """Projections along parallel rays or a fan of rays, for each channel; see this module for the conventions.

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
        white: Attenuation per pixel that is white, above 0; None for a sinogram of an image in [-1, 1].
        sigma: Standard deviation of the noise, in units of the operator of norm one and an image in [-1, 1].

    Raises:
        InputError: If an argument is out of range.
    """
    check_white(white)
    if geometry not in GEOMETRIES:
        raise InputError(f"geometry must be one of {', '.join(GEOMETRIES)}, got '{geometry}'")
    diagonal = math.hypot(*image_shape[1:])
    fan = None if geometry == "parallel" else _fan(diagonal, source_radius, detector_radius)
    whole = 180.0 if fan is None else 360.0
    degrees = _degrees(angles, whole if angular_range is None else angular_range)
    detectors = _detectors(diagonal / 2, fan, n_detector_pixels, detector_spacing, rotation_axis)
    physics = Projections(
        image_shape, *_rays(image_shape, degrees, detectors, fan), make_noise(noise, sigma, of_images=False), white
    )
    log.info(
        "sinogram: (detector, angle) = (%d, %d), line integrals in pixels divided by the operator's norm %.5g",
        physics.detectors,
        physics.angles,
        physics.scale,
    )
    return physics


class _Fan(NamedTuple):
    """Distances in pixels: from the source to the rotation axis, and to the detectors."""

    to_axis: float
    to_detectors: float


def _fan(diagonal: float, source_radius: float | None, detector_radius: float | None) -> _Fan:
    """Checked distances of a fan, by default twice the diagonal on both sides of the axis."""
    source = 2 * diagonal if source_radius is None else source_radius
    behind = source if detector_radius is None else detector_radius
    if not diagonal / 2 < source < math.inf:
        raise InputError(f"source_radius must be above {diagonal / 2:.4g} pixels, half the diagonal, got {source}")
    if not 0 <= behind < math.inf:
        raise InputError(f"detector_radius must be at least 0, got {behind}")
    return _Fan(source, source + behind)


def _detectors(
    radius: float, fan: _Fan | None, count: int | None, spacing: float | None, rotation_axis: float | None
) -> Tensor:
    """Positions of the detectors from the one that sees the rotation axis, in pixels."""
    if spacing is None:
        spacing = 1.0 if fan is None else fan.to_detectors / fan.to_axis
    if not 0 < spacing < math.inf:
        raise InputError(f"detector_spacing must be above 0, got {spacing}")
    if count is None:
        reach = radius - 0.5  # to the centre of the outermost pixel
        widest = reach if fan is None else fan.to_detectors * math.tan(math.asin(reach / fan.to_axis))
        count = 2 * math.ceil(widest / spacing) + 1
    if count < 1:
        raise InputError(f"n_detector_pixels must be at least 1, got {count}")
    axis = count // 2 if rotation_axis is None else rotation_axis
    if not 0 <= axis <= count - 1:
        raise InputError(f"rotation_axis must be a detector from 0 to {count - 1}, got {axis}")
    return (torch.arange(count, dtype=torch.float64) - axis) * spacing


def _rays(image_shape: tuple[int, ...], degrees: Tensor, detectors: Tensor, fan: _Fan | None) -> tuple[Tensor, Tensor]:
    """Points (column, row) along the rays with shape (steps, detectors, angles, 2), and lengths of their steps."""
    reach = math.ceil((math.hypot(*image_shape[1:]) - 1) / 2)
    steps = torch.arange(-reach, reach + 1, dtype=torch.float64)[:, None, None]
    if fan is None:
        beside, lengths = detectors[:, None].expand(len(steps), -1, 1), torch.ones_like(detectors)
    else:
        beside = detectors[:, None] * (steps + fan.to_axis) / fan.to_detectors
        lengths = (1 + (detectors / fan.to_detectors).square()).sqrt()  # a step is one pixel along the central ray
    sin, cos = degrees.deg2rad().sin(), degrees.deg2rad().cos()
    columns = image_shape[2] // 2 + beside * cos + steps * sin
    rows = image_shape[1] // 2 - beside * sin + steps * cos
    return torch.stack((columns, rows), dim=-1), lengths


def _degrees(angles: int | str | Iterable[float], angular_range: float) -> Tensor:
    """Directions in degrees, of a number, a file or a list."""
    expected = "a number of directions, a list of degrees or a .npy file of them"
    if isinstance(angles, int):
        if angles < 1 or not 0 < abs(angular_range) < math.inf:
            raise InputError(f"angles must be at least 1 over some degrees, got {angles} over {angular_range}")
        return torch.arange(angles, dtype=torch.float64) * (angular_range / angles)
    try:
        values = load_array(angles) if isinstance(angles, str) else list(angles)
        degrees = torch.as_tensor(values, dtype=torch.float64).flatten()
    except (TypeError, ValueError) as error:
        raise InputError(f"angles must be {expected}, got {angles!r} ({first_line(error)})") from error
    if not len(degrees) or not degrees.isfinite().all():
        raise InputError(f"angles must be {expected}, got {angles!r} with {len(degrees)} values")
    return degrees
