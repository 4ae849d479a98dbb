r"""Distils a tiny decoder from a prior's own: ``python -m examples.tiny_decoder --prior data/priors/faces --images FOLDER``.

The tiny decoder is a :class:`~rlsd_lightning.priors.loading.ShuffleDecoder`. It learns the full decoder's images, by the mean
square error of pixels and of their differences, on latents such as a run meets: encoded pictures, these with some noise, and
clean latents :math:`\hat z` that the denoiser estimates from noisy pictures and along draws from the prior.

Faces come from ``node data/faces/generator/generate.mjs``, photographs from ``python -m examples.photo_prior.photographs``.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from examples.face_prior.faces import Faces, to_images
from examples.photo_prior.patches import Patches, augment
from examples.photo_prior.training import best_device, train
from rlsd_lightning import StableDiffusionPrior
from rlsd_lightning.functional.schedules import add_noise, ddim_timesteps, reverse_step
from rlsd_lightning.priors import Prior
from rlsd_lightning.priors.loading import ShuffleDecoder

__all__ = ["latents_of_a_run"]

AT_A_TIME = 32
"""Latents that a network of the prior sees at a time."""
DRAW_STEPS = 16
"""Steps of a draw from the prior; each leaves a clean latent."""
NOISE = 0.3
"""Largest deviation of the noise that is added to encoded pictures."""


@torch.no_grad()
def latents_of_a_run(prior: Prior, images: Tensor) -> Tensor:
    r"""Latents such as a run decodes: a quarter each of four kinds, with shape :math:`(n, *\mathrm{latent\_shape})`.

    Args:
        prior: The prior.
        images: Three quarters as many pictures in [-1, 1], with shape :math:`(3 n / 4, 3, H, W)`.
    """
    clean, noisy, estimated = torch.cat([prior.encode(part) for part in images.split(AT_A_TIME)]).chunk(3)
    deviations = NOISE * torch.rand(len(noisy), 1, 1, 1, device=noisy.device)
    noisy = noisy + deviations * torch.randn_like(noisy)
    return torch.cat([clean, noisy, *_estimates(prior, estimated), *_draws(prior, clean)])


def _estimates(prior: Prior, latents: Tensor) -> Iterator[Tensor]:
    """Clean latents that the denoiser estimates from noisy ones, each part at a noise level of its own."""
    for part in latents.split(AT_A_TIME):
        t = int(torch.randint(prior.num_train_timesteps, ()))
        yield prior.denoise(add_noise(part, torch.randn_like(part), prior.alpha(t), prior.sigma(t)), t)[0]


def _draws(prior: Prior, like: Tensor) -> Iterator[Tensor]:
    """Clean latents along ancestral draws from the prior, in all as many as ``like``."""
    timesteps = ddim_timesteps(prior.num_train_timesteps, DRAW_STEPS, prior.timestep_offset)
    for start in torch.randn_like(like[: len(like) // DRAW_STEPS]).split(AT_A_TIME):
        z_t = start
        for t, s in zip(timesteps, [*timesteps[1:], 0], strict=True):
            z_hat = prior.denoise(z_t, t)[0]
            yield z_hat
            levels = (prior.alpha(t), prior.sigma(t), prior.alpha(s), prior.sigma(s))
            from_noisy, from_clean, variance = reverse_step(*levels)
            z_t = from_noisy * z_t + from_clean * z_hat + variance.sqrt() * torch.randn_like(z_t)


def decode_all(prior: Prior, latents: Tensor) -> Tensor:
    """The full decoder's images, a part at a time."""
    with torch.no_grad():
        return torch.cat([prior.decode(part) for part in latents.split(AT_A_TIME)])


def batches(tiny: ShuffleDecoder, latents: Tensor, images: Tensor, batch_size: int) -> Callable[[], dict[str, Tensor]]:
    """A function that draws a batch and returns its loss."""

    def loss() -> dict[str, Tensor]:
        chosen = torch.randint(len(latents), (batch_size,), device=latents.device)
        error = tiny(latents[chosen]) - images[chosen]
        differences = error.diff(dim=-1).square().mean() + error.diff(dim=-2).square().mean()
        psnr = 10 * torch.log10(4 / error.detach().square().mean())
        return {"loss": error.square().mean() + differences, "psnr": psnr}

    return loss


def pictures(folder: Path, count: int, size: int, device: torch.device) -> Tensor:
    """Generated faces, or random patches of photographs, in [-1, 1] with shape :math:`(n, 3, H, W)`."""
    if (folder / "images.npy").is_file():
        pixels = Faces(folder).pixels
        return to_images(pixels[torch.randperm(len(pixels))[:count]]).to(device)
    return augment(Patches.from_folder(folder, device, size).sample(count, size))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("--prior", type=Path, default=Path("data/priors/faces"), help="folder of the prior")
    options.add_argument(
        "--images", type=Path, default=Path("build/faces/train"), help="folder of faces or photographs"
    )
    options.add_argument(
        "--out", type=Path, help="folder that gets the weights; tiny_decoder in the prior's if left out"
    )
    options.add_argument("--work", type=Path, default=Path("build/tiny_decoder"), help="folder of the checkpoints")
    options.add_argument(
        "--widths", type=int, nargs="+", default=[64, 24], help="channels by resolution, coarsest first"
    )
    options.add_argument("--blocks", type=int, nargs="+", default=[1, 1], help="residual blocks by resolution")
    options.add_argument("--image-size", type=int, default=64, help="height and width of a picture in pixels")
    options.add_argument("--latents", type=int, default=4096, help="latents in all")
    options.add_argument("--steps", type=int, default=8000, help="optimiser steps in all")
    options.add_argument("--minutes", type=float, help="minutes in all, in place of --steps")
    options.add_argument("--batch-size", type=int, default=16, help="latents a step")
    options.add_argument("--lr", type=float, default=3e-3, help="highest learning rate")
    options.add_argument("--seed", type=int, default=0, help="seed of weights, latents and batches")
    options.add_argument("--log-every", type=int, default=50, help="steps between lines of figures")
    options.add_argument("--save-every", type=float, default=60, help="seconds between checkpoints")
    return options.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    torch.manual_seed(args.seed)
    device = best_device()
    prior = StableDiffusionPrior(str(args.prior), image_size=args.image_size, tiny_decoder=None).to(device)
    args.work.mkdir(parents=True, exist_ok=True)
    cache = args.work / "latents.pt"
    if cache.is_file():
        latents, images = torch.load(cache, map_location=device)
    else:
        latents = latents_of_a_run(prior, pictures(args.images, 3 * args.latents // 4, args.image_size, device))
        images = decode_all(prior, latents)
        torch.save((latents, images), cache)
    tiny = ShuffleDecoder(prior.latent_shape[0], tuple(args.widths), tuple(args.blocks)).to(device)
    tiny = train(tiny, batches(tiny, latents, images, args.batch_size), args, args.work / "last.ckpt")
    out = args.out or args.prior / "tiny_decoder"
    tiny.half().save_pretrained(out)
    print(f"tiny decoder saved in {out}")


if __name__ == "__main__":
    main()
