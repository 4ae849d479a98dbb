"""Operators that act on every pixel by itself: missing pixels, missing colours, or noise alone."""

import torch
from deepinv.physics import Decolorize, Demosaicing, Denoising, GaussianNoise, Inpainting

from rlsd_lightning.errors import InputError
from rlsd_lightning.operators.masks import load_mask
from rlsd_lightning.operators.noise import make_noise

__all__ = ["colorization", "demosaicing", "denoising", "first_coordinate", "inpainting"]


def inpainting(image_shape: tuple[int, ...], mask: str, sigma: float = 0.001, noise: str = "gaussian") -> Inpainting:
    """Some pixels are missing.

    Args:
        image_shape: Shape of an image, :math:`(C, H, W)`.
        mask: A name or file that :func:`~rlsd_lightning.operators.masks.load_mask` knows.
        sigma: Standard deviation of the noise, in units of an image in [-1, 1].
        noise: Its kind, see :func:`~rlsd_lightning.operators.make_noise`.
    """
    pixels = load_mask(mask, *image_shape[-2:])
    return Inpainting(image_shape, mask=pixels.expand(image_shape).clone(), noise_model=make_noise(noise, sigma))


def denoising(image_shape: tuple[int, ...], sigma: float = 0.2, noise: str = "gaussian") -> Denoising:
    """Nothing but noise.

    Args:
        image_shape: Shape of an image, :math:`(C, H, W)`.
        sigma: Standard deviation of the noise, in units of an image in [-1, 1].
        noise: Its kind, see :func:`~rlsd_lightning.operators.make_noise`.
    """
    return Denoising(noise_model=make_noise(noise, sigma))


def colorization(image_shape: tuple[int, ...], sigma: float = 0.001, noise: str = "gaussian") -> Decolorize:
    """Only the brightness is known: the mean of the channels.

    Args:
        image_shape: Shape of an image, :math:`(C, H, W)`.
        sigma: Standard deviation of the noise, in units of an image in [-1, 1].
        noise: Its kind, see :func:`~rlsd_lightning.operators.make_noise`.
    """
    return Decolorize(channels=image_shape[0], srf="flat", noise_model=make_noise(noise, sigma))


def demosaicing(image_shape: tuple[int, ...], sigma: float = 0.001, noise: str = "gaussian") -> Demosaicing:
    """A Bayer filter lets one colour through to each pixel.

    Args:
        image_shape: Shape of an image, :math:`(3, H, W)` with even sides.
        sigma: Standard deviation of the noise, in units of an image in [-1, 1].
        noise: Its kind, see :func:`~rlsd_lightning.operators.make_noise`.

    Raises:
        InputError: If the image has not three channels and even sides.
    """
    if image_shape[0] != 3 or image_shape[1] % 2 or image_shape[2] % 2:
        raise InputError(f"demosaicing needs images of three channels and even sides, got shape {tuple(image_shape)}")
    return Demosaicing(image_shape, pattern="bayer", noise_model=make_noise(noise, sigma))


def first_coordinate(image_shape: tuple[int, ...], sigma: float = 0.1) -> Inpainting:
    """Observes a point's first coordinate.

    Args:
        image_shape: Shape of a point, :math:`(d,)`.
        sigma: Standard deviation of the noise.
    """
    mask = torch.zeros(image_shape)
    mask[0] = 1
    return Inpainting(image_shape, mask=mask, noise_model=GaussianNoise(sigma=float(sigma)))
