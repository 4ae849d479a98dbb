"""Axes of arrays of pictures."""

import numpy as np

from rlsd_lightning.errors import InputError

__all__ = ["CHANNELS", "as_pages", "check_axes"]

CHANNELS = (1, 3)
"""Numbers of channels: grey and colour."""


def check_axes(axes: str | None) -> str | None:
    """Checked letters of the axes in their order: N pictures, C channels, H height, W width.

    Raises:
        InputError: If they are no such letters.
    """
    if axes is None:
        return None
    letters = str(axes).upper()
    if not {"H", "W"} <= set(letters) <= set("NCHW") or len(set(letters)) < len(letters):
        raise InputError(
            f"axes must be an order of H and W, and of N and C if there are any, such as NHW, got '{axes}'"
        )
    return letters


def as_pages(values: np.ndarray, axes: str | None, what: object) -> np.ndarray:
    """An array as pictures, without a copy.

    Args:
        values: One picture or several; (H, W), (H, W, 3), (3, H, W), (N, H, W) and so on.
        axes: Its axes, as in :func:`check_axes`; None infers them from the sizes.
        what: The file's name, for messages.

    Returns:
        Pictures, with shape :math:`(N, H, W, C)` and one or three channels.

    Raises:
        InputError: If the array has other axes, or its sizes are ambiguous.
    """
    if not values.size:
        raise InputError(f"values are expected, but '{what}' is an empty array of shape {values.shape}")
    if axes is not None and len(axes) != values.ndim:
        raise InputError(f"axes must have a letter for each axis of '{what}', which has {values.shape}, got '{axes}'")
    order = axes or _inferred(values.shape, what)
    missing = [letter for letter in "NC" if letter not in order]
    values = values[(None,) * len(missing)]
    pages = values.transpose(["".join((*missing, order)).index(letter) for letter in "NHWC"])
    if pages.shape[-1] not in CHANNELS:
        raise InputError(f"one or three channels are expected, but '{what}' has {values.shape} with axes={order}")
    return pages


def _inferred(shape: tuple[int, ...], what: object) -> str:
    """Axes inferred from sizes: channels are 1 or 3, and a stack's first axis counts its pictures."""
    unclear = None
    if len(shape) == 2:
        return "HW"
    if len(shape) == 3:
        first, last = shape[0] in CHANNELS, shape[2] in CHANNELS
        if last and not first:
            return "HWC"
        if shape[0] == 1 and not last:
            return "CHW"
        if first:
            unclear = "CHW (one picture) or NHW (a stack)"
        elif shape[2] == 4:
            unclear = "HWN (a stack of four); colours with transparency must be saved as three channels"
        elif shape[0] == shape[1] != shape[2] or 4 * shape[2] <= min(shape[:2]):
            unclear = "HWN or NHW (a stack whose pictures are counted by the last or the first axis)"
        else:
            return "NHW"
    if len(shape) == 4:
        first, last = shape[1] in CHANNELS, shape[3] in CHANNELS
        if first != last:
            return "NCHW" if first else "NHWC"
        unclear = "NCHW or NHWC" if first else None
    if unclear:
        raise InputError(f"the sizes {shape} of '{what}' do not tell its axes; say which, such as axes={unclear}")
    raise InputError(
        f"a picture of shape (H, W) or (H, W, 3), or a stack of shape (N, H, W) or (N, H, W, 3), is expected, but "
        f"'{what}' has {shape}; cut it, or say what its axes are, such as axes=HWN"
    )
