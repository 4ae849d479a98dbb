"""Trains the photo prior's denoiser: ``python -m examples.photo_prior.denoiser``, after ``autoencoder``.

A ``UNet2DConditionModel`` on the latents of random patches. It predicts v on a schedule that ends in pure noise. It has
no attention, so that it takes any size, and ignores the text: the text encoder is there for the pipeline's format only.
The saved weights are their moving average. The result is a complete ``StableDiffusionPipeline`` folder.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from examples.photo_prior.patches import Patches, augment
from examples.photo_prior.training import best_device, parser, train

__all__ = ["make_denoiser", "noise_schedule", "save_pipeline", "velocity_loss"]

TEXT_WIDTH = 32
TEXT_LENGTH = 8


def noise_schedule() -> DDIMScheduler:
    """Stable Diffusion's schedule, rescaled to end in pure noise.

    References:
        | Common Diffusion Noise Schedules and Sample Steps are Flawed (Lin et al., 2023)
        | https://arxiv.org/abs/2305.08891
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def make_denoiser(channels: tuple[int, ...], latent_channels: int, latent_size: int) -> UNet2DConditionModel:
    """A convolutional UNet; its text is an unused input."""
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * len(channels),
        mid_block_type="UNetMidBlock2D",
        up_block_types=("UpBlock2D",) * len(channels),
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=32 if min(channels) % 32 == 0 else 16,
    )


def velocity_loss(unet: UNet2DConditionModel, latents: Tensor, t: Tensor, alpha_bar: Tensor) -> dict[str, Tensor]:
    r"""Mean square of :math:`\hat v(z_t, t) - v` with :math:`v = \alpha_t \epsilon - \sigma_t z`.

    Args:
        unet: The network.
        latents: Clean latents :math:`z`, with shape :math:`(n, C, h, w)`.
        t: Timesteps, with shape :math:`(n,)`.
        alpha_bar: Squares of the signal levels :math:`\alpha_t`, with shape :math:`(n, 1, 1, 1)`.

    References:
        | Progressive Distillation for Fast Sampling of Diffusion Models (Salimans & Ho, 2022)
        | https://arxiv.org/abs/2202.00512
    """
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    noise = torch.randn_like(latents)
    text = latents.new_zeros(len(latents), 1, TEXT_WIDTH)
    predicted = unet(alpha * latents + sigma * noise, t, text).sample.float()
    return {"loss": (predicted - (alpha * noise - sigma * latents)).square().mean()}


def batches(
    unet: UNet2DConditionModel, vae: AutoencoderKL, patches: Patches, args: argparse.Namespace
) -> Callable[[], dict[str, Tensor]]:
    """A function that draws and encodes a batch, with timesteps spread evenly, and returns its loss."""
    device = next(unet.parameters()).device
    alphas_cumprod = noise_schedule().alphas_cumprod.to(device)
    spread = torch.arange(args.batch_size, device=device) / args.batch_size

    def encoded_loss(images: Tensor, t: Tensor, alpha_bar: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.mode().float()
        return velocity_loss(unet, latents, t, alpha_bar)

    compute = torch.compile(encoded_loss) if args.compile else encoded_loss

    def loss() -> dict[str, Tensor]:
        images = augment(patches.sample(args.batch_size, args.patch_size))
        t = ((spread + torch.rand((), device=device)) % 1 * len(alphas_cumprod)).long()
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bfloat16):
            return compute(images, t, alphas_cumprod[t].view(-1, 1, 1, 1))

    return loss


def make_text_parts(caption: str = "a photo") -> tuple[CLIPTokenizer, CLIPTextModel]:
    """A tokenizer that knows one caption, and an untrained text encoder."""
    tokenizer = CLIPTokenizer(model_max_length=TEXT_LENGTH)
    tokenizer = tokenizer.train_new_from_iterator([caption] * 2, vocab_size=300, show_progress=False)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=TEXT_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer, CLIPTextModel(config)


def save_pipeline(folder: Path, vae: AutoencoderKL, unet: UNet2DConditionModel) -> None:
    """Writes a folder in half precision that ``StableDiffusionPipeline.from_pretrained`` loads by itself."""
    tokenizer, text_encoder = make_text_parts()
    StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=noise_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__.splitlines()[0], steps=20_000, batch_size=128, lr=6e-4)
    options.add_argument("--channels", type=int, nargs="+", default=[128, 192, 256], help="widths, finest first")
    args = options.parse_args(arguments)
    torch.manual_seed(args.seed)
    device = best_device()
    vae = AutoencoderKL.from_pretrained(args.out / "vae", torch_dtype=torch.float32)
    vae = vae.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    patches = Patches.from_folder(args.photographs, device, args.patch_size)
    stride = 2 ** (len(vae.config.block_out_channels) - 1)
    unet = make_denoiser(tuple(args.channels), vae.config.latent_channels, args.patch_size // stride)
    unet = unet.to(device, memory_format=torch.channels_last)
    unet = train(unet, batches(unet, vae, patches, args), args, args.work / "denoiser.pt")
    save_pipeline(args.out, vae, unet)
    print(f"pipeline saved in {args.out}")


if __name__ == "__main__":
    main()
