"""Files and arrays of magnetic resonance imaging: k-space, masks of frequencies, and coil sensitivities."""

import logging
import math
from pathlib import Path

import torch
from torch import Tensor

from rlsd_lightning.errors import InputError
from rlsd_lightning.images import load_array
from rlsd_lightning.operators.medical.scans import require_finite, shape_text
from rlsd_lightning.operators.pixels import load_mask

__all__ = ["check_centre", "complex_kspace", "load_coil_maps", "load_frequencies"]

log = logging.getLogger(__name__)

TOO_FAR_OUT = 10
"""Energy at the corners over that at the centre, above which frequency zero must lie at a corner."""


def complex_kspace(values: Tensor, channels: int, coils: int | None, rows: int, columns: int) -> Tensor:
    """K-space of every channel, from one of the usual axis orders.

    Args:
        values: Complex with shape ``(row, column)`` or ``(coil, row, column)``; or real, with an axis of real and
            imaginary parts before or behind these; or one for each channel, in the order of :math:`A(x)`.
        channels: Number :math:`C` of the images' channels.
        coils: Number :math:`K` of coils; None if the operator has no axis of coils.
        rows: Height :math:`H` of the images.
        columns: Width :math:`W` of the images.

    Returns:
        Complex numbers with shape :math:`(C, H, W)` or :math:`(C, K, H, W)`.

    Raises:
        InputError: If the axes have other lengths, or can be understood in two ways.
    """
    scan = (rows, columns) if coils is None else (coils, rows, columns)
    own = (2 * channels, *scan)
    if not values.is_complex() and _stripped(values.shape, len(own)) == own:
        return _complex(values.reshape(channels, 2, *scan), 1)
    kspace = values if values.is_complex() else _complex(values, _pairs_axis(values, scan))
    shape = _stripped(kspace.shape, len(scan))
    if coils == 1 and shape == scan[1:]:
        shape = scan
    if shape not in (scan, (channels, *scan)):
        raise _misfit(values, scan, _remedy(kspace.shape, coils, rows, columns))
    return kspace.reshape(shape).expand(channels, *scan)


def _stripped(shape: torch.Size, axes: int) -> tuple[int, ...]:
    """A shape without leading ones, as far as it has more axes than a number."""
    lengths = tuple(shape)
    while len(lengths) > axes and lengths[0] == 1:
        lengths = lengths[1:]
    return lengths


def _complex(values: Tensor, axis: int) -> Tensor:
    """Complex numbers of real and imaginary parts along an axis."""
    return torch.view_as_complex(values.float().movedim(axis, -1).contiguous())


def _pairs_axis(values: Tensor, scan: tuple[int, ...]) -> int:
    """The axis of real and imaginary parts, from the end."""
    found = [
        axis - values.ndim
        for axis, length in enumerate(values.shape)
        if length == 2 and _stripped(values.select(axis, 0).shape, len(scan)) == scan
    ]
    if not found:
        raise _misfit(values, scan, _remedy(values.shape, None, *scan[-2:]) or "save it as a complex array")
    if len(found) > 1:
        raise _misfit(values, scan, "two axes can be real and imaginary parts: save it as a complex array")
    return found[0]


def _misfit(values: Tensor, scan: tuple[int, ...], remedy: str) -> InputError:
    axes = dict(zip(("row", "column") if len(scan) == 2 else ("coil", "row", "column"), scan, strict=True))
    kind = "complex" if values.is_complex() else "real"
    return InputError(
        f"a complex k-space of shape {shape_text(**axes)} is expected, got {kind} numbers of shape "
        f"{tuple(values.shape)}; {remedy or 'reorder the axes'}"
    )


def _remedy(shape: torch.Size, coils: int | None, rows: int, columns: int) -> str:
    """What to do with a k-space of another shape; empty if unknown."""
    if len(shape) < 2:
        return ""
    if tuple(shape[-2:]) != (rows, columns):
        if min(shape[-2] - rows, shape[-1] - columns) < 0:
            return "set image_size to the k-space's size, if the prior takes it"
        factor = math.sqrt(rows * columns / (shape[-2] * shape[-1]))
        return f"crop it to the central {rows}x{columns} frequencies and multiply it by {factor:.4g}"
    if len(shape) > 2 and coils is None:
        return f"set coil_maps to the sensitivities of the {shape[-3]} coils, or give the k-space of one coil"
    return ""


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
    """Mask of measured frequencies from a file.

    Args:
        mask: A picture that is white, or a .npy file that is not zero, where a frequency is measured. Frequency zero is
            in the middle. A .npy file may hold the columns alone, with shape :math:`(W,)`.

    Returns:
        Zeros and ones, with shape :math:`(H, W)`.

    Raises:
        InputError: If the file can't be read, has another size, or measures nothing.
    """
    if Path(mask).suffix != ".npy":
        if not Path(mask).is_file():
            raise InputError(f"mask must be a picture or a .npy file of measured frequencies, got '{mask}'")
        return load_mask(mask, rows, columns)[0]
    values = torch.from_numpy(load_array(Path(mask)))
    require_finite(values, f"a mask '{mask}'")
    shape = _stripped(values.shape, 2 if values.ndim > 1 else 1)
    if shape not in ((rows, columns), (columns,), (1, columns), (columns, 1)):
        raise InputError(
            f"a mask of shape {shape_text(row=rows, column=columns)} or (column,) = ({columns},) is expected, the size of "
            f"the prior's images, but '{mask}' has shape {tuple(values.shape)}"
        )
    if values.unique().numel() > 2:
        raise InputError(
            f"a mask of two values is expected, but '{mask}' has {values.unique().numel()} from {values.min():g} to "
            f"{values.max():g}; save it as zeros and ones"
        )
    seen = values.reshape(shape) != 0
    seen = seen if shape == (rows, columns) else seen.reshape(1, columns).expand(rows, columns)
    if not seen.any():
        raise InputError(f"mask='{mask}' measures no frequency (share 0 of 1); measured frequencies are ones")
    return seen.float()


def load_coil_maps(path: str | Path, rows: int, columns: int) -> Tensor:
    """Sensitivities of coils from a .npy file.

    Args:
        path: Complex numbers with shape ``(coil, row, column)``, or ``(row, column)`` of one coil.

    Returns:
        Complex numbers with shape :math:`(K, H, W)`.

    Raises:
        InputError: If the file can't be read or holds something else.
    """
    values = torch.from_numpy(load_array(Path(path), complex_too=True))
    require_finite(values, f"coil_maps '{path}'")
    shape = _stripped(values.shape, 3)
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
