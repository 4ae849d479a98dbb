"""Trains a small prior of faces in pixels: ``python -m examples.small_priors.pixels``, on the faces of ``data/faces/generator``.

A ``UNet2DModel`` that predicts the noise of faces of 32x32 pixels. The result is a ``DDPMPipeline`` folder in half
precision, of at most 3 MB. The training resumes from its last checkpoint.
"""

import lightning as L
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.utils.data import DataLoader

from examples.face_prior.faces import Faces
from examples.face_prior.training import cosine_adamw, fit, parser

__all__ = ["PixelDiffusion", "make_network"]

IMAGE_SIZE = 32


def make_network(channels: tuple[int, ...]) -> UNet2DModel:
    """A UNet whose two lower resolutions have attention."""
    attention = len(channels) - 1
    return UNet2DModel(
        sample_size=IMAGE_SIZE,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) + ("AttnDownBlock2D",) * attention,
        up_block_types=("AttnUpBlock2D",) * attention + ("UpBlock2D",),
        attention_head_dim=8,
        norm_num_groups=16,
    )


class PixelDiffusion(L.LightningModule):
    r"""Minimises :math:`\| \hat\epsilon(x_t, t) - \epsilon \|^2`.

    Args:
        channels: Widths of the UNet's resolutions, finest first.
        lr: Highest step size.
        max_steps: Length of the cosine schedule.

    References:
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020)
        | https://arxiv.org/abs/2006.11239
    """

    def __init__(self, channels: tuple[int, ...] = (32, 64, 80), lr: float = 1e-3, max_steps: int = 2600) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.unet = make_network(tuple(channels))
        self.scheduler = DDPMScheduler()

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images = avg_pool2d(batch[0], batch[0].shape[-1] // IMAGE_SIZE)
        t = torch.randint(self.scheduler.config.num_train_timesteps, (len(images),), device=self.device)
        noise = torch.randn_like(images)
        loss = (self.unet(self.scheduler.add_noise(images, noise, t), t).sample - noise).square().mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict:
        return cosine_adamw(self, self.hparams.lr, self.hparams.max_steps)


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__.splitlines()[0], steps=2600, batch_size=32, out="tests/priors/pixels")
    args = options.parse_args(arguments)
    L.seed_everything(args.seed)
    module = PixelDiffusion(max_steps=args.steps)
    batches = DataLoader(Faces(args.faces), args.batch_size, shuffle=True)
    fit(module, batches, args.work / "pixels", args.steps, callbacks=(EMAWeightAveraging(decay=0.999),))
    DDPMPipeline(module.unet.cpu().eval(), module.scheduler).to(torch.float16).save_pretrained(args.out)
    print(f"pipeline saved in {args.out}")


if __name__ == "__main__":
    main()
