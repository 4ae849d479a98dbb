"""Stable Diffusion and its kin: a diffusers pipeline as a prior."""

from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from rlsd_lightning.errors import InputError
from rlsd_lightning.priors.base import Prior

__all__ = ["StableDiffusionPrior"]

PARTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")


class StableDiffusionPrior(Prior):
    r"""A text-conditional latent diffusion prior from a ``StableDiffusionPipeline``.

    The prediction type, the noise schedule and the latents' scale and shift are those of the checkpoint's own
    configuration. With a guidance scale :math:`g \ne 1` the network's output is
    :math:`o_- + g \, (o_+ - o_-)` for the negative prompt and the prompt.

    Args:
        pretrained: A local folder in the diffusers format, or the name of a model on the hub.
        prompt: Text that describes the image; the paper uses the empty prompt.
        negative_prompt: Text that guidance moves away from.
        guidance_scale: Strength :math:`g` of classifier-free guidance; 1 is off and costs one network call less.
        image_size: Height and width in pixels, a multiple of the autoencoder's stride; the checkpoint's own if left
            out.
        variant: Weights' variant on the hub, such as ``fp16``.
        local_files_only: Never reach for the hub.

    Raises:
        InputError: If there is no pipeline at ``pretrained``, or the image size does not fit the autoencoder.

    References:
        | High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022)
        | https://arxiv.org/abs/2112.10752
        | Classifier-Free Diffusion Guidance (Ho & Salimans, 2022)
        | https://arxiv.org/abs/2207.12598
    """

    def __init__(
        self,
        pretrained: str,
        prompt: str = "",
        negative_prompt: str = "",
        guidance_scale: float = 1.0,
        image_size: int | None = None,
        variant: str | None = None,
        local_files_only: bool = False,
    ) -> None:
        pipeline = _load_pipeline(pretrained, variant, local_files_only)
        vae, unet = pipeline.vae, pipeline.unet
        stride = 2 ** (len(vae.config.block_out_channels) - 1)
        image_size = image_size or unet.config.sample_size * stride
        if image_size % stride:
            raise InputError(f"image_size must be a multiple of {stride}, the autoencoder's stride, got {image_size}")
        scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        latent_size = image_size // stride
        super().__init__(
            scheduler.alphas_cumprod,
            (unet.config.in_channels, latent_size, latent_size),
            (vae.config.in_channels, image_size, image_size),
            scheduler.config.prediction_type,
            scheduler.config.steps_offset,
        )
        self.vae, self.unet = vae, unet
        self.guidance_scale = guidance_scale
        self.scaling = vae.config.scaling_factor
        self.shift = vae.config.shift_factor or 0.0
        texts = [prompt] if guidance_scale == 1 else [negative_prompt, prompt]
        self.register_buffer("text", _encode_text(pipeline, texts))
        self.freeze()

    def network(self, z_t: Tensor, t: int) -> Tensor:
        copies, length, width = self.text.shape
        text = self.text[:, None].expand(-1, len(z_t), -1, -1).reshape(-1, length, width)
        output = self.unet(z_t.repeat(copies, 1, 1, 1), t, text.to(z_t.dtype)).sample
        if copies == 1:
            return output
        negative, positive = output.chunk(2)
        return negative + self.guidance_scale * (positive - negative)

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images in [-1, 1] with shape :math:`(N, 3, H, W)`: the mode of the encoder, scaled."""
        return (self.vae.encode(images).latent_dist.mode() - self.shift) * self.scaling

    def decode(self, z: Tensor) -> Tensor:
        """Images of scaled latents, about in [-1, 1], with shape :math:`(N, 3, H, W)`."""
        return self.vae.decode(z / self.scaling + self.shift).sample


def _load_pipeline(pretrained: str, variant: str | None, local_files_only: bool) -> StableDiffusionPipeline:
    folder = Path(pretrained)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise InputError(
            f"a diffusers pipeline folder is expected as prior.pretrained, but '{pretrained}' has no model_index.json; "
            "give the folder that StableDiffusionPipeline.save_pretrained wrote"
        )
    missing = [part for part in PARTS if folder.exists() and not (folder / part).is_dir()]
    if missing:
        raise InputError(
            f"a complete diffusers pipeline folder is expected as prior.pretrained, but '{pretrained}' has no "
            f"{', '.join(missing)}; copy or save the whole folder again"
        )
    try:
        return StableDiffusionPipeline.from_pretrained(
            pretrained,
            variant=variant,
            local_files_only=local_files_only,
            low_cpu_mem_usage=False,  # the other way needs accelerate
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"prior.pretrained='{pretrained}' is neither a complete diffusers folder nor a model that can be fetched "
            f"({reason}); check the path, or fetch it with `hf download {pretrained}`"
        ) from error


@torch.no_grad()
def _encode_text(pipeline: StableDiffusionPipeline, texts: list[str]) -> Tensor:
    tokenizer = pipeline.tokenizer
    length = tokenizer.model_max_length
    tokens = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return pipeline.text_encoder(tokens.input_ids).last_hidden_state
