"""Checks of a pipeline's networks, and the scale of its latents."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, VQModel
from torch import Tensor, nn

from rlsd_lightning.errors import InputError

__all__ = [
    "check_channels",
    "check_conditions",
    "checked_image_size",
    "encoded_latents",
    "latent_scale",
    "latent_stride",
    "pair",
    "tile_size",
]

AUTO_TILE = 512
"""Side in pixels of tiles, whose memory the priors' users are prepared for."""
AUTOENCODERS = (AutoencoderKL, AutoencoderTiny, VQModel, AutoencoderDC)


def checked_image_size(size: int | Sequence[int] | None, own_size: Any, scale: int, unit: int) -> tuple[int, int]:
    """Height and width of images in pixels: those that are asked for, or the checkpoint's own.

    Args:
        size: Height and width in pixels, or one number for both; None takes the checkpoint's own.
        own_size: The network's ``sample_size``.
        scale: Pixels to one unit of ``own_size``.
        unit: Number of pixels that must divide both.

    Raises:
        InputError: If no size is known, or it is not a multiple of ``unit``.
    """
    if size is None and own_size is None:
        raise InputError("image_size must be set, as the checkpoint does not say its own, got null")
    given = [scale * length for length in pair(own_size)] if size is None else pair(size)
    if any(length % unit or length < unit for length in given):
        fitting = [max(unit, round(length / unit) * unit) for length in given]
        raise InputError(
            f"image_size must be a multiple of {unit}, the total stride of its networks, got "
            f"{size if size is not None else f'{given} from the checkpoint'}; set image_size={fitting}"
        )
    return given[0], given[1]


def pair(size: int | Sequence[int]) -> list[int]:
    """Height and width, or one number for both.

    Raises:
        InputError: If they are no such numbers.
    """
    lengths = list(size) if isinstance(size, Sequence) else [size, size]
    if len(lengths) != 2 or not all(isinstance(length, int) for length in lengths):
        raise InputError(f"image_size must be [height, width] in pixels, or one number for both, got {size}")
    return lengths


def tile_size(tile: int | str | None, trained: int, unit: int, least: int) -> int | None:
    """Side in pixels of the tiles in which networks see larger images; None: they see all images in one piece.

    Args:
        tile: What the user asks for; ``auto`` is 512, or ``trained`` if that is larger.
        trained: Side of the images of the training.
        unit: Number of pixels that must divide it.
        least: Smallest side.

    Raises:
        InputError: If it is not such a number.
    """
    if tile is None:
        return None
    if tile == "auto":
        return max(AUTO_TILE, trained, least) // unit * unit
    if not isinstance(tile, int) or tile < least or tile % unit:
        raise InputError(
            f"tile must be auto, null or a multiple of {unit} of at least {math.ceil(least / unit) * unit} pixels, got {tile}"
        )
    return tile


def check_conditions(network: nn.Module, kind: type[nn.Module]) -> None:
    """Checks that a network is of its family's class, and wants no conditions that a run can't give.

    Raises:
        InputError: If it is of another class, class-conditional, or conditioned on images.
    """
    if not isinstance(network, kind):
        raise InputError(
            f"pretrained: a {kind.__name__} is expected, got {type(network).__name__}; choose the prior of its family, "
            "which its model_index.json names"
        )
    config = network.config
    if config.get("class_embed_type") is not None or config.get("num_class_embeds") is not None:
        raise InputError(
            f"pretrained: an unconditional or text-conditional network is expected, but this {type(network).__name__} "
            "wants class_labels, which can't be given; choose another checkpoint"
        )
    wanted = config.get("encoder_hid_dim_type")
    if wanted not in (None, "text_proj"):
        raise InputError(
            f"pretrained: a network with text conditions is expected, but this {type(network).__name__} wants "
            f"{wanted}, the embedding of an image; choose a text-to-image checkpoint"
        )


def check_channels(network: nn.Module, autoencoder: nn.Module, packed: int = 1) -> None:
    """Checks that a network denoises the latents of an autoencoder, and nothing beside them.

    Args:
        network: The network.
        autoencoder: The autoencoder.
        packed: Number of latent positions whose values are the channels of one position of the network.

    Raises:
        InputError: If the autoencoder is of another kind, or the network has other channels.
    """
    if not isinstance(autoencoder, AUTOENCODERS):
        raise InputError(
            f"pretrained: an {', '.join(kind.__name__ for kind in AUTOENCODERS[:-1])} or {AUTOENCODERS[-1].__name__} is "
            f"expected, got {type(autoencoder).__name__}; give a checkpoint with one of these"
        )
    images = autoencoder.config.in_channels
    shown = autoencoder.config.get("out_channels", images)
    if images != shown:
        raise InputError(
            f"pretrained: an autoencoder with as many channels in as out is expected, got {images} and {shown}"
        )
    latents = packed * latent_channels(autoencoder)
    taken, given = network.config.in_channels, network.config.out_channels
    if taken != latents:
        known = {
            2 * latents + 1: "an inpainting",
            2 * latents: "an instruct-pix2pix" if packed == 1 else "a control",
            latents + 1: "a depth-to-image",
            latents + images: "an upscaling",
        }
        raise InputError(
            f"pretrained: its network takes {taken} channels, but the autoencoder has {latents}: it is "
            f"{known.get(taken, 'another')} network; give a text-to-image checkpoint"
        )
    if given not in (None, taken, 2 * taken):  # twice as many: the variance is learned too
        raise InputError(f"pretrained: a network with {taken} channels in and out is expected, got {given} out")


def latent_channels(autoencoder: nn.Module) -> int:
    """Channels of a latent."""
    return autoencoder.config.get("vq_embed_dim") or autoencoder.config.latent_channels


def latent_stride(autoencoder: nn.Module) -> int:
    """Pixels to one latent, along each side."""
    config = autoencoder.config
    return 2 ** (len(config.get("block_out_channels") or config.encoder_block_out_channels) - 1)


def encoded_latents(autoencoder: nn.Module, images: Tensor) -> Tensor:
    """Latents of images, as the autoencoder's decoder takes them: the mode of a distribution, before a quantization."""
    encoded = autoencoder.encode(images)
    if isinstance(autoencoder, AutoencoderKL):
        return encoded.latent_dist.mode()
    return encoded.latent if isinstance(autoencoder, AutoencoderDC) else encoded.latents


def latent_scale(autoencoder: nn.Module) -> tuple[float | Tensor, float | Tensor]:
    """Scale and shift of latents: the network's are (latents - shift) * scale.

    Means and standard deviations of the channels count if the autoencoder has them, with shape (1, C, 1, 1); else one shift.
    """
    config = autoencoder.config
    means, stds = config.get("latents_mean"), config.get("latents_std")
    if means is None or stds is None:
        return config.scaling_factor, config.get("shift_factor") or 0.0
    mean, std = (torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1) for values in (means, stds))
    return config.scaling_factor / std, mean
