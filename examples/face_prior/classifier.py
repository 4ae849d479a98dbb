"""Classifier of the cartoon faces' attributes, whose vision transformer is the embedded feature network."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import ViTModel

from rlsd_lightning.evaluation.attributes import ATTRIBUTES

__all__ = ["HEADS_FILE", "AttributeClassifier", "load_classifier"]

HEADS_FILE = "heads.safetensors"


class AttributeClassifier(nn.Module):
    """Linear classifiers of face attributes on a vision transformer's class token."""

    def __init__(self, vit: ViTModel) -> None:
        super().__init__()
        self.vit = vit
        self.heads = nn.ModuleDict(
            {name: nn.Linear(vit.config.hidden_size, len(values)) for name, values in ATTRIBUTES.items()}
        )

    def features(self, images: Tensor) -> Tensor:
        """Class tokens, with shape :math:`(n, D)`, of images in [-1, 1] with shape :math:`(n, 3, H, W)`."""
        return self.vit(pixel_values=images).last_hidden_state[:, 0]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits by attribute, each with shape :math:`(n, values)`."""
        features = self.features(images)
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Index of the most likely value of each attribute, with shape :math:`(n, 7)`."""
        return torch.stack([logits.argmax(-1) for logits in self(images).values()], dim=-1)


def load_classifier(folder: str | Path) -> AttributeClassifier:
    """Load a frozen classifier: a folder of a ``ViTModel``, with the heads in :data:`HEADS_FILE`."""
    classifier = AttributeClassifier(ViTModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True))
    classifier.heads.load_state_dict(load_file(Path(folder) / HEADS_FILE))
    return classifier.eval().requires_grad_(False)
