"""What priors from diffusers pipelines share: loading, the autoencoder, text conditions, guidance."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline
from torch import Tensor

from rlsd_lightning.errors import InputError
from rlsd_lightning.priors.base import Prior

__all__ = ["LatentPrior", "ddim_levels", "load_pipeline"]

WEIGHT_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


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

    Raises:
        InputError: If the image size does not fit the autoencoder.

    References:
        | High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022)
        | https://arxiv.org/abs/2112.10752
        | Classifier-Free Diffusion Guidance (Ho & Salimans, 2022)
        | https://arxiv.org/abs/2207.12598
    """

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
    ) -> None:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        stride = 2 ** (len(vae.config.block_out_channels) - 1)
        if height % stride or width % stride or min(height, width) < stride:
            raise InputError(f"image_size must be a multiple of {stride}, the autoencoder's stride, got {image_size}")
        super().__init__(
            *levels,
            (latent_channels, height // stride, width // stride),
            (vae.config.in_channels, height, width),
            prediction_type,
            timestep_offset,
        )
        self.vae = vae
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
    def evaluate(self, z_t: Tensor, t: int, **conditions: Tensor) -> Tensor:
        """The network's output for a batch of noisy latents and the conditions of each."""

    def network(self, z_t: Tensor, t: int) -> Tensor:
        conditions = {name: getattr(self, name) for name in self.condition_names}
        copies = max(len(value) for value in conditions.values())
        rows = {name: value.repeat_interleave(len(z_t), dim=0) for name, value in conditions.items()}
        weights = next(value.dtype for value in conditions.values())
        output = self.evaluate(z_t.repeat(copies, 1, 1, 1).to(weights), t, **rows).to(z_t.dtype)
        if copies == 1:
            return output
        negative, positive = output.chunk(2)
        return negative + self.guidance_scale * (positive - negative)

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images in [-1, 1] with shape :math:`(N, 3, H, W)`: the mode of the encoder, scaled."""
        latents = self.vae.encode(images.to(self.vae.dtype)).latent_dist.mode().to(images.dtype)
        return (latents - self.shift) * self.scaling

    def decode(self, z: Tensor) -> Tensor:
        """Images of scaled latents, about in [-1, 1], with shape :math:`(N, 3, H, W)`."""
        return self.vae.decode((z / self.scaling + self.shift).to(self.vae.dtype)).sample.to(z.dtype)


def ddim_levels(scheduler: Any) -> tuple[tuple[Tensor, Tensor], str, int]:
    """Signal and noise levels, prediction type and timestep offset of a checkpoint's own scheduler.

    Zero-terminal-SNR schedules are rescaled as their configuration says.

    Raises:
        InputError: If the schedule ends in pure noise but the network predicts noise, which says nothing there.
    """
    config = DDIMScheduler.from_config(scheduler.config)
    alphas_cumprod = config.alphas_cumprod.clamp(0, 1)
    kind = config.config.prediction_type
    if alphas_cumprod[-1] == 0 and kind == "epsilon":
        raise InputError(
            "the checkpoint's schedule ends in pure noise (rescale_betas_zero_snr), where a prediction of type epsilon "
            "says nothing; set prediction_type to v_prediction in its scheduler_config.json if it was trained so"
        )
    return (alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()), kind, config.config.steps_offset


def load_pipeline(
    kind: type[DiffusionPipeline],
    pretrained: str,
    parts: Sequence[str],
    variant: str | None = None,
    weights: str = "float32",
    local_files_only: bool = False,
    allow_pickle: bool = False,
    **options: Any,
) -> DiffusionPipeline:
    """Loads a pipeline from a folder or the hub.

    Args:
        kind: The pipeline's class.
        pretrained: A local folder in the diffusers format, or the name of a model on the hub.
        parts: Subfolders that a local folder must have.
        variant: Weights' variant on the hub, such as ``fp16``.
        weights: The type the weights are held in: ``float32``, ``float16`` or ``bfloat16``.
        local_files_only: Never reach for the hub.
        allow_pickle: Take weights in pickle files too, which can run code; else safetensors only.
        options: Further arguments of ``from_pretrained``.

    Raises:
        InputError: If there is no such pipeline.
    """
    if weights not in WEIGHT_TYPES:
        raise InputError(f"prior.weights must be one of {', '.join(WEIGHT_TYPES)}, got '{weights}'")
    folder = Path(pretrained)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise InputError(
            f"a diffusers pipeline folder is expected as prior.pretrained, but '{pretrained}' has no model_index.json; "
            "give the folder that the pipeline's save_pretrained wrote"
        )
    missing = [part for part in parts if folder.exists() and not (folder / part).is_dir()]
    if missing:
        raise InputError(
            f"a complete folder of a {kind.__name__} is expected as prior.pretrained, but '{pretrained}' has no "
            f"{', '.join(missing)}; copy or save the whole folder again, or choose the prior that fits it"
        )
    try:
        pipeline = kind.from_pretrained(
            pretrained,
            variant=variant,
            torch_dtype=WEIGHT_TYPES[weights],
            use_safetensors=None if allow_pickle else True,
            local_files_only=local_files_only,
            low_cpu_mem_usage=False,  # the other way needs accelerate
            **options,
        )
        return pipeline.to(WEIGHT_TYPES[weights])  # some networks are left in float32
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "" if allow_pickle else "; if it has pickled weights only and you trust it, set prior.allow_pickle=true"
        raise InputError(
            f"prior.pretrained='{pretrained}' is neither a complete diffusers folder nor a model that can be fetched "
            f"({reason}); check the path, or fetch it with `hf download {pretrained}`{hint}"
        ) from error
