"""The judge: a network of cartoon faces that no kernel and no loss has seen."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from rlsd_lightning.errors import InputError
from rlsd_lightning.evaluation.attributes import ATTRIBUTES
from rlsd_lightning.features import Features

__all__ = ["JUDGE_FILE", "Judge", "JudgeFeatures", "load_judge"]

JUDGE_FILE = "judge.safetensors"
IMAGE_SIZE = 64
WIDTHS = (16, 32, 64, 96)
"""Channels of the blocks."""


class Judge(nn.Module):
    """Convolutional classifier of face attributes.

    Blocks of two convolutions, each of which halves the image, and a linear head per attribute on the mean over the image.
    The buffer ``centre`` is the mean of these over training faces.
    """

    def __init__(self) -> None:
        super().__init__()
        pairs = zip((3, *WIDTHS[:-1]), WIDTHS, strict=True)
        self.blocks = nn.Sequential(*(layer for pair in pairs for layer in _block(*pair)))
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTHS[-1], len(values)) for name, values in ATTRIBUTES.items()})
        self.register_buffer("centre", torch.zeros(WIDTHS[-1]))

    def features(self, images: Tensor) -> Tensor:
        """Centred features, with shape :math:`(n, 96)`, of images in [-1, 1] with shape :math:`(n, 3, 64, 64)`."""
        return self.blocks(images).mean(dim=(2, 3)) - self.centre

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits by attribute, each with shape :math:`(n, values)`."""
        features = self.features(images) + self.centre
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Index of the most likely value of each attribute, with shape :math:`(n, 7)`."""
        return torch.stack([logits.argmax(-1) for logits in self(images).values()], dim=-1)


def _block(before: int, after: int) -> list[nn.Module]:
    """Two convolutions, the first of stride 2."""
    layers = []
    for channels, stride in ((before, 2), (after, 1)):
        layers += [nn.Conv2d(channels, after, 3, stride, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
    return layers


def load_judge(folder: str | Path) -> Judge:
    """Load the frozen judge from a folder with :data:`JUDGE_FILE`.

    Raises:
        InputError: If the file is missing.
    """
    file = Path(folder) / JUDGE_FILE
    if not file.is_file():
        raise InputError(
            f"pretrained must be a folder with {JUDGE_FILE}, got '{folder}'; choose other features or its path"
        )
    judge = Judge()
    judge.load_state_dict(load_file(file))
    return judge.eval().requires_grad_(False)


class JudgeFeatures(Features):
    """Features of the judge, for figures of a set; a kernel with them would take its independence.

    Args:
        pretrained: Folder with the judge's weights.
        gamma_scale: See :class:`~rlsd_lightning.features.Features`.

    Raises:
        InputError: If there are no weights.
    """

    def __init__(self, pretrained: str | Path, gamma_scale: float = 1.0) -> None:
        super().__init__(gamma_scale)
        self.judge = load_judge(pretrained)

    def forward(self, z: Tensor, images: Tensor) -> Tensor:
        if tuple(images.shape[-2:]) != (IMAGE_SIZE, IMAGE_SIZE):
            images = interpolate(images, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", antialias=True)
        return self.judge.features(images)
