"""Faces as tensors: reads what ``data/faces/generator/generate.mjs`` wrote."""

import json
import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rlsd_lightning.evaluation.attributes import ATTRIBUTES

__all__ = ["Faces", "attribute_labels", "partial_caption", "to_images"]


def to_images(pixels: Tensor) -> Tensor:
    """Turns uint8 pixels of shape :math:`(..., H, W, 3)` into floats in [-1, 1] of shape :math:`(..., 3, H, W)`."""
    return pixels.movedim(-1, -3).float() / 127.5 - 1


def attribute_labels(attributes: dict[str, str]) -> Tensor:
    """Returns the index of each attribute's value, with shape :math:`(7,)`, in the order of :data:`ATTRIBUTES`."""
    return torch.tensor([values.index(attributes[name]) for name, values in ATTRIBUTES.items()])


def partial_caption(caption: str, keep: float, rng: random.Random) -> str:
    """Keeps the leading ``a face`` and each later phrase of a caption with probability ``keep``."""
    first, *phrases = caption.split(", ")
    return ", ".join([first, *(phrase for phrase in phrases if rng.random() < keep)])


class Faces(Dataset):
    """Generated faces held in memory.

    Args:
        folder: Holds images.npy (uint8, :math:`(n, H, W, 3)`) and attributes.json.

    Raises:
        FileNotFoundError: If the folder holds no generated faces.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        if not (folder / "images.npy").is_file():
            raise FileNotFoundError(
                f"no generated faces in '{folder}': make them with "
                f"`node data/faces/generator/generate.mjs --split train --count 60000 --out {folder}`"
            )
        self.pixels = torch.from_numpy(np.load(folder / "images.npy"))
        self.attributes = json.loads((folder / "attributes.json").read_text())
        self.labels = torch.stack([attribute_labels(entry) for entry in self.attributes])
        self.captions = [entry["caption"] for entry in self.attributes]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Returns one image in [-1, 1] with shape :math:`(3, H, W)` and its labels with shape :math:`(7,)`."""
        return to_images(self.pixels[index]), self.labels[index]
