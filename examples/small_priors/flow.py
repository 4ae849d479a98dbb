r"""Trains a small flow-matching prior of faces: ``python -m examples.small_priors.flow``, on the faces of ``data/faces/generator``.

An ``AutoencoderDC`` of stride 8 comes first, then a ``SanaTransformer2DModel`` on its latents, which predicts the velocity
:math:`u = \epsilon - z`. The text encoder is untrained: the prior knows the empty prompt only. The result is a complete
``SanaPipeline`` folder in half precision, of at most 3 MB. Both trainings resume from their last checkpoints.
"""

from pathlib import Path

import lightning as L
import torch
from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel
from lightning.pytorch.callbacks import EMAWeightAveraging
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from transformers import Gemma2Config, Gemma2Model, PreTrainedTokenizerFast

from examples.face_prior.faces import Faces, to_images
from examples.face_prior.training import cosine_adamw, fit, parser

__all__ = [
    "FlowAutoencoder",
    "FlowMatching",
    "make_autoencoder",
    "make_text_parts",
    "make_transformer",
    "save_pipeline",
]

TEXT_WIDTH = 16
SHIFT = 1.0
"""The scheduler's shift: latents of 8x8 need no more steps at high noise."""


def make_autoencoder(widths: tuple[int, ...], latent_channels: int) -> AutoencoderDC:
    """A deterministic autoencoder whose resolution is halved between neighbouring widths."""
    parts = {
        f"{part}_{name}": value
        for part in ("encoder", "decoder")
        for name, value in {
            "block_types": "ResBlock",
            "block_out_channels": widths,
            "layers_per_block": (1,) * len(widths),
            "qkv_multiscales": ((),) * len(widths),
        }.items()
    }
    return AutoencoderDC(latent_channels=latent_channels, attention_head_dim=8, **parts)


def make_transformer(latent_channels: int, latent_size: int, heads: int, layers: int) -> SanaTransformer2DModel:
    """A transformer with one token for each latent position."""
    return SanaTransformer2DModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        num_layers=layers,
        attention_head_dim=16,
        num_attention_heads=heads,
        cross_attention_head_dim=16,
        num_cross_attention_heads=heads,
        cross_attention_dim=16 * heads,
        caption_channels=TEXT_WIDTH,
    )


class FlowAutoencoder(L.LightningModule):
    """Minimises the mean absolute error of pixels and of their differences, with noise in the latents.

    Args:
        widths: Widths of the resolutions, finest first.
        latent_channels: Channels of a latent.
        noise: Standard deviation of the noise; latents spread until it no longer hides what the decoder needs.
        lr: Highest step size.
        max_steps: Length of the cosine schedule.
    """

    def __init__(
        self,
        widths: tuple[int, ...] = (16, 32, 32, 64),
        latent_channels: int = 16,
        noise: float = 0.05,
        lr: float = 2e-3,
        max_steps: int = 4000,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.vae = make_autoencoder(tuple(widths), latent_channels)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, _ = batch
        latents = self.vae.encode(images).latent
        decoded = self.vae.decode(latents + self.hparams.noise * torch.randn_like(latents)).sample
        error = decoded - images
        size = 1e-3 * latents.square().mean()
        loss = error.abs().mean() + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean() + size
        self.log_dict({"loss": loss, "psnr": 10 * torch.log10(4 / error.detach().square().mean())}, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict:
        return cosine_adamw(self, self.hparams.lr, self.hparams.max_steps)


class FlowMatching(L.LightningModule):
    r"""Minimises :math:`\| \hat u(z_\tau, \tau) - (\epsilon - z) \|^2` at :math:`z_\tau = (1 - \tau) z + \tau \epsilon`.

    Args:
        text: The empty prompt's tokens, with shape :math:`(1, L, D)`.
        mask: Which of them count, with shape :math:`(1, L)`.
        latent_channels: Channels of a latent.
        latent_size: Height and width of a latent.
        heads: Attention heads, of 16 channels each.
        layers: Transformer blocks.
        lr: Highest step size.
        max_steps: Length of the cosine schedule.

    References:
        | Flow Matching for Generative Modeling (Lipman et al., 2023)
        | https://arxiv.org/abs/2210.02747
    """

    def __init__(
        self,
        text: Tensor,
        mask: Tensor,
        latent_channels: int = 16,
        latent_size: int = 8,
        heads: int = 6,
        layers: int = 6,
        lr: float = 1e-3,
        max_steps: int = 4000,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["text", "mask"])
        self.transformer = make_transformer(latent_channels, latent_size, heads, layers)
        self.register_buffer("text", text, persistent=False)
        self.register_buffer("mask", mask, persistent=False)

    def velocity(self, noisy: Tensor, level: Tensor) -> Tensor:
        """The network's output for noisy latents, whose noise levels have shape :math:`(n,)`."""
        return self.transformer(
            noisy,
            encoder_hidden_states=self.text.expand(len(noisy), -1, -1),
            encoder_attention_mask=self.mask.expand(len(noisy), -1),
            timestep=1000 * level,
        ).sample

    def training_step(self, batch: tuple[Tensor]) -> Tensor:
        (latents,) = batch
        noise = torch.randn_like(latents)
        # most of the error is at medium noise
        level = torch.randn(len(latents), device=self.device).sigmoid().view(-1, 1, 1, 1)
        predicted = self.velocity((1 - level) * latents + level * noise, level.flatten())
        loss = (predicted - (noise - latents)).square().mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict:
        return cosine_adamw(self, self.hparams.lr, self.hparams.max_steps)


def make_text_parts() -> tuple[PreTrainedTokenizerFast, Gemma2Model]:
    """A tokenizer of no words, and an untrained text encoder."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<bos>": 1, "<unk>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", unk_token="<unk>", model_max_length=300
    )
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=TEXT_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=TEXT_WIDTH // 2,
        query_pre_attn_scalar=TEXT_WIDTH // 2,
    )
    return tokenizer, Gemma2Model(config).eval()


def make_pipeline(vae: AutoencoderDC, transformer: SanaTransformer2DModel) -> SanaPipeline:
    """A complete pipeline; its text encoder is the same for each seed."""
    tokenizer, text_encoder = make_text_parts()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    return SanaPipeline(tokenizer, text_encoder, vae, transformer, scheduler)


def save_pipeline(pipeline: SanaPipeline, folder: Path) -> None:
    """Writes a folder in half precision that ``SanaPipeline.from_pretrained`` loads by itself."""
    pipeline.to(torch.float16).save_pretrained(folder)


@torch.no_grad()
def encode_faces(vae: AutoencoderDC, faces: Faces) -> Tensor:
    """Latents of all faces, with shape :math:`(n, C, h, w)`."""
    return torch.cat([vae.encode(to_images(pixels)).latent for pixels in faces.pixels.split(256)])


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__.splitlines()[0], steps=4000, batch_size=32, out="tests/priors/flow")
    options.add_argument("--autoencoder-steps", type=int, default=4000, help="optimiser steps of the autoencoder")
    args = options.parse_args(arguments)
    L.seed_everything(args.seed)
    faces, work = Faces(args.faces), args.work / "flow"
    autoencoder = FlowAutoencoder(max_steps=args.autoencoder_steps)
    fit(autoencoder, DataLoader(faces, 16, shuffle=True), work / "autoencoder", args.autoencoder_steps)
    vae = autoencoder.vae.cpu().eval()
    latents = encode_faces(vae, faces)
    scale = 1 / latents.std().item()
    vae.register_to_config(scaling_factor=scale)

    pipeline = make_pipeline(vae, make_transformer(latents.shape[1], latents.shape[2], heads=1, layers=1))
    text, mask, *_ = pipeline.encode_prompt("", do_classifier_free_guidance=False)
    flow = FlowMatching(text.detach(), mask, latents.shape[1], latents.shape[2], max_steps=args.steps)
    batches = DataLoader(TensorDataset(scale * latents), args.batch_size, shuffle=True)
    fit(flow, batches, work / "transformer", args.steps, callbacks=(EMAWeightAveraging(decay=0.999),))
    pipeline.register_modules(transformer=flow.transformer.cpu().eval())
    save_pipeline(pipeline, args.out)
    print(f"pipeline saved in {args.out}")


if __name__ == "__main__":
    main()
