"""Tiny decoders: approximate images of latents, whose gradient costs a fraction of the own decoder's."""

from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn.functional import interpolate

from rlsd_lightning.errors import InputError, first_line
from rlsd_lightning.priors.base import Prior

__all__ = ["TinyDecoder", "check_agreement", "find_tiny"]

FOLDER = "tiny_decoder"
"""Subfolder of a pipeline's folder with its tiny decoder."""
TRIALS = 4
"""Pictures that are encoded, and decoded by both decoders."""
FIELDS = 4
"""Height and width of the random colours that such a picture blends."""
MOST_UNEXPLAINED = 0.5
"""Share of the variance of the own decoder's images that the tiny decoder's may miss."""


class TinyDecoder(nn.Module):
    """The decoder of a tiny autoencoder, for the scaled latents of the model that it was distilled from.

    Args:
        pretrained: A folder of diffusers' ``AutoencoderTiny``, or the name of a model on the hub such as
            ``madebyollin/taesd``.
        dtype: Type of the weights.
        local_files_only: Never download from the hub.

    Raises:
        InputError: If there is no such decoder.
    """

    def __init__(self, pretrained: str, dtype: torch.dtype = torch.float32, local_files_only: bool = False) -> None:
        super().__init__()
        try:
            tiny = AutoencoderTiny.from_pretrained(
                pretrained,
                use_safetensors=True,
                local_files_only=local_files_only,
                low_cpu_mem_usage=False,  # the other way needs accelerate
            )
        except Exception as error:  # diffusers and the formats' readers raise errors of many kinds
            raise InputError(
                f"tiny_decoder must be a folder of diffusers' AutoencoderTiny or a model's name, got '{pretrained}' "
                f"({first_line(error)}); check the path, fetch it with `hf download {pretrained}`, or set "
                "tiny_decoder=null"
            ) from error
        self.decoder = tiny.decoder.to(dtype=dtype, memory_format=torch.channels_last)
        self.channels = tiny.config.latent_channels
        self.scaling, self.shift = float(tiny.config.scaling_factor), float(tiny.config.shift_factor)

    def forward(self, z: Tensor) -> Tensor:
        """Images of scaled latents, about in [-1, 1], with shape :math:`(N, 3, H, W)`."""
        latents = (z / self.scaling + self.shift).to(next(self.decoder.parameters()).dtype)
        return self.decoder(latents).to(z.dtype)


def find_tiny(tiny_decoder: str | None, pretrained: object) -> str | None:
    """Folder or name of the tiny decoder; ``auto`` is that in the pipeline's folder, or None if there is none."""
    if tiny_decoder != "auto":
        return tiny_decoder
    folder = Path(pretrained) / FOLDER if isinstance(pretrained, str | Path) else None
    return str(folder) if folder is not None and folder.is_dir() else None


@torch.no_grad()
def check_agreement(prior: Prior, tiny: TinyDecoder, side: int) -> None:
    """Compare both decoders' images of a few encoded pictures of blended colours.

    Args:
        prior: The prior, on the CPU.
        tiny: Its tiny decoder.
        side: Height and width of the pictures in pixels.

    Raises:
        InputError: If the tiny decoder belongs to other latents.
    """
    channels = prior.latent_shape[0]
    if tiny.channels != channels:
        raise InputError(
            f"tiny_decoder must take latents of {channels} channels, as the prior's have, got one for "
            f"{tiny.channels}: it belongs to another kind of model; choose the one that was distilled from this model, "
            "or set tiny_decoder=null"
        )
    colours = 2 * torch.rand(TRIALS, 3, FIELDS, FIELDS, generator=torch.Generator().manual_seed(0)) - 1
    z = prior.encode(interpolate(colours, (side, side), mode="bilinear").to(prior.alphas))
    own, rough = prior.decode(z).float(), tiny(z).float()
    if own.shape != rough.shape:
        raise InputError(
            f"tiny_decoder must make images of {own.shape[-1]} pixels from latents of {z.shape[-1]}, as the own decoder "
            f"does, got {rough.shape[-1]}; choose the one that was distilled from this model, or set tiny_decoder=null"
        )
    unexplained = ((rough - own).square().mean() / own.var()).item()
    if not unexplained <= MOST_UNEXPLAINED:
        raise InputError(
            "tiny_decoder must make the own decoder's images of the same latents, but misses "
            f"{unexplained:.0%} of their variance, more than {MOST_UNEXPLAINED:.0%}: it belongs to the latents of another "
            "model; choose the one that was distilled from this model, or set tiny_decoder=null"
        )
