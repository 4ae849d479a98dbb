"""Reads pictures, arrays and masks from files, and tells what their values and axes mean.

Whatever a library raises while it reads becomes an :class:`~rlsd_lightning.errors.InputError` that names the file.
"""

from rlsd_lightning.reading.arrays import Array, TakesArrays, load_array, read_array
from rlsd_lightning.reading.frames import FITS, Frame, next_multiple
from rlsd_lightning.reading.masks import read_mask, read_whole_mask
from rlsd_lightning.reading.paths import find_images, is_array, split_key
from rlsd_lightning.reading.pictures import frames_of, open_picture, open_upright, read_picture
from rlsd_lightning.reading.shapes import as_pages, check_axes
from rlsd_lightning.reading.stacks import Stack
from rlsd_lightning.reading.values import Range, as_range, check_finite, measured_range, picture_range, scaled

__all__ = [
    "FITS",
    "Array",
    "Frame",
    "Range",
    "Stack",
    "TakesArrays",
    "as_pages",
    "as_range",
    "check_axes",
    "check_finite",
    "find_images",
    "frames_of",
    "is_array",
    "load_array",
    "measured_range",
    "next_multiple",
    "open_picture",
    "open_upright",
    "picture_range",
    "read_array",
    "read_mask",
    "read_picture",
    "read_whole_mask",
    "scaled",
    "split_key",
]
