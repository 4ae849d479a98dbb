"""Random patches of photographs at many scales, cropped on the device that trains."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rlsd_lightning.images import find_images
from rlsd_lightning.reading.pictures import open_picture

__all__ = ["Patches", "augment", "pyramid"]

SCALE_STEP = 2**-0.5
"""Ratio between the sizes of neighbouring scales."""
SIZE_EXPONENT = 0.25
"""A picture of n pixels is drawn with a weight of n to this power: small scales have few pixels but fine detail."""


def pyramid(image: Tensor, min_side: int) -> Iterator[Tensor]:
    """An image and its reductions, while the shorter side has at least ``min_side`` pixels.

    Args:
        image: In [0, 255], of type uint8, with shape :math:`(H, W, C)`.
        min_side: Shorter side of the smallest scale, in pixels.
    """
    pixels = image.movedim(-1, 0)[None].float()
    height, width = image.shape[:2]
    scale = 1.0
    while round(scale * min(height, width)) >= min_side:
        size = (round(scale * height), round(scale * width))
        reduced = interpolate(pixels, size, mode="bicubic", antialias=True) if scale < 1 else pixels
        yield reduced[0].movedim(0, -1).round().clamp(0, 255).to(torch.uint8)
        scale *= SCALE_STEP


class Patches:
    """Pictures of different sizes in one buffer.

    Args:
        pictures: Each of type uint8, with shape :math:`(H, W, C)`.
    """

    def __init__(self, pictures: Iterable[Tensor]) -> None:
        pictures = list(pictures)
        self.values = torch.cat([picture.flatten(0, 1) for picture in pictures])
        device = self.values.device
        self.heights, self.widths = torch.tensor([picture.shape[:2] for picture in pictures], device=device).T
        self.pixels = self.heights * self.widths
        self.starts = self.pixels.cumsum(0) - self.pixels

    @classmethod
    def from_folder(cls, folder: Path, device: torch.device, min_side: int, workers: int = 8) -> "Patches":
        """All scales of a folder's photographs.

        Args:
            folder: Folder of the photographs.
            device: Device that holds the pixels.
            min_side: Shorter side of the smallest scale, in pixels; smaller photographs are left out.
            workers: Threads that decode files.
        """
        with ThreadPoolExecutor(workers) as pool:
            images = pool.map(lambda path: torch.from_numpy(np.array(open_picture(path))), find_images(folder))
            scales = [scale for image in images for scale in pyramid(image.to(device), min_side)]
        return cls(scales)

    def sample(self, count: int, size: int) -> Tensor:
        """Random square patches, half of them mirrored.

        Args:
            count: Number of patches :math:`n`.
            size: Height and width in pixels.

        Returns:
            In [0, 1], with shape :math:`(n, C, size, size)`.
        """
        weights = self.pixels.float() ** SIZE_EXPONENT * (torch.minimum(self.heights, self.widths) >= size)
        picture = torch.multinomial(weights, count, replacement=True)
        uniform = torch.rand(3, count, device=self.values.device)
        top = (uniform[0] * (self.heights[picture] - size + 1)).long()
        left = (uniform[1] * (self.widths[picture] - size + 1)).long()
        offsets = torch.arange(size, device=self.values.device)
        columns = torch.where(uniform[2, :, None] < 0.5, offsets, size - 1 - offsets) + left[:, None]
        rows = (top[:, None] + offsets) * self.widths[picture, None] + self.starts[picture, None]
        return self.values[rows[:, :, None] + columns[:, None]].movedim(-1, 1).float() / 255


def augment(patches: Tensor, strength: float = 0.25, tint: float = 0.05) -> Tensor:
    """Random brightness and white balance, as powers of the values.

    Args:
        patches: In [0, 1], with shape :math:`(n, 3, H, W)`.
        strength: Largest logarithm of the power that a patch's channels share.
        tint: Largest logarithm of a further power of each channel.

    Returns:
        In [-1, 1], with the same shape.
    """
    logarithms = strength * (2 * torch.rand_like(patches[:, :1, :1, :1]) - 1)
    logarithms = logarithms + tint * (2 * torch.rand_like(patches[:, :, :1, :1]) - 1)
    return 2 * patches.clamp(min=1e-4) ** logarithms.exp() - 1
