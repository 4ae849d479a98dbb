"""What priors from diffusers pipelines share: the autoencoder, text conditions, guidance."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ModelMixin
from torch import Tensor

from rlsd_lightning.errors import InputError
from rlsd_lightning.priors.base import Prior
from rlsd_lightning.priors.loading import ddim_levels, load_pipeline

__all__ = ["LatentPrior", "PipelinePrior"]


class LatentPrior(Prior):
    r"""A text-conditional latent diffusion prior of a diffusers pipeline.

    Subclasses implement :meth:`evaluate`. With a guidance scale :math:`g \ne 1` the network's output is
    :math:`o_- + g \, (o_+ - o_-)` for the negative prompt and the prompt. The text encoders are let go once the
    prompts are encoded.

    Args:
        vae: The autoencoder; its scale and shift are those of its own configuration.
        levels: Signal and noise levels of the schedule, each with shape :math:`(T,)`.
        latent_channels: Channels of a latent.
        image_size: Height and width in pixels, or one number for both.
        conditions: What the network is told, by name; each with the prompt's row, or those of the negative prompt and
            of the prompt.
        guidance_scale: The scale :math:`g`.
        prediction_type: What the network predicts.
        timestep_offset: The smallest timestep the network was trained to be asked for.
        vae_tiling: Decode in tiles, for images that do not fit otherwise.
        decoder_checkpointing: Recompute the decoder's activations in the backward pass instead of keeping them.
        patch_size: Height and width of the network's patches, in latents.

    Raises:
        InputError: If the image size does not fit the autoencoder.

    References:
        | High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022)
        | https://arxiv.org/abs/2112.10752
        | Classifier-Free Diffusion Guidance (Ho & Salimans, 2022)
        | https://arxiv.org/abs/2207.12598
    """

    white_latents = True

    def __init__(
        self,
        vae: AutoencoderKL,
        levels: tuple[Tensor, Tensor],
        latent_channels: int,
        image_size: int | Sequence[int],
        conditions: dict[str, Tensor],
        guidance_scale: float,
        prediction_type: str,
        timestep_offset: int,
        vae_tiling: bool = False,
        decoder_checkpointing: bool = False,
        patch_size: int = 1,
    ) -> None:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        stride = 2 ** (len(vae.config.block_out_channels) - 1)
        unit = stride * patch_size
        if height % unit or width % unit or min(height, width) < unit:
            raise InputError(
                f"image_size must be a multiple of {unit}, the autoencoder's stride times the network's patch, got "
                f"{image_size}"
            )
        super().__init__(
            *levels,
            (latent_channels, height // stride, width // stride),
            (vae.config.in_channels, height, width),
            prediction_type,
            timestep_offset,
        )
        # convolutions over pixels, forward and backward, are faster so; those over latents are not
        self.vae = vae.to(memory_format=torch.channels_last)
        if vae_tiling:
            vae.enable_tiling()
        if decoder_checkpointing:
            vae.enable_gradient_checkpointing()
        self.scaling = vae.config.scaling_factor
        self.shift = vae.config.shift_factor or 0.0
        self.guidance_scale = guidance_scale
        self.condition_names = tuple(conditions)
        for name, value in conditions.items():
            self.register_buffer(name, value.detach())

    @abstractmethod
    def evaluate(self, z_t: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """The network's output for a batch of noisy latents, their timestep of shape () and the conditions of each."""

    def network(self, z_t: Tensor, t: int) -> Tensor:
        conditions = {name: getattr(self, name) for name in self.condition_names}
        copies = max(len(value) for value in conditions.values())
        rows = {name: value.repeat_interleave(len(z_t), dim=0) for name, value in conditions.items()}
        weights = next(value.dtype for value in conditions.values())
        # filled on the device, not copied to it; and no new program for every number where the network is compiled
        timestep = torch.full((), t, device=z_t.device)
        output = self.evaluate(z_t.repeat(copies, 1, 1, 1).to(weights), timestep, **rows).to(z_t.dtype)
        if copies == 1:
            return output
        negative, positive = output.chunk(2)
        return negative + self.guidance_scale * (positive - negative)

    def compile_networks(self, **options: Any) -> None:
        self.denoiser.compile(**options)
        self.vae.decoder.compile(**options)

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images in [-1, 1] with shape :math:`(N, 3, H, W)`: the mode of the encoder, scaled."""
        latents = self.vae.encode(images.to(self.vae.dtype)).latent_dist.mode().to(images.dtype)
        return (latents - self.shift) * self.scaling

    def decode(self, z: Tensor) -> Tensor:
        """Images of scaled latents, about in [-1, 1], with shape :math:`(N, 3, H, W)`."""
        return self.vae.decode((z / self.scaling + self.shift).to(self.vae.dtype)).sample.to(z.dtype)


class PipelinePrior(LatentPrior):
    r"""A latent diffusion prior from a folder or the hub.

    The prediction type, the noise schedule and the latents' scale and shift are those of the checkpoint's own
    configuration. Subclasses say which pipeline it is, which of its parts is the network, and how it is told a text.

    Args:
        pretrained: A local folder in the diffusers format, or the name of a model on the hub.
        prompt: Text that describes the image; the paper uses the empty prompt.
        negative_prompt: Text that guidance moves away from.
        guidance_scale: Strength :math:`g` of classifier-free guidance; 1 is off and costs one network call less.
        image_size: Height and width in pixels, or one number for both, multiples of the autoencoder's stride; the
            checkpoint's own if left out.
        variant: Weights' variant on the hub, such as ``fp16``.
        weights: The type the weights are held in: ``float32``, ``float16`` or ``bfloat16``.
        vae_tiling: Decode in tiles, for images that do not fit otherwise.
        decoder_checkpointing: Recompute the decoder's activations in the backward pass instead of keeping them.
        local_files_only: Never reach for the hub.
        allow_pickle: Take weights in pickle files too, which can run code; else safetensors only.

    Raises:
        InputError: If there is no such pipeline at ``pretrained``, or the image size does not fit the autoencoder.
    """

    pipeline: type[DiffusionPipeline]
    parts: tuple[str, ...]
    left_out: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        pretrained: str,
        prompt: str = "",
        negative_prompt: str = "",
        guidance_scale: float = 1.0,
        image_size: int | Sequence[int] | None = None,
        variant: str | None = None,
        weights: str = "float32",
        vae_tiling: bool = False,
        decoder_checkpointing: bool = False,
        local_files_only: bool = False,
        allow_pickle: bool = False,
    ) -> None:
        pipeline = load_pipeline(
            self.pipeline, pretrained, self.parts, variant, weights, local_files_only, allow_pickle, **self.left_out
        )
        vae, network = pipeline.vae, self.denoiser_of(pipeline)
        levels, prediction_type, offset = self.schedule(pipeline)
        with torch.no_grad():
            conditions = self.conditions(pipeline, prompt, negative_prompt, guidance_scale)
        super().__init__(
            vae,
            levels,
            network.config.in_channels,
            image_size or network.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1),
            conditions,
            guidance_scale,
            prediction_type,
            offset,
            vae_tiling,
            decoder_checkpointing,
            getattr(network.config, "patch_size", 1),
        )
        self.denoiser = network
        self.freeze()

    def denoiser_of(self, pipeline: DiffusionPipeline) -> ModelMixin:
        """The pipeline's network."""
        return pipeline.unet

    def schedule(self, pipeline: DiffusionPipeline) -> tuple[tuple[Tensor, Tensor], str, int]:
        """Signal and noise levels, prediction type and timestep offset."""
        return ddim_levels(pipeline.scheduler)

    @abstractmethod
    def conditions(
        self, pipeline: DiffusionPipeline, prompt: str, negative_prompt: str, guidance_scale: float
    ) -> dict[str, Tensor]:
        """What the network is told, by name; without guidance the prompt's row only, else the negative prompt's first."""
