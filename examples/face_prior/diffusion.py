"""Trains the embedded prior's denoiser: ``python -m examples.face_prior.diffusion``, after the autoencoder.

A text-conditional ``UNet2DConditionModel`` on the autoencoder's latents, with a small ``CLIPTextModel`` trained along.
Phrases of a caption are dropped at random and whole captions sometimes, so that short prompts, the empty prompt and
classifier-free guidance work. The saved weights are their exponential moving average. The result is a complete
``StableDiffusionPipeline`` folder.
"""

import json
import random
from pathlib import Path

import lightning as L
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from examples.face_prior.faces import Faces, partial_caption
from examples.face_prior.training import cosine_adamw, fit, parser

__all__ = [
    "CaptionedLatents",
    "Diffusion",
    "cached_latents",
    "encode_faces",
    "make_tokenizer",
    "noise_schedule",
    "save_pipeline",
]

TEXT_LENGTH = 32


def noise_schedule() -> DDIMScheduler:
    r"""Stable Diffusion's noise schedule, ended closer to pure noise.

    Stable Diffusion ends at :math:`\sqrt{\bar\alpha_T} = 0.068`. Of a latent of 16x16 that is enough for the network to
    read its broad colours, which samples that start from pure noise then get wrong. Here the end is 0.032, and
    samplers start at the very end.

    References:
        | Common Diffusion Noise Schedules and Sample Steps are Flawed (Lin et al., 2023)
        | https://arxiv.org/abs/2305.08891
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.016,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def make_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """A CLIP tokenizer whose vocabulary is learned from captions, one token per word that occurs in them."""
    tokenizer = CLIPTokenizer(model_max_length=TEXT_LENGTH)
    words = sorted({word for caption in captions for word in caption.replace(",", " ,").split()})
    return tokenizer.train_new_from_iterator([" ".join(words)] * 2, vocab_size=1000, show_progress=False)


@torch.no_grad()
def encode_faces(vae: AutoencoderKL, faces: Faces, batch_size: int = 64) -> Tensor:
    """Scaled latents of all faces, with shape :math:`(n, 4, h, w)`."""
    batches = DataLoader(faces, batch_size)
    latents = torch.cat([vae.encode(images.to(vae.device)).latent_dist.mode().cpu() for images, _ in batches])
    return latents * vae.config.scaling_factor


def cached_latents(work: Path, vae: AutoencoderKL, faces: Faces) -> Tensor:
    """Scaled latents of all faces, kept in ``work`` under a key of the autoencoder's weights and the number of faces."""
    weights = sum(parameter.double().abs().sum().item() for parameter in vae.parameters())
    key = json.dumps({"autoencoder": weights, "faces": len(faces)})
    cache = work / "latents.pt"
    cached = torch.load(cache) if cache.is_file() else {}
    if cached.get("key") != key:
        cached = {"key": key, "latents": encode_faces(vae, faces)}
        torch.save(cached, cache)
    return cached["latents"]


class CaptionedLatents(Dataset):
    """Latents and captions, of which phrases are dropped at random and a share is emptied."""

    def __init__(self, latents: Tensor, captions: list[str], tokenizer: CLIPTokenizer, empty_share: float) -> None:
        self.latents, self.captions, self.tokenizer, self.empty_share = latents, captions, tokenizer, empty_share

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> int:
        return index

    def collate(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        captions = []
        for index in indices:
            keep = 1.0 if random.random() < 0.4 else random.random()
            empty = random.random() < self.empty_share
            captions.append("" if empty else partial_caption(self.captions[index], keep, random))
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return self.latents[indices], tokens


class Diffusion(L.LightningModule):
    r"""Noise prediction from noisy latents and text.

    The loss is :math:`\min(1, 5 / \mathrm{snr}_t) \, \| \hat\epsilon(z_t, t, c) - \epsilon \|^2`.

    Args:
        vocabulary: Number of tokens.
        eos_token_id: The end-of-text token.
        latent_size: Height and width of a latent.
        channels: Widths of the UNet's resolutions.
        lr: Highest step size.
        max_steps: Length of the cosine schedule.

    References:
        | Efficient Diffusion Training via Min-SNR Weighting Strategy (Hang et al., 2023)
        | https://arxiv.org/abs/2303.09556
    """

    def __init__(
        self,
        vocabulary: int,
        eos_token_id: int,
        latent_size: int = 16,
        channels: tuple[int, ...] = (48, 96, 144),
        lr: float = 8e-4,
        max_steps: int = 5000,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=TEXT_LENGTH,
                bos_token_id=eos_token_id - 1,
                eos_token_id=eos_token_id,
                pad_token_id=eos_token_id,
            )
        )
        attention = ("CrossAttn",) * (len(channels) - 1)
        self.unet = UNet2DConditionModel(
            sample_size=latent_size,
            block_out_channels=channels,
            layers_per_block=1,
            down_block_types=("DownBlock2D", *(f"{kind}DownBlock2D" for kind in attention)),
            up_block_types=(*(f"{kind}UpBlock2D" for kind in attention), "UpBlock2D"),
            cross_attention_dim=64,
            attention_head_dim=4,
            norm_num_groups=16,
        )
        self.register_buffer("alphas_cumprod", noise_schedule().alphas_cumprod, persistent=False)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        latents, tokens = batch
        t = torch.randint(0, len(self.alphas_cumprod), (len(latents),), device=self.device)
        alpha_bar = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        noise = torch.randn_like(latents)
        noisy = alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise
        text = self.text_encoder(tokens).last_hidden_state
        error = (self.unet(noisy, t, text).sample - noise) ** 2
        weight = (5 * (1 - alpha_bar) / alpha_bar).clamp(max=1)
        loss = (weight * error).mean()
        self.log_dict({"loss": loss, "mse": error.detach().mean()}, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict:
        return cosine_adamw(self, self.hparams.lr, self.hparams.max_steps)


def save_pipeline(folder: Path, vae: AutoencoderKL, module: Diffusion, tokenizer: CLIPTokenizer) -> None:
    """Writes a folder that ``StableDiffusionPipeline.from_pretrained`` loads by itself."""
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=module.text_encoder,
        tokenizer=tokenizer,
        unet=module.unet,
        scheduler=noise_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__.splitlines()[0], steps=25500, batch_size=32, out="data/priors/faces")
    options.add_argument("--channels", type=int, nargs="+", default=[48, 96, 144], help="widths of the UNet")
    options.add_argument("--lr", type=float, default=8e-4, help="highest step size")
    options.add_argument("--start", type=Path, help="pipeline folder whose weights the training starts from")
    options.add_argument("--empty-share", type=float, default=0.1, help="share of the faces that lose their caption")
    options.add_argument(
        "--ema-decay", type=float, default=0.999, help="of the average of weights; less for fewer steps"
    )
    options.add_argument("--workers", type=int, default=0, help="processes that make batches; a GPU waits for one")
    args = options.parse_args(arguments)
    L.seed_everything(args.seed)
    vae = AutoencoderKL.from_pretrained(args.out / "vae").eval().requires_grad_(False)
    faces = Faces(args.faces)
    work = args.work / "diffusion"
    work.mkdir(parents=True, exist_ok=True)
    latents = cached_latents(work, vae, faces)
    # the order in which its entries are found differs from run to run, so a training that goes on keeps its own
    kept = args.start / "tokenizer" if args.start else work / "tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(kept) if kept.is_dir() else make_tokenizer(faces.captions)
    tokenizer.save_pretrained(work / "tokenizer")
    data = CaptionedLatents(latents, faces.captions, tokenizer, args.empty_share)
    latent_size, channels = latents.shape[-1], tuple(args.channels)
    module = Diffusion(len(tokenizer), tokenizer.eos_token_id, latent_size, channels, args.lr, args.steps)
    if args.start:
        module.unet.load_state_dict(UNet2DConditionModel.from_pretrained(args.start / "unet").state_dict())
        module.text_encoder.load_state_dict(CLIPTextModel.from_pretrained(args.start / "text_encoder").state_dict())
    loader = DataLoader(
        data,
        args.batch_size,
        shuffle=True,
        collate_fn=data.collate,
        drop_last=True,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
    fit(module, loader, work, args.steps, callbacks=(EMAWeightAveraging(decay=args.ema_decay),))
    save_pipeline(args.out, vae, module.cpu().eval(), tokenizer)
    print(f"pipeline saved in {args.out}")


if __name__ == "__main__":
    main()
