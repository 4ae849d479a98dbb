"""Pointwise operators: missing pixels, missing colours, noise alone; and masks.

Masks are 1 where the image is observed and 0 where it is missing, with shape :math:`(1, H, W)`.
"""

from pathlib import Path

import numpy as np
import torch
from deepinv.physics import Decolorize, Demosaicing, Denoising, GaussianNoise, Inpainting, LinearPhysics
from PIL import Image, ImageDraw
from torch import Tensor

from rlsd_lightning.errors import InputError
from rlsd_lightning.images import open_picture
from rlsd_lightning.operators.noise import make_noise

__all__ = [
    "NullOperator",
    "box_mask",
    "colorization",
    "demosaicing",
    "denoising",
    "first_coordinate",
    "free_form_mask",
    "half_mask",
    "inpainting",
    "load_mask",
    "random_mask",
]


def half_mask(height: int, width: int) -> Tensor:
    """Hides the lower half."""
    mask = torch.ones(1, height, width)
    mask[:, height // 2 :] = 0
    return mask


def box_mask(height: int, width: int) -> Tensor:
    """Hides a centred box of half the height and half the width."""
    mask = torch.ones(1, height, width)
    mask[:, height // 4 : height - height // 4, width // 4 : width - width // 4] = 0
    return mask


def free_form_mask(height: int, width: int, seed: int = 0) -> Tensor:
    """Hides brush strokes that cover at least a quarter of the image."""
    rng = np.random.default_rng(seed)
    canvas = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(canvas)
    brush = max(2, min(height, width) // 10)
    while np.mean(np.asarray(canvas) == 0) < 0.25:
        points = rng.uniform((0, 0), (width, height), size=(4, 2))
        draw.line([tuple(point) for point in points], fill=0, width=brush, joint="curve")
        for x, y in points:  # round ends
            draw.ellipse((x - brush / 2, y - brush / 2, x + brush / 2, y + brush / 2), fill=0)
    return torch.from_numpy(np.asarray(canvas) > 0)[None].float()


def random_mask(height: int, width: int) -> Tensor:
    """Hides 80 % of the pixels, chosen at random."""
    hidden = np.random.default_rng(0).permutation(height * width)[: round(0.8 * height * width)]
    mask = torch.ones(height * width)
    mask[torch.from_numpy(hidden)] = 0
    return mask.view(1, height, width)


_NAMED = {"half": half_mask, "box": box_mask, "free": free_form_mask, "random": random_mask}


def load_mask(mask: str | Path, height: int, width: int) -> Tensor:
    """Mask ``half``, ``box``, ``free`` or ``random``, or of an image file that is white where the image is observed.

    Raises:
        InputError: If the file is missing, not an image, of another size, or hides everything.
    """
    if str(mask) in _NAMED:
        return _NAMED[str(mask)](height, width)
    if not Path(mask).is_file():
        raise InputError(f"mask must be one of {', '.join(_NAMED)} or an image file, got '{mask}'")
    pixels = np.asarray(open_picture(Path(mask)).convert("L"))
    if pixels.shape != (height, width):
        raise InputError(
            f"a mask of {width}x{height} pixels is expected, the size of the prior's images, but '{mask}' has "
            f"{pixels.shape[1]}x{pixels.shape[0]}; resize it without interpolation"
        )
    if not (pixels > 127).any():
        raise InputError(f"mask='{mask}' hides every pixel; make observed pixels white")
    return torch.from_numpy(pixels > 127)[None].float()


def inpainting(image_shape: tuple[int, ...], mask: str, sigma: float = 0.001, noise: str = "gaussian") -> Inpainting:
    """Missing pixels, by a mask's name or file; see :func:`load_mask`."""
    pixels = load_mask(mask, *image_shape[-2:])
    return Inpainting(image_shape, mask=pixels.expand(image_shape).clone(), noise_model=make_noise(noise, sigma))


def denoising(image_shape: tuple[int, ...], sigma: float = 0.2, noise: str = "gaussian") -> Denoising:
    """Identity with noise."""
    return Denoising(noise_model=make_noise(noise, sigma))


def colorization(image_shape: tuple[int, ...], sigma: float = 0.001, noise: str = "gaussian") -> Decolorize:
    """Mean of the channels (brightness)."""
    return Decolorize(channels=image_shape[0], srf="flat", noise_model=make_noise(noise, sigma))


def demosaicing(image_shape: tuple[int, ...], sigma: float = 0.001, noise: str = "gaussian") -> Demosaicing:
    """Bayer filter: one colour at each pixel.

    Raises:
        InputError: If the image does not have three channels and even sides.
    """
    if image_shape[0] != 3 or image_shape[1] % 2 or image_shape[2] % 2:
        raise InputError(f"demosaicing needs images of three channels and even sides, got shape {tuple(image_shape)}")
    return Demosaicing(image_shape, pattern="bayer", noise_model=make_noise(noise, sigma))


def first_coordinate(image_shape: tuple[int, ...], sigma: float = 0.1) -> Inpainting:
    """Observes the first coordinate of a point with shape :math:`(d,)`."""
    mask = torch.zeros(image_shape)
    mask[0] = 1
    return Inpainting(image_shape, mask=mask, noise_model=GaussianNoise(sigma=float(sigma)))


class NullOperator(LinearPhysics):
    """The operator that measures nothing: its output is one zero for any image."""

    def __init__(self, image_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)

    def A(self, x: Tensor, **kwargs) -> Tensor:  # noqa: N802
        return 0 * x.flatten(1)[:, :1]

    def A_adjoint(self, y: Tensor, **kwargs) -> Tensor:  # noqa: N802
        return y.new_zeros(len(y), *self.image_shape)

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float, **kwargs) -> Tensor:
        return z
