"""Trains the feature network: ``python -m examples.face_prior.features``.

A small ``transformers.ViTModel`` with one linear head per attribute on its class token. The class token is the
feature of the repulsion kernel where DINO's weights are not at hand; the heads count the modes of a posterior.
"""

import lightning as L
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import ViTConfig, ViTModel

from examples.face_prior.classifier import HEADS_FILE, AttributeClassifier
from examples.face_prior.faces import Faces
from examples.face_prior.training import cosine_adamw, fit, loss_and_accuracy, parser


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
        loss, accuracy = loss_and_accuracy(logits, labels)
        self.log_dict({"loss": loss, "accuracy": accuracy}, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict:
        return cosine_adamw(self, self.hparams.lr, self.hparams.max_steps)


def main(arguments: list[str] | None = None) -> None:
    """Trains the network and saves it."""
    args = parser(__doc__.splitlines()[0], steps=1500, batch_size=64, out="data/features/faces").parse_args(arguments)
    L.seed_everything(args.seed)
    faces = Faces(args.faces)
    module = _Training(faces.pixels.shape[1], args.steps)
    fit(module, DataLoader(faces, args.batch_size, shuffle=True), args.work / "features", args.steps)
    module.classifier.cpu().vit.save_pretrained(args.out)
    save_file(module.classifier.heads.state_dict(), args.out / HEADS_FILE)
    print(f"feature network saved in {args.out}")


if __name__ == "__main__":
    main()
