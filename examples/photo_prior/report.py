"""Measures the photo prior: ``python -m examples.photo_prior.report``, after ``denoiser``.

Writes the autoencoder's reconstruction errors and the denoiser's errors on photographs that no training saw, pictures
of reconstructions and of samples.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor

from examples.photo_prior.training import best_device
from rlsd_lightning.images import find_images, load_image, to_pil

__all__ = ["denoising_errors", "reconstructions", "sample"]

LEVELS = (50, 200, 400, 600, 800, 999)
"""Timesteps at which the denoiser is measured, of 1,000."""


def load_images(folder: Path, size: int) -> dict[str, Tensor]:
    """A folder's photographs by name, cropped at their centre and resized, each with shape :math:`(1, 3, H, W)`."""
    return {path.stem: load_image(path, size, size) for path in find_images(folder)}


def psnr(image: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio of images in [-1, 1], in decibels."""
    return 10 * math.log10(4 / (image.clamp(-1, 1) - target).square().mean().item())


@torch.no_grad()
def reconstructions(vae: AutoencoderKL, images: dict[str, Tensor]) -> dict[str, Tensor]:
    """Decoded latents of each image."""
    device = next(vae.parameters()).device
    latents = {name: vae.encode(image.to(device)).latent_dist.mode() for name, image in images.items()}
    return {name: vae.decode(latent).sample.cpu() for name, latent in latents.items()}


@torch.no_grad()
def denoising_errors(pipeline: StableDiffusionPipeline, images: dict[str, Tensor]) -> dict[int, float]:
    """Mean square error of the predicted v at each of the levels, over images; 1 without any knowledge."""
    unet, alphas_cumprod = pipeline.unet, pipeline.scheduler.alphas_cumprod
    generator = torch.Generator().manual_seed(0)
    errors = {}
    for t in LEVELS:
        alpha, sigma = alphas_cumprod[t].sqrt().item(), (1 - alphas_cumprod[t]).sqrt().item()
        values = []
        for image in images.values():
            z = pipeline.vae.encode(image.to(unet.device)).latent_dist.mode()
            noise = torch.randn(z.shape, generator=generator).to(z)
            v = unet(alpha * z + sigma * noise, t, _no_text(pipeline, 1)).sample
            values.append((v - (alpha * noise - sigma * z)).square().mean().item())
        errors[t] = sum(values) / len(values)
    return errors


@torch.no_grad()
def sample(pipeline: StableDiffusionPipeline, count: int, size: int, steps: int, seed: int = 0) -> Tensor:
    """Images in [-1, 1] from pure noise, with shape :math:`(count, 3, size, size)`."""
    stride = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    shape = (count, pipeline.unet.config.in_channels, size // stride, size // stride)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(pipeline.unet.device)
    pipeline.scheduler.set_timesteps(steps)
    for t in pipeline.scheduler.timesteps:
        v = pipeline.unet(z, t, _no_text(pipeline, count)).sample
        z = pipeline.scheduler.step(v, t, z).prev_sample
    return pipeline.vae.decode(z / pipeline.vae.config.scaling_factor).sample.cpu()


def _no_text(pipeline: StableDiffusionPipeline, count: int) -> Tensor:
    return torch.zeros(count, 1, pipeline.unet.config.cross_attention_dim, device=pipeline.unet.device)


def grid(images: Tensor, columns: int) -> Tensor:
    """Images side by side with a white line between them, with shape :math:`(3, H, W)`."""
    padded = torch.nn.functional.pad(images, (0, 2, 0, 2), value=1.0)
    rows = [torch.cat(list(row), dim=-1) for row in padded.split(columns)]
    return torch.cat(rows, dim=-2)


def report_autoencoder(vae: AutoencoderKL, images: dict[str, Tensor], out: Path, name: str) -> dict[str, float]:
    """Reconstruction errors in decibels, and a picture with the photographs above their reconstructions."""
    decoded = reconstructions(vae, images)
    stacked = torch.cat([torch.cat(list(part.values())) for part in (images, decoded)])
    to_pil(grid(stacked, len(images))).save(out / f"reconstructions_{name}.png")
    figures = {key: psnr(decoded[key], image) for key, image in images.items()}
    return {**figures, "mean": sum(figures.values()) / len(figures)}


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--prior", type=Path, default=Path("data/priors/photos"), help="folder of the pipeline")
    options.add_argument("--out", type=Path, default=Path("build/photo_report"), help="folder that gets the report")
    options.add_argument("--photos", type=Path, default=Path("data/photos"), help="photographs of the figures")
    options.add_argument("--validation", type=Path, default=Path("build/photographs/validation"), help="further ones")
    options.add_argument("--steps", type=int, default=50, help="steps of a sample")
    args = options.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    device = best_device()
    sets = {"photos": load_images(args.photos, 256), "validation": load_images(args.validation, 256)}
    vae = AutoencoderKL.from_pretrained(args.prior / "vae", torch_dtype=torch.float32).to(device)
    figures = {f"psnr_{name}": report_autoencoder(vae, images, args.out, name) for name, images in sets.items()}
    (args.out / "report.json").write_text(json.dumps(figures, indent=2))
    if (args.prior / "model_index.json").is_file():
        pipeline = StableDiffusionPipeline.from_pretrained(args.prior, torch_dtype=torch.float32, safety_checker=None)
        pipeline.to(device)
        figures |= {f"v_error_{name}": denoising_errors(pipeline, images) for name, images in sets.items()}
        to_pil(grid(sample(pipeline, 64, 64, args.steps), 8)).save(args.out / "samples_64.png")
        to_pil(grid(sample(pipeline, 4, 256, args.steps), 2)).save(args.out / "samples_256.png")
        (args.out / "report.json").write_text(json.dumps(figures, indent=2))
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
