"""Geometry of tomography: directions, detectors and the points along rays, in pixels of the image."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rlsd_lightning.errors import (
    InputError,
    first_line,
    require,
    require_at_least_one,
    require_positive,
)
from rlsd_lightning.reading.arrays import load_array

__all__ = ["Fan", "detector_positions", "directions", "fan_of", "points_along_rays"]

log = logging.getLogger(__name__)


class Fan(NamedTuple):
    """Distances in pixels: from the source to the rotation axis, and to the detectors."""

    to_axis: float
    to_detectors: float


def fan_of(diagonal: float, source_radius: float | None, detector_radius: float | None) -> Fan:
    """Checked distances of a fan, by default twice the diagonal on both sides of the axis."""
    source = 2 * diagonal if source_radius is None else source_radius
    least = diagonal / 2
    require(lambda r: least < r < math.inf, f"above {least:.4g} pixels, half the diagonal", source_radius=source)
    behind = source if detector_radius is None else detector_radius
    require(lambda r: 0 <= r < math.inf, "at least 0", detector_radius=behind)
    return Fan(source, source + behind)


def detector_positions(
    radius: float, fan: Fan | None, count: int | None, spacing: float | None, rotation_axis: float | None
) -> Tensor:
    """Positions of the detectors from the one that sees the rotation axis, in pixels."""
    if spacing is None:
        spacing = 1.0 if fan is None else fan.to_detectors / fan.to_axis
    require_positive(detector_spacing=spacing)
    if count is None:
        reach = radius - 0.5  # to the centre of the outermost pixel
        widest = reach if fan is None else fan.to_detectors * math.tan(math.asin(reach / fan.to_axis))
        count = 2 * math.ceil(widest / spacing) + 1
    require_at_least_one(n_detector_pixels=count)
    axis = count // 2 if rotation_axis is None else rotation_axis
    if not 0 <= axis <= count - 1:
        raise InputError(f"rotation_axis must be a detector from 0 to {count - 1}, got {axis}")
    return (torch.arange(count, dtype=torch.float64) - axis) * spacing


def points_along_rays(
    image_shape: tuple[int, ...], degrees: Tensor, detectors: Tensor, fan: Fan | None
) -> tuple[Tensor, Tensor]:
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


def directions(angles: int | str | Path | Sequence[float], angular_range: float) -> Tensor:
    """Directions in degrees, of a number, a file, or a list, which may be numbers with commas between them in one word."""
    expected = "a number of directions, a list of degrees or a .npy file of them"
    if isinstance(angles, int):
        if angles < 1 or not 0 < abs(angular_range) < math.inf:
            raise InputError(f"angles must be at least 1 over some degrees, got {angles} over {angular_range}")
        return torch.arange(angles, dtype=torch.float64) * (angular_range / angles)
    try:
        angles = _listed(angles)
        values = load_array(angles).copy() if isinstance(angles, str | Path) else list(angles)
        degrees = torch.as_tensor(values, dtype=torch.float64).flatten()
    except (TypeError, ValueError) as error:
        raise InputError(f"angles must be {expected}, got {angles!r} ({first_line(error)})") from error
    if not len(degrees) or not degrees.isfinite().all():
        raise InputError(f"angles must be {expected}, got {angles!r} with {len(degrees)} values")
    if len(degrees) > 2 and degrees.abs().max() <= 2 * math.pi and (degrees != degrees.round()).any():
        log.warning(
            "angles: %d directions lie within %.3g degrees; radians must be turned to degrees",
            len(degrees),
            degrees.max() - degrees.min(),
        )
    return degrees


def _listed(angles: str | Path | Sequence[float]) -> str | Path | Sequence[float]:
    """The numbers of "0,45,90"; anything else as it is."""
    if not isinstance(angles, str) or "," not in angles:
        return angles
    try:
        return [float(number) for number in angles.split(",")]
    except ValueError:
        return angles
