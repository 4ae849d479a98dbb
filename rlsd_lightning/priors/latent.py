"""Base of the priors from diffusers pipelines: autoencoder, text conditions, guidance."""

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, ModelMixin, UNet2DConditionModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlsd_lightning.errors import InputError
from rlsd_lightning.priors.base import Prior
from rlsd_lightning.priors.loading import (
    add_lora,
    check_channels,
    check_conditions,
    checked_image_size,
    ddim_levels,
    encoded_latents,
    find_tiny,
    latent_scale,
    latent_stride,
    load_pipeline,
    pair,
    tile_size,
)
from rlsd_lightning.priors.measured.prediction import try_networks
from rlsd_lightning.priors.tiles import LEAST_TILE
from rlsd_lightning.signatures import typed

__all__ = ["PipelinePrior", "text_and_pooled"]

TRIED = 16
"""Largest side of the latents of the networks' trial; half for large networks, to save time on a CPU."""
LARGE = 2e8
"""Parameters of a large network."""


class PipelinePrior(Prior):
    r"""A latent diffusion prior of a diffusers pipeline, from a folder or the hub.

    The prediction type, the noise schedule and the latents' scale and shift are those of the checkpoint's own
    configuration. With a guidance scale :math:`g \ne 1` the network's output is :math:`o_- + g \, (o_+ - o_-)` for the
    negative prompt and the prompt. The text encoders are freed once the prompts are encoded.

    Subclasses set ``pipeline`` (its class), ``parts`` (its subfolders) and ``network_class``, and implement :meth:`conditions` and
    :meth:`evaluate`.

    Args:
        pretrained: A local folder in the diffusers format, its folder in the hub's cache, one file of the original
            format (``.safetensors``), the name of a model on the hub, or a pipeline itself, which is moved to the CPU.
        prompt: Text that describes the image; the paper uses the empty prompt.
        negative_prompt: Text that guidance moves away from.
        guidance_scale: Strength :math:`g` of classifier-free guidance; 1 is off and costs one network call less.
        image_size: Height and width in pixels, or one number for both, multiples of the autoencoder's stride; the
            checkpoint's own if left out.
        lora: LoRA weights that are added to the networks' own: a folder, a ``.safetensors`` file or a name on the hub.
        variant: Variant of the weights on the hub, such as ``fp16``.
        weights: Type of the weights: ``float32``, ``float16`` or ``bfloat16``.
        tile: Side of overlapping tiles in pixels, in which networks see larger images
            (:func:`~rlsd_lightning.priors.tiles.in_tiles`). ``auto``: 512, or the size of the training if that is larger.
            None: networks see images of any size in one piece.
        decoder_checkpointing: Recompute the decoder's activations in the backward pass instead of keeping them.
        local_files_only: Never download from the hub.
        allow_pickle: Also load weights in pickle files, which can run code.
        tiny_decoder: A folder of diffusers' ``AutoencoderTiny``, or a model's name such as ``madebyollin/taesd``, whose decoder
            makes the images that gradients go through; ``auto``: the folder ``tiny_decoder`` in the pipeline's, else
            :attr:`usual_tiny_decoder` if it can be fetched; None: the full decoder makes all images.

    Raises:
        InputError: If there is no such pipeline at ``pretrained``, it is of another kind (inpainting, class labels, a
            schedule without signal levels), its networks' outputs are not finite, the image size does not fit, or the tiny
            decoder belongs to another model.

    References:
        | High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022)
        | https://arxiv.org/abs/2112.10752
        | Classifier-Free Diffusion Guidance (Ho & Salimans, 2022)
        | https://arxiv.org/abs/2207.12598
    """

    pipeline: type[DiffusionPipeline]
    """Class of the pipeline."""
    parts: tuple[str, ...]
    """Subfolders that a pipeline's folder must have."""
    left_out: ClassVar[dict[str, Any]] = {}
    """Arguments of ``from_pretrained`` that leave out parts, such as a safety checker."""
    network_class: type[ModelMixin] = UNet2DConditionModel
    """Class of the denoiser."""
    packing = 1
    """Side of the squares of latents whose values are the channels of one token of the network."""

    @typed
    def __init__(
        self,
        pretrained: str | Path | DiffusionPipeline,
        prompt: str = "",
        negative_prompt: str = "",
        guidance_scale: float = 1.0,
        image_size: int | tuple[int, int] | None = None,
        lora: str | Path | None = None,
        variant: str | None = None,
        weights: str = "float32",
        tile: int | str | None = "auto",
        decoder_checkpointing: bool = False,
        local_files_only: bool = False,
        allow_pickle: bool = False,
        tiny_decoder: str | Path | None = "auto",
    ) -> None:
        loaded = on_cpu(pretrained)
        if not isinstance(pretrained, DiffusionPipeline):
            settings = (variant, weights, local_files_only, allow_pickle)
            loaded = load_pipeline(self.pipeline, pretrained, self.parts, *settings, **self.left_out)
        if lora is not None:
            add_lora(loaded, lora, local_files_only)
        vae, network = self.autoencoder_of(loaded), self.denoiser_of(loaded)
        check_conditions(network, self.network_class)
        check_channels(network, vae, self.packing**2)
        stride, own_size = latent_stride(vae), self.own_size(loaded)
        unit = stride * self.unit_of(network)
        height, width = checked_image_size(image_size, own_size, stride, unit)
        levels, prediction_type, offset = self.schedule(loaded, (height // unit) * (width // unit))
        latent_shape = (network.config.in_channels // self.packing**2, height // stride, width // stride)
        super().__init__(*levels, latent_shape, (vae.config.in_channels, height, width), prediction_type, offset)
        self.origin = None if loaded is pretrained else Path(pretrained)
        self.multiple, self.trained_size = unit, stride * max(pair(own_size or height // stride))
        # faster for convolutions over pixels, forward and backward, but not over latents
        self.vae = vae.to(memory_format=torch.channels_last)
        if decoder_checkpointing:
            self.checkpoint_activations(vae)
        self.set_latent_scale(vae)
        self.guidance_scale = 1.0  # guided outputs explain noise less well than those of the trial
        with torch.no_grad():
            conditions = self.conditions(loaded, prompt, negative_prompt, guidance_scale)
        self.condition_names, self.computed_names = tuple(conditions), (*self.computed_names, *conditions)
        if negative_prompt and all(len(value) < 2 for value in conditions.values()):
            self.warn("negative_prompt has no effect, as there is no classifier-free guidance with these settings")
        for name, value in conditions.items():
            self.register_buffer(name, value.detach())
        self.denoiser = network
        self.freeze()
        self.warn_of_long_prompts(loaded, prompt=prompt, negative_prompt=negative_prompt if guidance_scale != 1 else "")
        large = sum(parameter.numel() for parameter in network.parameters()) > LARGE
        tried = [min(length, TRIED // 2 if large else TRIED) for length in latent_shape[1:]]
        try_networks(self, (latent_shape[0], *tried))
        self.guidance_scale = guidance_scale
        settings = {"side": stride * max(tried), "dtype": vae.dtype, "local_files_only": local_files_only}
        self.tiny = find_tiny(self, tiny_decoder, pretrained, self.usual_tiny_decoder, **settings)
        self.tile = tile_size(tile, self.trained_size, unit, LEAST_TILE * stride)

    def set_latent_scale(self, vae: ModelMixin) -> None:
        """Sets scale and shift of the latents: numbers, or buffers with a value for each channel."""
        for name, value in zip(("scaling", "shift"), latent_scale(vae), strict=True):
            if isinstance(value, Tensor):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def warn_of_long_prompts(self, pipeline: DiffusionPipeline, **prompts: str) -> None:
        """Warns of prompts that are longer than the text encoder takes, with the words that are left out."""
        for name, prompt in prompts.items():
            left_out = words_left_out(*self.tokenizer_of(pipeline), prompt) if prompt else ""
            if left_out:
                self.warn(f"{name} is longer than the text encoder takes; the words left out are '{left_out}'")

    def checkpoint_activations(self, vae: ModelMixin) -> None:
        """Recompute the decoder's activations in the backward pass.

        Raises:
            InputError: If the autoencoder can't.
        """
        try:
            vae.enable_gradient_checkpointing()
        except ValueError as error:
            raise InputError(
                f"decoder_checkpointing: an autoencoder that can recompute its activations is expected, got {type(vae).__name__}; "
                "set decoder_checkpointing=false, and particle_chunk=1 to save memory"
            ) from error

    def unit_of(self, network: ModelMixin) -> int:
        """What the height and width of the network's latents must be multiples of."""
        return self.packing * network.config.get("patch_size", 1)

    def denoiser_of(self, pipeline: DiffusionPipeline) -> ModelMixin:
        """The pipeline's network."""
        return pipeline.unet

    def autoencoder_of(self, pipeline: DiffusionPipeline) -> ModelMixin:
        """The pipeline's autoencoder."""
        return pipeline.vae

    def own_size(self, pipeline: DiffusionPipeline) -> int | Sequence[int] | None:
        """Height and width of the latents of the training, or one number for both; None: unknown."""
        return self.denoiser_of(pipeline).config.sample_size

    def tokenizer_of(self, pipeline: DiffusionPipeline) -> tuple[PreTrainedTokenizerBase, int]:
        """The tokenizer of prompts, and how many tokens the text encoder takes."""
        return pipeline.tokenizer, pipeline.tokenizer.model_max_length

    def schedule(self, pipeline: DiffusionPipeline, tokens: int) -> tuple[tuple[Tensor, Tensor], str, int]:
        """Signal and noise levels, prediction type and timestep offset; ``tokens`` is the number of a latent's patches."""
        return ddim_levels(pipeline.scheduler)

    @abstractmethod
    def conditions(
        self, pipeline: DiffusionPipeline, prompt: str, negative_prompt: str, guidance_scale: float
    ) -> dict[str, Tensor]:
        """Conditions of the network by name, each with the prompt's row, below the negative prompt's if guided."""

    @abstractmethod
    def evaluate(self, z_t: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """The network's output for a batch of noisy latents, their timestep of shape () and the conditions of each."""

    def noise_levels(self, t: Tensor, count: int) -> Tensor:
        r"""Noise levels :math:`\sigma_t` of a batch, with shape (count,)."""
        # selected on the device: an index would synchronize
        return self.sigmas.index_select(0, t.view(1)).expand(count)

    def network(self, z_t: Tensor, t: int) -> Tensor:
        conditions = {name: self.get_buffer(name) for name in self.condition_names}
        copies = max((len(value) for value in conditions.values()), default=1)
        rows = {name: value.repeat_interleave(len(z_t), dim=0) for name, value in conditions.items()}
        # filled on the device, without a copy; a compiled network is not compiled again for each number
        timestep = torch.full((), t, device=z_t.device)
        output = self.evaluate(z_t.repeat(copies, 1, 1, 1).to(self.denoiser.dtype), timestep, **rows).to(z_t.dtype)
        output = output[:, : z_t.shape[1]]  # networks that learn their variance have it in further channels
        if copies == 1:
            return output
        negative, positive = output.chunk(2)
        return negative + self.guidance_scale * (positive - negative)

    def compile_networks(self, regional: bool = False, **options: Any) -> None:
        self.compiled |= {"denoiser", "vae"}
        if regional and self.denoiser._repeated_blocks:  # diffusers' name
            self.denoiser.compile_repeated_blocks(**options)
        else:
            self.denoiser.compile(**options)
        self.vae.decoder.compile(**options)
        if self.tiny is not None:
            self.tiny.decoder.compile(**options)

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images in [-1, 1] with shape :math:`(N, 3, H, W)`: the mode of the encoder, scaled."""
        return self.tiled(self._encode, images, zoom=Fraction(1, self.stride))

    def _encode(self, images: Tensor) -> Tensor:
        latents = encoded_latents(self.vae, images.to(self.vae.dtype))
        return (latents.to(images.dtype) - self.shift) * self.scaling

    def decode(self, z: Tensor) -> Tensor:
        """Images of scaled latents, about in [-1, 1], with shape :math:`(N, 3, H, W)`."""
        return self.tiled(self._decode, z, zoom=self.stride)

    def _decode(self, z: Tensor) -> Tensor:
        return self.vae.decode((z / self.scaling + self.shift).to(self.vae.dtype)).sample.to(z.dtype)

    def decode_tiny(self, z: Tensor) -> Tensor:
        return self.decode(z) if self.tiny is None else self.tiled(self.tiny, z, zoom=self.stride)

    @property
    def usual_tiny_decoder(self) -> str | None:
        """Name on the hub of a tiny decoder for these latents; None: none is known."""
        return None

    @property
    def has_tiny_decoder(self) -> bool:
        return self.tiny is not None


def text_and_pooled(pipeline: DiffusionPipeline, guidance_scale: float, **prompts: str | None) -> dict[str, Tensor]:
    """Conditions of pipelines with pooled embeddings: each with the prompt's row, below the negative prompt's if guided."""
    guided = guidance_scale != 1
    text, negative, pooled, negative_pooled = pipeline.encode_prompt(**prompts, do_classifier_free_guidance=guided)
    if guided:
        text, pooled = torch.cat((negative, text)), torch.cat((negative_pooled, pooled))
    return {"text": text, "pooled": pooled}


def on_cpu(pretrained: str | Path | DiffusionPipeline) -> str | Path | DiffusionPipeline:
    """A pipeline moved to the CPU, where networks are tried before the Trainer moves them; names are returned unchanged."""
    is_elsewhere = isinstance(pretrained, DiffusionPipeline) and pretrained.device.type != "cpu"
    return pretrained.to("cpu") if is_elsewhere else pretrained


def words_left_out(tokenizer: PreTrainedTokenizerBase, length: int, prompt: str) -> str:
    """The words of a prompt from the first that does not fit into a number of tokens; empty if all do."""
    words = prompt.split()

    def overflows(count: int) -> bool:
        tokens = tokenizer(" ".join(words[:count]), truncation=False, verbose=False).input_ids
        return len(tokens) > length

    kept = bisect_left(range(len(words) + 1), True, key=overflows) - 1
    return " ".join(words[kept:])
