"""Linear filters: blur and super-resolution, with circular boundaries."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from deepinv.physics import BlurFFT, Downsampling
from deepinv.physics.blur import gaussian_blur as gaussian_kernel
from deepinv.physics.generator import MotionBlurGenerator
from torch import Tensor

from rlsd_lightning.errors import (
    InputError,
    require,
    require_at_least_one,
    require_integer,
    require_one_of,
    require_positive,
)
from rlsd_lightning.operators.noise import make_noise
from rlsd_lightning.reading.arrays import load_array
from rlsd_lightning.reading.paths import is_array, split_key
from rlsd_lightning.reading.pictures import alpha_of, open_upright, read_picture
from rlsd_lightning.signatures import typed

__all__ = ["blur", "draw_motion_kernel", "gaussian_blur", "load_kernel", "motion_blur", "super_resolution"]

FILTERS: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
    "average": (0.5, torch.ones_like),
    "bicubic": (2, lambda t: torch.where(t <= 1, 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2)),
    "bilinear": (1, lambda t: 1 - t),
    "gaussian": (3, lambda t: torch.exp(-(t**2) / 2)),
}
"""Support and weight of a low-pass filter, at a distance in units of the subsampling factor."""
LARGEST_MOTION = 61
"""Largest default size of a motion kernel in pixels, the usual one at 256x256 and 512x512."""


@typed
def super_resolution(
    image_shape: tuple[int, int, int],
    factor: int | None = None,
    filter: str = "bicubic",
    sigma: float = 0.001,
    noise: str = "gaussian",
) -> Downsampling:
    """Low-pass filter and subsampling of both axes.

    A value of the measurement lies at the centre of a block of factor x factor pixels, as in pictures that Pillow or OpenCV
    reduced.

    Args:
        factor: Subsampling factor of both axes; by default 4 below 256 pixels and 8 from there on.
        filter: ``average`` (of factor x factor pixels), ``bicubic``, ``bilinear`` or ``gaussian`` (with a standard
            deviation of factor pixels).

    Raises:
        InputError: If the factor does not fit the image's size, or the filter is unknown.
    """
    height, width = image_shape[-2:]
    if factor is None:
        factor = 8 if min(height, width) >= 256 else 4
    require_at_least_one(factor=factor)
    if height % factor or width % factor or min(height, width) < 4 * factor:
        raise InputError(
            f"super-resolution x{factor} needs images whose sides are multiples of {factor} and at least {4 * factor} "
            f"pixels, got {width}x{height}; choose another factor"
        )
    require_one_of(FILTERS, filter=filter)
    rows, columns = (_low_pass(filter, factor, side) for side in (height, width))
    kernel = torch.outer(rows, columns)[None, None]
    return Downsampling(
        img_size=image_shape, filter=kernel, factor=factor, padding="circular", noise_model=make_noise(noise, sigma)
    )


def _low_pass(filter: str, factor: int, side: int) -> Tensor:
    """Weights along an axis of ``side`` pixels, as a kernel that is convolved with it.

    The filters of deepinv are centred half a pixel past the first pixel of a block, or upon it.
    """
    support, weight = FILTERS[filter]
    centre = (factor - 1) / 2
    reach = max(int(support * factor + centre), 1)  # deepinv has no adjoint for a single weight
    offsets = torch.arange(-reach, reach + 1)
    distances = (offsets - centre).abs() / factor
    weights = torch.where(distances <= support, weight(distances), 0)
    size = min(len(offsets), side)  # a longer kernel wraps around, as the boundary is circular
    kernel = torch.zeros(size).index_add(0, (size // 2 - offsets) % size, weights)
    return kernel / kernel.sum()


@typed
def blur(
    image_shape: tuple[int, int, int], kernel: str | Path, sigma: float = 0.001, noise: str = "gaussian"
) -> BlurFFT:
    """Convolution with a kernel from a file; see :func:`load_kernel`.

    Raises:
        InputError: If the kernel can't be used or is larger than the image.
    """
    return _blur(image_shape, load_kernel(kernel), f"'{kernel}'", sigma, noise)


@typed
def gaussian_blur(
    image_shape: tuple[int, int, int], std: float | None = None, sigma: float = 0.001, noise: str = "gaussian"
) -> BlurFFT:
    """Convolution with a Gaussian.

    Args:
        std: The Gaussian's standard deviation in pixels; by default a fortieth of the shorter side.

    Raises:
        InputError: If the Gaussian is larger than the image.
    """
    std = min(image_shape[-2:]) / 40 if std is None else std
    require_positive(std=std)
    return _blur(image_shape, gaussian_kernel(sigma=float(std)), f"std={std:g}", sigma, noise)


@typed
def motion_blur(
    image_shape: tuple[int, int, int],
    kernel: str | Path | None = None,
    size: int | None = None,
    kernel_seed: int = 0,
    sigma: float = 0.001,
    noise: str = "gaussian",
) -> BlurFFT:
    """Motion blur: a kernel from a file, or of a random camera path.

    Args:
        kernel: A file that :func:`load_kernel` reads; a path is drawn if left out.
        size: Height and width of the drawn kernel in pixels; by default a third of the shorter side, at most 61.
        kernel_seed: Seed of the drawn path.

    Raises:
        InputError: If the kernel can't be used or is larger than the image.
    """
    if kernel is not None:
        return blur(image_shape, kernel, sigma, noise)
    size = min(LARGEST_MOTION, min(image_shape[-2:]) // 3) if size is None else size
    require_integer(size=size)
    require(lambda value: value >= 3, "at least 3 pixels", size=size)
    return _blur(image_shape, draw_motion_kernel(size | 1, kernel_seed), f"size={size}", sigma, noise)


def draw_motion_kernel(size: int, seed: int) -> Tensor:
    """Kernel of a random camera path, with sum one and shape :math:`(1, 1, size, size)`."""
    return MotionBlurGenerator((size, size), rng=torch.Generator().manual_seed(seed)).step()["filter"]


@typed
def load_kernel(path: str | Path) -> Tensor:
    """Blur kernel from an array or a grey picture, with sum one and shape :math:`(1, 1, h, w)`.

    The image is convolved with it, so that a kernel with its weight at the upper left moves the image to the upper left. Its
    centre is the pixel ``(h // 2, w // 2)``, counted from zero.

    Raises:
        InputError: If the file can't be read, is transparent, or its values are no kernel's.
    """
    file, _ = split_key(path)
    if not file.is_file():
        raise InputError(f"kernel must be an array or image file of a blur kernel, got '{path}'")
    if is_array(file):
        values = load_array(path)
        values = values.reshape(values.shape[-2:]) if set(values.shape[:-2]) == {1} else values
    else:
        with open_upright(file) as image:
            if alpha_of(image) is not None:
                raise InputError(f"an opaque kernel is expected, but '{path}' has transparency; save it on black")
        values = np.asarray(read_picture(file))
        values = values.mean(axis=-1) if values.ndim == 3 else values
    kernel = torch.from_numpy(values.astype(np.float32))
    if kernel.ndim != 2 or not torch.isfinite(kernel).all() or kernel.sum() <= 0:
        raise InputError(
            f"a blur kernel of shape (h, w) with finite values of positive sum is expected, but '{path}' has shape "
            f"{tuple(kernel.shape)} and sum {kernel.sum().item():g}"
        )
    return (kernel / kernel.sum())[None, None]


def _blur(image_shape: tuple[int, ...], kernel: Tensor, source: str, sigma: float, noise: str) -> BlurFFT:
    if any(k > n for k, n in zip(kernel.shape[-2:], image_shape[-2:], strict=True)):
        raise InputError(
            f"a blur kernel of at most {image_shape[-1]}x{image_shape[-2]} pixels is expected, the size of the prior's "
            f"images, but {source} has {kernel.shape[-1]}x{kernel.shape[-2]}"
        )
    return BlurFFT(img_size=image_shape, filter=kernel, noise_model=make_noise(noise, sigma))
