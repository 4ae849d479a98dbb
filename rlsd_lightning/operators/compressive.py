"""Compressive measurements: fewer numbers than pixels, each a mixture of all pixels."""

from functools import partial

import torch
from deepinv.physics import SinglePixelCamera, StructuredRandom
from deepinv.physics.functional import dst1
from torch import Tensor

from rlsd_lightning.errors import InputError, require_positive_fraction
from rlsd_lightning.operators.noise import make_noise
from rlsd_lightning.signatures import typed

__all__ = ["MaskedSinglePixelCamera", "compressed_sensing", "single_pixel"]


class MaskedSinglePixelCamera(SinglePixelCamera):
    """deepinv's single-pixel camera, without noise on the patterns that are not measured."""

    def noise(self, x: Tensor, **kwargs) -> Tensor:
        return super().noise(x, **kwargs) * self.mask


@typed
def compressed_sensing(
    image_shape: tuple[int, int, int],
    ratio: float = 0.25,
    operator_seed: int = 0,
    sigma: float = 0.001,
    noise: str = "gaussian",
) -> StructuredRandom:
    """Random signs, a sine transform and a subset of its coefficients, for each channel.

    Args:
        ratio: Share of coefficients that are kept, in (0, 1].
        operator_seed: Seed of the signs.

    Raises:
        InputError: If the ratio is out of range.
    """
    require_positive_fraction(ratio=ratio)
    channels, height, width = image_shape
    kept = (channels, max(1, round(height * ratio**0.5)), max(1, round(width * ratio**0.5)))
    signs = torch.randint(0, 2, image_shape, generator=torch.Generator().manual_seed(operator_seed)) * 2.0 - 1
    transform = partial(dst1, dim=(-2, -1))  # its own inverse
    return StructuredRandom(
        image_shape,
        kept,
        transform_func=transform,
        transform_func_inv=transform,
        diagonals=[signs],
        noise_model=make_noise(noise, sigma, of_images=False),
    )


@typed
def single_pixel(
    image_shape: tuple[int, int, int], ratio: float = 0.25, sigma: float = 0.001, noise: str = "gaussian"
) -> MaskedSinglePixelCamera:
    """Single-pixel camera with Hadamard patterns, ordered by their number of sign changes.

    Args:
        ratio: Number of patterns over number of pixels, in (0, 1].

    Raises:
        InputError: If the ratio is out of range or a side is not a power of two.
    """
    require_positive_fraction(ratio=ratio)
    height, width = image_shape[-2:]
    if height & (height - 1) or width & (width - 1):
        raise InputError(
            f"a single-pixel camera needs images whose sides are powers of two, got {width}x{height}; "
            "set fit=crop and such an image_size"
        )
    patterns = max(1, round(ratio * height * width))
    return MaskedSinglePixelCamera(
        m=patterns, img_size=image_shape, fast=True, noise_model=make_noise(noise, sigma, of_images=False)
    )
