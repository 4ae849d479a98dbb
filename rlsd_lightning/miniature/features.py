"""Trains the feature network: ``python -m rlsd_lightning.miniature.features``.

A small ``transformers.ViTModel`` with one linear head per attribute on its class token. The class token is the
feature of the repulsion kernel where DINO's weights are not at hand; the heads count the modes of a posterior.
"""

from pathlib import Path

import lightning as L
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import ViTConfig, ViTModel

from rlsd_lightning.miniature.faces import ATTRIBUTES, Faces
from rlsd_lightning.miniature.training import cosine_adamw, fit, parser

__all__ = ["AttributeClassifier", "load_classifier"]

HEADS_FILE = "heads.safetensors"


class AttributeClassifier(nn.Module):
    """Names the attributes of a face.

    Args:
        vit: The network whose class token is classified.
    """

    def __init__(self, vit: ViTModel) -> None:
        super().__init__()
        self.vit = vit
        self.heads = nn.ModuleDict(
            {name: nn.Linear(vit.config.hidden_size, len(values)) for name, values in ATTRIBUTES.items()}
        )

    def features(self, images: Tensor) -> Tensor:
        """Class tokens of images in [-1, 1] with shape :math:`(n, 3, H, W)`, with shape :math:`(n, D)`."""
        return self.vit(pixel_values=images).last_hidden_state[:, 0]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits of every attribute, each with shape :math:`(n, values)`."""
        features = self.features(images)
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Index of the most likely value of every attribute, with shape :math:`(n, 7)`."""
        return torch.stack([logits.argmax(-1) for logits in self(images).values()], dim=-1)

    def save(self, folder: Path) -> None:
        """Writes a transformers folder that ``ViTModel.from_pretrained`` loads, and the heads beside it."""
        self.vit.save_pretrained(folder)
        save_file(self.heads.state_dict(), folder / HEADS_FILE)


def load_classifier(folder: str | Path) -> AttributeClassifier:
    """Loads what :meth:`AttributeClassifier.save` wrote, frozen and in evaluation mode."""
    classifier = AttributeClassifier(ViTModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True))
    classifier.heads.load_state_dict(load_file(Path(folder) / HEADS_FILE))
    return classifier.eval().requires_grad_(False)


class _Training(L.LightningModule):
    def __init__(self, image_size: int, max_steps: int, lr: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        config = ViTConfig(
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=256,
            image_size=image_size,
            patch_size=8,
        )
        self.classifier = AttributeClassifier(ViTModel(config, add_pooling_layer=False))

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        # noise of a random strength: restored faces are never as clean as drawn ones
        strength = 0.2 * torch.rand(len(images), 1, 1, 1, device=self.device)
        logits = self.classifier(images + strength * torch.randn_like(images))
        loss = sum(cross_entropy(value, labels[:, i]) for i, value in enumerate(logits.values()))
        right = torch.stack([value.argmax(-1) for value in logits.values()], dim=-1) == labels
        self.log_dict({"loss": loss, "accuracy": right.float().mean()}, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict:
        return cosine_adamw(self, self.hparams.lr, self.hparams.max_steps)


def main(arguments: list[str] | None = None) -> None:
    args = parser(__doc__.splitlines()[0], steps=1500, batch_size=64, out="data/features/faces").parse_args(arguments)
    L.seed_everything(args.seed)
    faces = Faces(args.faces)
    module = _Training(faces.pixels.shape[1], args.steps)
    fit(module, DataLoader(faces, args.batch_size, shuffle=True), args.work / "features", args.steps)
    module.classifier.cpu().save(args.out)
    print(f"feature network saved in {args.out}")


if __name__ == "__main__":
    main()
