"""Trains the photo prior's autoencoder: ``python -m examples.photo_prior.autoencoder``, after ``photographs``.

An ``AutoencoderKL`` that halves the resolution twice, without attention, so that it takes any size that is a multiple
of four. The loss is the mean absolute error of pixels and of their horizontal and vertical differences, and a small
Kullback-Leibler term to the unit Gaussian. The saved autoencoder's latents are white.
"""

import argparse
from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from examples.face_prior.autoencoder import whiten
from examples.photo_prior.patches import Patches, augment
from examples.photo_prior.training import best_device, parser, train

__all__ = ["make_autoencoder", "reconstruction_loss"]


def make_autoencoder(channels: tuple[int, ...], latent_channels: int) -> AutoencoderKL:
    """An autoencoder whose resolution is halved between neighbouring widths."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=16,
        mid_block_add_attention=False,
        sample_size=256,
    )


def reconstruction_loss(vae: AutoencoderKL, images: Tensor, kl_weight: float) -> dict[str, Tensor]:
    """The loss of images in [-1, 1] with shape :math:`(n, 3, H, W)`, and the figures to print."""
    posterior = vae.encode(images).latent_dist
    error = vae.decode(posterior.sample()).sample.float() - images
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    differences = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    loss = error.abs().mean() + differences + kl_weight * kl
    psnr = 10 * torch.log10(4 / error.detach().square().mean())
    return {"loss": loss, "kl": kl.detach(), "psnr": psnr}


def batches(vae: AutoencoderKL, patches: Patches, args: argparse.Namespace) -> Callable[[], dict[str, Tensor]]:
    """A function that draws a batch and returns its loss."""
    device = next(vae.parameters()).device
    compute = torch.compile(reconstruction_loss) if args.compile else reconstruction_loss

    def loss() -> dict[str, Tensor]:
        images = augment(patches.sample(args.batch_size, args.patch_size))
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bfloat16):
            return compute(vae, images, args.kl_weight)

    return loss


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__.splitlines()[0], steps=20_000, batch_size=32, lr=1e-3)
    options.add_argument("--channels", type=int, nargs="+", default=[32, 64, 128], help="widths, finest first")
    options.add_argument("--latent-channels", type=int, default=12, help="channels of a latent")
    options.add_argument("--kl-weight", type=float, default=3e-4, help="weight of the Kullback-Leibler term")
    args = options.parse_args(arguments)
    torch.manual_seed(args.seed)
    device = best_device()
    patches = Patches.from_folder(args.photographs, device, args.patch_size)
    vae = make_autoencoder(tuple(args.channels), args.latent_channels).to(device, memory_format=torch.channels_last)
    vae = train(vae, batches(vae, patches, args), args, args.work / "autoencoder.pt")
    whiten(vae.float(), 2 * torch.cat([patches.sample(64, args.patch_size) for _ in range(8)]) - 1)
    vae.half().save_pretrained(args.out / "vae")
    print(f"autoencoder saved in {args.out / 'vae'}")


if __name__ == "__main__":
    main()
