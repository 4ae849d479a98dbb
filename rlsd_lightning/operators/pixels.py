"""Pointwise operators: missing pixels, missing colours, noise alone; and masks.

Masks are 1 where the image is observed and 0 where it is missing, with shape :math:`(1, H, W)`.
"""

from collections.abc import Sequence
from glob import has_magic
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from deepinv.physics import (
    Decolorize,
    Demosaicing,
    Denoising,
    GaussianNoise,
    Inpainting,
    LinearPhysics,
    NoiseModel,
    Physics,
)
from PIL import Image, ImageDraw
from torch import Tensor

from rlsd_lightning.errors import InputError
from rlsd_lightning.operators.noise import make_noise
from rlsd_lightning.reading import find_images, read_mask, split_key
from rlsd_lightning.reading.paths import name_of

__all__ = [
    "MaskedPixels",
    "MasksOfPictures",
    "NullOperator",
    "PerPicture",
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
    """Mask ``half``, ``box``, ``free`` or ``random``, or of a file, see :func:`~rlsd_lightning.reading.read_mask`.

    Raises:
        InputError: If the file is missing, no mask, or hides everything.
    """
    return _load(mask, height, width)[0]


def _load(mask: str | Path, height: int, width: int) -> tuple[Tensor, tuple[int, int]]:
    """A mask, with height and width of its file's."""
    if str(mask) in _NAMED:
        return _NAMED[str(mask)](height, width), (height, width)
    if not split_key(mask)[0].is_file():
        raise InputError(
            f"mask must be one of {', '.join(_NAMED)}, a file, or a folder with a mask for each image, got '{mask}'"
        )
    seen, own = read_mask(mask, height, width)
    return torch.from_numpy(seen.copy())[None].float(), own


@runtime_checkable
class PerPicture(Protocol):
    """Operator that depends on the picture that it measures."""

    def for_picture(self, names: Sequence[str], size: tuple[int, int] | None) -> Physics:
        """The operator of one picture.

        Args:
            names: Names of the picture, the most specific first.
            size: The picture's own height and width; None if it has none.

        Raises:
            InputError: If there is none for this picture.
        """


class MaskedPixels(Inpainting):
    """Missing pixels, by a mask from a file."""

    def __init__(self, image_shape: tuple[int, ...], mask: str | Path, noise_model: NoiseModel) -> None:
        pixels, self.mask_size = _load(mask, *image_shape[-2:])
        super().__init__(image_shape, mask=pixels.expand(image_shape).clone(), noise_model=noise_model)
        self.source = mask

    def for_picture(self, names: Sequence[str], size: tuple[int, int] | None) -> Physics:
        """The same operator, if its mask has the picture's own size, or that of the prior's images."""
        fitted = tuple(self.mask.shape[-2:])
        if self.mask_size not in (fitted, size):
            own = "" if size in (None, fitted) else f", or of {size[1]}x{size[0]}, the size of '{names[0]}'"
            raise InputError(
                f"a mask of {fitted[1]}x{fitted[0]} pixels is expected, the size of the prior's images{own}, but "
                f"'{self.source}' has {self.mask_size[1]}x{self.mask_size[0]}; resize it without interpolation"
            )
        return self


class MasksOfPictures(Physics):
    """Missing pixels, by a folder of masks: each belongs to the picture of its name."""

    def __init__(self, image_shape: tuple[int, ...], folder: str | Path, noise_model: NoiseModel) -> None:
        super().__init__(noise_model=noise_model)
        self.image_shape, self.folder = image_shape, folder
        self.files = {name_of(file): file for file in find_images(folder, "mask")}

    def A(self, x: Tensor, **kwargs) -> Tensor:  # noqa: N802
        raise InputError(f"mask='{self.folder}' has a mask for each picture; give one mask's file here")

    def for_picture(self, names: Sequence[str], size: tuple[int, int] | None) -> Physics:
        """The operator with the mask ``name`` or ``name_mask``."""
        file = next((self.files[each] for name in names for each in (name, f"{name}_mask") if each in self.files), None)
        if file is None:
            raise InputError(f"a mask named '{names[-1]}' is expected in '{self.folder}', but there is none; add it")
        return MaskedPixels(self.image_shape, file, self.noise_model).for_picture(names, size)


def inpainting(image_shape: tuple[int, ...], mask: str, sigma: float = 0.001, noise: str = "gaussian") -> Physics:
    """Missing pixels, by a mask's name or file, see :func:`load_mask`, or by a folder with a mask for each image."""
    noise_model = make_noise(noise, sigma)
    if str(mask) in _NAMED:
        pixels = load_mask(mask, *image_shape[-2:])
        return Inpainting(image_shape, mask=pixels.expand(image_shape).clone(), noise_model=noise_model)
    many = Path(mask).is_dir() or (has_magic(str(mask)) and not split_key(mask)[0].is_file())
    return (MasksOfPictures if many else MaskedPixels)(image_shape, mask, noise_model)


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
