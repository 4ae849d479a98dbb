"""Files and arrays of magnetic resonance imaging: k-space, masks of frequencies, and coil sensitivities."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rlsd_lightning.errors import InputError
from rlsd_lightning.operators.medical.scans import shape_text
from rlsd_lightning.reading.arrays import load_array
from rlsd_lightning.reading.masks import read_mask
from rlsd_lightning.reading.paths import is_array, split_key
from rlsd_lightning.reading.values import check_finite

__all__ = ["check_centre", "complex_kspace", "in_single_precision", "load_coil_maps", "load_frequencies"]

TOO_FAR_OUT = 10
"""Ratio of the corners' energy to the centre's, above which frequency zero must lie at a corner."""


def in_single_precision(values: np.ndarray) -> Tensor:
    """Numbers of any precision and byte order as a tensor, which takes few of them."""
    return torch.from_numpy(np.array(values, dtype=np.complex64 if np.iscomplexobj(values) else np.float32))


def complex_kspace(values: Tensor, channels: int, coils: int, rows: int, columns: int) -> Tensor:
    """K-spaces of an array in one of the usual axis orders.

    Args:
        values: Complex with axes ``(row, column)``, ``(coil, row, column)`` or ``(scan, coil, row, column)``; one coil's
            axis may be left out. Or real, with an axis of real and imaginary parts anywhere. Or real, with both parts of
            every channel before the coils, as :math:`A(x)`.
        channels: Number :math:`C` of the images' channels.
        coils: Number :math:`K` of coils.
        rows: Height :math:`H` of the images.
        columns: Width :math:`W` of the images.

    Returns:
        Complex numbers with shape :math:`(n, 1, K, H, W)`, or :math:`(n, C, K, H, W)` where every channel was measured.

    Raises:
        InputError: If the axes have other lengths, or can be understood in two ways.
    """
    scan = (coils, rows, columns)
    if not values.is_complex() and channels > 1:
        for own in ((2 * channels, *scan), (2 * channels, rows, columns)):
            if values.shape[-len(own) :] == own and math.prod(own[:-2]) == 2 * channels * coils:
                return _complex(values.reshape(-1, channels, 2, *scan), 2)
    kspace = values if values.is_complex() else _complex(values, _pairs_axis(values, scan))
    if not _fits(kspace.shape, scan):
        raise _shape_error(values, scan, _remedy(kspace.shape, *scan))
    return kspace.reshape(-1, 1, *scan).to(torch.complex64)


def _fits(shape: torch.Size, scan: tuple[int, int, int]) -> bool:
    """Whether a shape is ``(row, column)``, ``(coil, row, column)`` or ``(scan, coil, row, column)``; see above."""
    shape = tuple(shape)
    while len(shape) > 4 and shape[0] == 1:
        shape = shape[1:]
    return shape[-3:] == scan if len(shape) in (3, 4) else shape == scan[1:] and scan[0] == 1


def _complex(values: Tensor, axis: int) -> Tensor:
    """Complex numbers of real and imaginary parts along an axis."""
    return torch.view_as_complex(values.float().movedim(axis, -1).contiguous())


def _pairs_axis(values: Tensor, scan: tuple[int, int, int]) -> int:
    """The axis of real and imaginary parts."""
    axes = range(values.ndim)
    found = [axis for axis in axes if values.shape[axis] == 2 and _fits(values.select(axis, 0).shape, scan)]
    if len(found) > 1:
        raise _shape_error(values, scan, "two of its axes may be real and imaginary parts: save it as a complex array")
    if not found:
        parts_missing = _fits(values.shape, scan)
        remedy = "" if parts_missing or 2 in values.shape else _remedy(values.shape, *scan)
        raise _shape_error(values, scan, remedy or "save it as a complex array")
    return found[0]


def _shape_error(values: Tensor, scan: tuple[int, int, int], remedy: str) -> InputError:
    axes = dict(zip(("coil", "row", "column"), scan, strict=True))
    if scan[0] == 1:
        del axes["coil"]
    kind = "complex" if values.is_complex() else "real"
    return InputError(
        f"a complex k-space of shape {shape_text(**axes)} is expected, got {kind} numbers of shape "
        f"{tuple(values.shape)}; {remedy or 'reorder the axes'}"
    )


def _remedy(shape: torch.Size, coils: int, rows: int, columns: int) -> str:
    """What to do with a k-space of another shape; empty if unknown."""
    if len(shape) < 2:
        return ""
    if tuple(shape[-2:]) == (rows, columns):
        if coils > 1:
            return f"give coil_maps of the scan's coils, as there are {coils}"
        return "set coil_maps to the sensitivities of its coils; slices have the shape (slice, 1, row, column)"
    if shape[-2] < rows or shape[-1] < columns:
        return "set image_size to the k-space's size, if the prior takes it"
    factor = math.sqrt(rows * columns / (shape[-2] * shape[-1]))
    return f"crop it to the central {rows}x{columns} frequencies and multiply it by {factor:.4g}"


def check_centre(kspace: Tensor) -> None:
    """Checks that frequency zero is in the middle.

    Raises:
        InputError: If the energy lies at the corners.
    """
    rows, columns = kspace.shape[-2:]
    energy = kspace.abs().square().flatten(0, -3).sum(dim=0)
    height, width = max(1, rows // 4), max(1, columns // 4)
    top, left = rows // 2 - height // 2, columns // 2 - width // 2
    centre = energy[top : top + height, left : left + width].sum()
    corners = energy.roll((height // 2, width // 2), (0, 1))[:height, :width].sum()
    if corners > TOO_FAR_OUT * centre:
        raise InputError(
            f"a k-space with frequency zero at row {rows // 2} and column {columns // 2} is expected, but the largest "
            "values lie at the corners; apply numpy.fft.fftshift to its last two axes"
        )


def load_frequencies(mask: str | Path, rows: int, columns: int) -> Tensor:
    """Mask of measured frequencies from a file, with frequency zero in the middle.

    Args:
        mask: An array of two values, of which the larger is measured, with shape ``(row, column)`` or of the columns alone;
            or a picture that is white where a frequency is measured, see :func:`~rlsd_lightning.reading.masks.read_mask`.

    Returns:
        Zeros and ones, with shape :math:`(H, W)`.

    Raises:
        InputError: If the file can't be read, has another size, or measures nothing.
    """
    path, _ = split_key(mask)
    if not path.is_file():
        raise InputError(f"mask must be a file of the measured frequencies, got '{mask}'")
    if is_array(path):
        values = torch.from_numpy(np.array(load_array(mask), dtype=np.float64)).squeeze()
        seen, size = _two_valued(values, mask), tuple(values.shape)
    else:
        seen, size = read_mask(mask, rows, columns)
        seen = torch.from_numpy(seen.copy())
    if size not in ((rows, columns), (columns,)):
        raise InputError(
            f"a mask of shape {shape_text(row=rows, column=columns)} is expected, the size of the prior's images, or of "
            f"columns alone with shape ({columns},), but '{mask}' has {size}; frequencies can't be resized"
        )
    return seen.float().expand(rows, columns).clone()


def _two_valued(values: Tensor, mask: str | Path) -> Tensor:
    """Whether each of at most two values is the larger one, or not zero if there is one only."""
    check_finite(values.numpy(), mask)
    found = values.unique()
    if len(found) > 2:
        raise InputError(
            f"a mask of two values is expected, but '{mask}' has {len(found)} from {found[0]:g} to {found[-1]:g}; "
            "save zeros and ones"
        )
    seen = values > 0 if len(found) == 1 else values == found[-1]
    if not seen.any():
        raise InputError(f"mask='{mask}' measures no frequency; measured frequencies are ones")
    return seen


def load_coil_maps(path: str | Path, rows: int, columns: int) -> Tensor:
    """Sensitivities of coils from a file.

    Args:
        path: Complex numbers with shape ``(coil, row, column)``, or ``(row, column)`` of one coil.

    Returns:
        Complex numbers with shape :math:`(K, H, W)`.

    Raises:
        InputError: If the file can't be read or holds something else.
    """
    if not split_key(path)[0].is_file():
        raise InputError(f"coil_maps must be a file of the coils' sensitivities, got '{path}'")
    values = in_single_precision(load_array(path, complex_allowed=True))
    check_finite(values.numpy(), path)
    shape = tuple(values.shape[1:] if values.ndim == 4 and len(values) == 1 else values.shape)
    if not values.is_complex() or len(shape) not in (2, 3) or shape[-2:] != (rows, columns):
        kind = "complex" if values.is_complex() else "real"
        raise InputError(
            f"complex coil_maps of shape (coil, row, column) = (any, {rows}, {columns}) are expected, the size of the "
            f"prior's images, but '{path}' has {kind} numbers of shape {tuple(values.shape)}; resize or reorder them, "
            "and save them by numpy.save(path, maps.astype('complex64'))"
        )
    maps = values.reshape(-1, rows, columns).to(torch.complex64)
    if not maps.abs().any():
        raise InputError(f"coil_maps with values are expected, but '{path}' has zeros only")
    return maps
