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
from rlsd_lightning.reading.frames import Frame
from rlsd_lightning.reading.masks import read_mask, read_whole_mask
from rlsd_lightning.reading.paths import find_images, name_of, split_key
from rlsd_lightning.signatures import typed

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
    "observed_in_picture",
    "random_mask",
    "seen_by",
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


@typed
def load_mask(mask: str | Path, height: int, width: int) -> Tensor:
    """Mask ``half``, ``box``, ``free`` or ``random``, or of a file, see :func:`~rlsd_lightning.reading.masks.read_mask`.

    Raises:
        InputError: If the file is missing, no mask, or hides everything.
    """
    return _load(mask, (height, width))[0]


def _load(mask: str | Path, size: tuple[int, int], frame: Frame | None = None) -> tuple[Tensor, tuple[int, int]]:
    """A mask, with height and width of its file's."""
    if str(mask) in _NAMED:
        return _NAMED[str(mask)](*size), size
    if not split_key(mask)[0].is_file():
        raise InputError(
            f"mask must be one of {', '.join(_NAMED)}, a file, or a folder with a mask for each image, got '{mask}'"
        )
    seen, own = read_mask(mask, *size, frame)
    return torch.from_numpy(seen.copy())[None].float(), own


@runtime_checkable
class PerPicture(Protocol):
    """Operator that depends on the picture that it measures."""

    def for_picture(self, names: Sequence[str], frame: Frame | None) -> Physics:
        """The operator of one picture.

        Args:
            names: Names of the picture, the most specific first.
            frame: Where the picture lies in the image; None if there is no such picture.

        Raises:
            InputError: If there is none for this picture.
        """


class MaskedPixels(Inpainting):
    """Missing pixels, by a mask from a file.

    Args:
        image_shape: Shape of an image.
        mask: The file.
        noise_model: The noise.
        frame: Where a picture lies in the image, for a mask of the picture's own size.
    """

    def __init__(
        self, image_shape: tuple[int, ...], mask: str | Path, noise_model: NoiseModel, frame: Frame | None = None
    ) -> None:
        pixels, self.mask_size = _load(mask, tuple(image_shape[-2:]), frame)
        super().__init__(image_shape, mask=pixels.expand(image_shape).clone(), noise_model=noise_model)
        self.source, self.frame = mask, frame

    def for_picture(self, names: Sequence[str], frame: Frame | None) -> Physics:
        """The same operator, if its mask has the picture's own size, or that of the image."""
        fitted, own = tuple(self.mask.shape[-2:]), frame and frame.picture_size
        if self.mask_size not in (fitted, own):
            other = "" if own in (None, fitted) else f", or of {own[1]}x{own[0]}, the size of '{names[0]}'"
            raise InputError(
                f"a mask of {fitted[1]}x{fitted[0]} pixels is expected, the size of the prior's images{other}, but "
                f"'{self.source}' has {self.mask_size[1]}x{self.mask_size[0]}; resize it without interpolation"
            )
        return self


class MasksOfPictures(Physics):
    """Missing pixels, by a folder of masks: each belongs to the picture of its name."""

    def __init__(self, image_shape: tuple[int, ...], folder: str | Path, noise_model: NoiseModel) -> None:
        super().__init__(noise_model=noise_model)
        self.image_shape, self.folder = image_shape, folder
        self.files: dict[str, Path] = {}
        for file in find_images(folder, "mask"):
            first = self.files.setdefault(name_of(file), file)
            if first is not file:
                raise InputError(
                    f"mask: one mask a picture is expected in '{folder}', got '{first}' and '{file}'; remove one"
                )

    def A(self, x: Tensor, **kwargs) -> Tensor:  # noqa: N802
        raise InputError(f"mask='{self.folder}' has a mask for each picture; give one mask's file here")

    def for_picture(self, names: Sequence[str], frame: Frame | None) -> Physics:
        """The operator with the mask ``name`` or ``name_mask``."""
        file = next((self.files[each] for name in names for each in (name, f"{name}_mask") if each in self.files), None)
        if file is None:
            raise InputError(f"a mask named '{names[-1]}' is expected in '{self.folder}', but there is none; add it")
        return MaskedPixels(self.image_shape, file, self.noise_model, frame).for_picture(names, frame)


@typed
def inpainting(
    image_shape: tuple[int, int, int],
    mask: str | Path,
    sigma: float = 0.001,
    noise: str = "gaussian",
    frame: Frame | None = None,
) -> Physics:
    """Missing pixels, by a mask's name or file, see :func:`load_mask`, or by a folder with a mask for each image.

    A mask of the picture's own size needs ``frame``, where the picture lies in the image.
    """
    noise_model = make_noise(noise, sigma)
    if str(mask) in _NAMED:
        pixels = load_mask(mask, *image_shape[-2:])
        return Inpainting(image_shape, mask=pixels.expand(image_shape).clone(), noise_model=noise_model)
    if Path(mask).is_dir() or (has_magic(str(mask)) and not split_key(mask)[0].is_file()):
        return MasksOfPictures(image_shape, mask, noise_model)
    return MaskedPixels(image_shape, mask, noise_model, frame)


def seen_by(mask: Tensor) -> Tensor:
    """What an operator's mask sees: boolean, without the axis of the batch; deepinv keeps a mask of shape (H, W) as it is."""
    return (mask[None] if mask.ndim == len("HW") else mask[0]) > 0


def observed_in_picture(physics: Physics, frame: Frame) -> Image.Image | None:
    """Pixels of a picture that an inpainting operator observes.

    Args:
        physics: The operator.
        frame: Where the picture lies in the image.

    Returns:
        White where observed, with the size of the picture's part in the image; None if the operator hides no pixels.
    """
    if not isinstance(physics, Inpainting):
        return None
    if isinstance(physics, MaskedPixels) and physics.mask_size == frame.picture_size:
        seen, _ = read_whole_mask(physics.source)
        return Image.fromarray(np.where(seen, 255, 0).astype(np.uint8)).crop(frame.pixel_box)
    solved = seen_by(physics.mask).all(dim=0).cpu().numpy()
    return frame.to_picture(Image.fromarray(np.where(solved, 255, 0).astype(np.uint8)), Image.Resampling.NEAREST)


@typed
def denoising(image_shape: tuple[int, ...], sigma: float = 0.2, noise: str = "gaussian") -> Denoising:
    """Identity with noise."""
    return Denoising(noise_model=make_noise(noise, sigma))


@typed
def colorization(image_shape: tuple[int, int, int], sigma: float = 0.001, noise: str = "gaussian") -> Decolorize:
    """Mean of the channels (brightness)."""
    return Decolorize(channels=image_shape[0], srf="flat", noise_model=make_noise(noise, sigma))


@typed
def demosaicing(image_shape: tuple[int, int, int], sigma: float = 0.001, noise: str = "gaussian") -> Demosaicing:
    """Bayer filter: one colour at each pixel.

    Raises:
        InputError: If the image does not have three channels and even sides.
    """
    if image_shape[0] != 3 or image_shape[1] % 2 or image_shape[2] % 2:
        raise InputError(f"demosaicing needs images of three channels and even sides, got shape {tuple(image_shape)}")
    return Demosaicing(image_shape, pattern="bayer", noise_model=make_noise(noise, sigma))


@typed
def first_coordinate(image_shape: tuple[int, ...], sigma: float = 0.1) -> Inpainting:
    """Observes the first coordinate of a point with shape :math:`(d,)`."""
    mask = torch.zeros(image_shape)
    mask[0] = 1
    return Inpainting(image_shape, mask=mask, noise_model=GaussianNoise(sigma=float(sigma)))


class NullOperator(LinearPhysics):
    """The operator that measures nothing: its output is one zero for any image."""

    @typed
    def __init__(self, image_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)

    def A(self, x: Tensor, **kwargs) -> Tensor:  # noqa: N802
        return 0 * x.flatten(1)[:, :1]

    def A_adjoint(self, y: Tensor, **kwargs) -> Tensor:  # noqa: N802
        return y.new_zeros(len(y), *self.image_shape)

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float, **kwargs) -> Tensor:
        return z
