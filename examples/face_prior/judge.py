"""Trains the judge: ``python -m examples.face_prior.judge``.

A small convolutional network that names a face's attributes. No kernel and no loss sees it, so diversity, coverage and
shares that are measured in it flatter no method. The feature network is a vision transformer, and the autoencoder's loss
uses another one: this one has neither their architecture nor their seed, and sees faces that are shifted and blurred.
"""

import lightning as L
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad
from torch.utils.data import DataLoader

from examples.face_prior.faces import Faces, to_images
from examples.face_prior.training import cosine_adamw, fit, loss_and_accuracy, parser
from rlsd_lightning.evaluation.judge import JUDGE_FILE, Judge

CENTRED = 1000
"""Training faces whose mean features are the centre."""


def disturbed(images: Tensor) -> Tensor:
    """Images that are shifted by up to two pixels, for a third of the batches blurred, and noisy."""
    down, right = torch.randint(5, (2,)).tolist()
    height, width = images.shape[-2:]
    images = pad(images, (2, 2, 2, 2), mode="replicate")[..., down : down + height, right : right + width]
    if torch.rand(()) < 1 / 3:
        images = interpolate(avg_pool2d(images, 2), scale_factor=2, mode="bilinear")
    strength = 0.2 * torch.rand(len(images), 1, 1, 1, device=images.device)
    return images + strength * torch.randn_like(images)


class _Training(L.LightningModule):
    def __init__(self, max_steps: int, lr: float = 2e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.judge = Judge()

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        logits = self.judge(disturbed(images))
        loss, accuracy = loss_and_accuracy(logits, labels)
        self.log_dict({"loss": loss, "accuracy": accuracy}, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict:
        return cosine_adamw(self, self.hparams.lr, self.hparams.max_steps)


def main(arguments: list[str] | None = None) -> None:
    """Trains the network and saves it in half precision."""
    args = parser(__doc__.splitlines()[0], steps=700, batch_size=64, out="data/features/judge").parse_args(arguments)
    L.seed_everything(args.seed)
    faces, module = Faces(args.faces), _Training(args.steps)
    fit(module, DataLoader(faces, args.batch_size, shuffle=True), args.work / "judge", args.steps)
    judge = module.judge.cpu().eval()
    with torch.no_grad():
        judge.centre += judge.features(to_images(faces.pixels[:CENTRED])).mean(dim=0)
    args.out.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half() for name, value in judge.state_dict().items()}, args.out / JUDGE_FILE)
    print(f"judge saved in {args.out}")


if __name__ == "__main__":
    main()
