"""Forward operators as configured: ``deepinv.physics`` with files and names turned into tensors.

Each takes the prior's ``image_shape`` first, so that one configuration serves priors of any size.
"""

from pathlib import Path

import numpy as np
import torch
from deepinv.physics import BlurFFT, Downsampling, GaussianNoise, Inpainting
from torch import Tensor

from rlsd_lightning.data import load_array, open_picture
from rlsd_lightning.errors import InputError
from rlsd_lightning.masks import load_mask

__all__ = ["blur", "inpainting", "load_kernel", "super_resolution"]

FILTERS = ("bicubic", "bilinear", "gaussian")


def _noise(sigma: float) -> GaussianNoise:
    if sigma < 0:
        raise InputError(f"physics.sigma must not be negative, got {sigma}")
    return GaussianNoise(sigma=float(sigma))


def inpainting(image_shape: tuple[int, ...], mask: str, sigma: float = 0.001) -> Inpainting:
    """Some pixels are missing.

    Args:
        image_shape: Shape of an image, :math:`(C, H, W)`.
        mask: A name or file that :func:`~rlsd_lightning.masks.load_mask` knows.
        sigma: Standard deviation of the noise, in units of an image in [-1, 1].
    """
    pixels = load_mask(mask, *image_shape[-2:])
    return Inpainting(image_shape, mask=pixels.expand(image_shape).clone(), noise_model=_noise(sigma))


def super_resolution(
    image_shape: tuple[int, ...], factor: int | None = None, filter: str = "bicubic", sigma: float = 0.001
) -> Downsampling:
    """The image was filtered and every so many pixels kept; its borders wrap around.

    Args:
        image_shape: Shape of an image, :math:`(C, H, W)`.
        factor: Kept is every so manieth pixel of both axes; by default 4 below 256 pixels and 8 from there on.
        filter: ``bicubic``, ``bilinear`` or ``gaussian``.
        sigma: Standard deviation of the noise, in units of an image in [-1, 1].

    Raises:
        InputError: If the image can't be divided so, or there is no such filter.
    """
    height, width = image_shape[-2:]
    if factor is None:
        factor = 8 if min(height, width) >= 256 else 4
    if factor < 1 or height % factor or width % factor or min(height, width) < 4 * factor:
        raise InputError(
            f"super-resolution x{factor} needs images whose sides are multiples of {factor} and at least {4 * factor} "
            f"pixels, got {width}x{height}; choose another physics.factor"
        )
    if filter not in FILTERS:
        raise InputError(f"physics.filter must be one of {', '.join(FILTERS)}, got '{filter}'")
    return Downsampling(
        img_size=image_shape, filter=filter, factor=factor, padding="circular", noise_model=_noise(sigma)
    )


def blur(image_shape: tuple[int, ...], kernel: str, sigma: float = 0.001) -> BlurFFT:
    """The image was convolved with a kernel; its borders wrap around.

    Args:
        image_shape: Shape of an image, :math:`(C, H, W)`.
        kernel: A file that :func:`load_kernel` reads.
        sigma: Standard deviation of the noise, in units of an image in [-1, 1].

    Raises:
        InputError: If the kernel can't be used or is larger than the image.
    """
    weights = load_kernel(kernel)
    if any(k > n for k, n in zip(weights.shape[-2:], image_shape[-2:], strict=True)):
        raise InputError(
            f"a blur kernel of at most {image_shape[-1]}x{image_shape[-2]} pixels is expected, the size of the prior's "
            f"images, but '{kernel}' has {weights.shape[-1]}x{weights.shape[-2]}"
        )
    return BlurFFT(img_size=image_shape, filter=weights, noise_model=_noise(sigma))


def load_kernel(path: str | Path) -> Tensor:
    """Reads a blur kernel from a .npy file or a grey picture, normalised to sum one, with shape (1, 1, h, w).

    Raises:
        InputError: If there is no such file, or its values are not those of a kernel.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"data.kernel must be a .npy or image file of a blur kernel, got '{path}'")
    values = load_array(path) if path.suffix == ".npy" else np.asarray(open_picture(path).convert("L"))
    kernel = torch.from_numpy(values.astype(np.float32))
    if kernel.ndim != 2 or not torch.isfinite(kernel).all() or kernel.sum() <= 0:
        raise InputError(
            f"a blur kernel of shape (h, w) with finite values of positive sum is expected, but '{path}' has shape "
            f"{tuple(kernel.shape)} and sum {kernel.sum().item():g}"
        )
    return (kernel / kernel.sum())[None, None]
