"""Trains the embedded prior's autoencoder: ``python -m rlsd_lightning.miniature.autoencoder``.

An ``AutoencoderKL`` with four latent channels that halves the resolution twice. The loss is the mean absolute error
of pixels and of their horizontal and vertical differences (which keeps the drawn lines sharp), plus a small
Kullback-Leibler term to the unit Gaussian.
"""

import lightning as L
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils.data import DataLoader

from rlsd_lightning.miniature.faces import Faces
from rlsd_lightning.miniature.training import cosine_adamw, fit, parser

__all__ = ["Autoencoder", "scaling_factor"]


def _difference_loss(a: Tensor, b: Tensor) -> Tensor:
    error = a - b
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


class Autoencoder(L.LightningModule):
    """A KL autoencoder of images in [-1, 1].

    Args:
        channels: Widths of the three resolutions.
        image_size: Height and width of an image.
        lr: Highest step size.
        max_steps: Length of the cosine schedule.
        kl_weight: Weight of the mean Kullback-Leibler divergence per latent element.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = (16, 32, 64),
        image_size: int = 64,
        lr: float = 1e-3,
        max_steps: int = 5000,
        kl_weight: float = 3e-4,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            block_out_channels=channels,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
            mid_block_add_attention=False,
            sample_size=image_size,
        )

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, _ = batch
        posterior = self.vae.encode(images).latent_dist
        decoded = self.vae.decode(posterior.sample()).sample
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        loss = (decoded - images).abs().mean() + _difference_loss(decoded, images) + self.hparams.kl_weight * kl
        mse = torch.mean((decoded.detach() - images) ** 2)
        self.log_dict({"loss": loss, "kl": kl, "psnr": 10 * torch.log10(4 / mse)}, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict:
        return cosine_adamw(self, self.hparams.lr, self.hparams.max_steps)


@torch.no_grad()
def scaling_factor(vae: AutoencoderKL, images: Tensor) -> float:
    """One over the standard deviation of the latents of images in [-1, 1] with shape :math:`(n, 3, H, W)`."""
    return 1 / vae.encode(images).latent_dist.mode().std().item()


def main(arguments: list[str] | None = None) -> None:
    args = parser(__doc__.splitlines()[0], steps=5000, batch_size=16, out="data/priors/faces").parse_args(arguments)
    L.seed_everything(args.seed)
    faces = Faces(args.faces)
    module = Autoencoder(image_size=faces.pixels.shape[1], max_steps=args.steps)
    fit(module, DataLoader(faces, args.batch_size, shuffle=True), args.work / "autoencoder", args.steps)
    sample = torch.stack([faces[i][0] for i in range(min(len(faces), 512))])
    module.vae.register_to_config(scaling_factor=scaling_factor(module.vae.cpu(), sample))
    module.vae.save_pretrained(args.out / "vae")
    print(f"autoencoder saved in {args.out / 'vae'}")


if __name__ == "__main__":
    main()
