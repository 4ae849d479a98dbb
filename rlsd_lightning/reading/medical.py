"""Slices of scanners' files: DICOM and NIfTI."""

from pathlib import Path
from types import ModuleType

import numpy as np

from rlsd_lightning.reading.values import Range

__all__ = ["read_dicom", "read_nifti"]


def read_dicom(pydicom: ModuleType, path: Path) -> tuple[np.ndarray, str, Range | None]:
    """Values of a DICOM file in its own units (Hounsfield's for computed tomography), its axes and its window."""
    from pydicom.pixels import apply_modality_lut

    data = pydicom.dcmread(path)
    raw = data.pixel_array
    colour = int(data.get("SamplesPerPixel", 1)) > 1
    values = raw if colour else apply_modality_lut(raw, data)
    axes = ("N" if raw.ndim > 2 + colour else "") + "HW" + ("C" if colour else "")
    limits = None if colour else _window(data, values)
    if limits is not None and data.get("PhotometricInterpretation") == "MONOCHROME1":  # low is white
        limits = limits._replace(low=limits.high, high=limits.low, note=f"{limits.note}, in negative")
    return values, axes, limits


def _window(data: object, values: np.ndarray) -> Range | None:
    """The file's window, or all of its bits where values are counts."""
    centre, width = data.get("WindowCenter"), data.get("WindowWidth")
    if centre is not None and width is not None:
        centre, width = (float(np.atleast_1d(each)[0]) for each in (centre, width))
        low, high = centre - width / 2, centre + width / 2
        if width > 0 and values.max() > low and values.min() < high:
            return Range(low, high, True, f"the file's window, {low:g} to {high:g}, is black to white")
    bits, slope = int(data.get("BitsStored", 16)), float(data.get("RescaleSlope", 1))
    white = slope * (2**bits - 1)
    has_unit = "ModalityLUTSequence" in data or float(data.get("RescaleIntercept", 0)) != 0
    if data.get("PixelRepresentation", 0) == 0 and not has_unit and 0 <= values.min() <= values.max() <= white:
        return Range(0, white, False, f"{bits} bits as the file says: 0 is black, {white:g} is white")
    return None


def read_nifti(nibabel: ModuleType, path: Path) -> tuple[np.ndarray, str, Range | None]:
    """Axial slices of a NIfTI volume, patient's right at the left and front at the top; volumes over time in a row."""
    image = nibabel.as_closest_canonical(nibabel.load(path))
    values = np.asarray(image.dataobj)
    values = values.astype(np.float32) if values.dtype.kind in "iuf" else values  # units are the scanner's own
    if values.ndim == 2:
        values = values[..., None]
    slices = values.reshape(*values.shape[:2], -1, order="F")  # (x, y, n), x to the right, y to the front
    return slices.transpose(2, 1, 0)[:, ::-1, ::-1], "NHW", None
