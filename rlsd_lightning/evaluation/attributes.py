"""Classifier of the cartoon faces' attributes."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import ViTModel

__all__ = ["ATTRIBUTES", "HEADS_FILE", "SHARES", "AttributeClassifier", "load_classifier"]

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "skin": ("light", "tan", "dark"),
    "hair": ("bald", "short", "curly", "long"),
    "hair_color": ("black", "brown", "blond", "red", "grey"),
    "facial_hair": ("none", "moustache", "goatee", "beard"),
    "glasses": ("no", "yes"),
    "headwear": ("none", "cap", "santa", "headband"),
    "smile": ("no", "yes"),
}
"""Values of each attribute, in the order of the network's heads."""

SHARES: dict[str, tuple[float, ...]] = {
    "facial_hair": (0.45, 0.15, 0.15, 0.25),
    "hair": (0.12, 0.42, 0.16, 0.3),  # a cap or a santa hat, a fifth of all, turns curly hair into short
    "glasses": (0.7, 0.3),
    "smile": (0.5, 0.5),
}
"""Shares of attribute values among generated faces, from WORLD in data/faces/generator/generate.mjs."""

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
