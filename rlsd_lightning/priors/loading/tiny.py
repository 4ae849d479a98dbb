"""Tiny decoders: approximate images of latents, whose gradient costs a fraction of the full decoder's."""

import logging
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn.functional import interpolate

from rlsd_lightning.errors import InputError, fetch_remedy, first_line, require_all_weights
from rlsd_lightning.priors.base import Prior

__all__ = ["ShuffleDecoder", "TinyDecoder", "find_tiny", "load_tiny"]

log = logging.getLogger(__name__)

FOLDER = "tiny_decoder"
"""Subfolder of a pipeline's folder with its tiny decoder."""
TRIALS = 4
"""Pictures that are encoded, and decoded by both decoders."""
FIELDS = 4
"""Height and width of the random colours that such a picture blends."""
MOST_UNEXPLAINED = 0.5
"""Share of the variance of the full decoder's images that the tiny decoder's may miss."""
REMEDY = "choose the one that was distilled from this model, or set tiny_decoder=null"


class ShuffleDecoder(ModelMixin, ConfigMixin):
    """A decoder without normalisation whose convolutions see at most half of the image's resolution.

    Its last layer makes four pixels of each position; most of its weights act at the latents' own resolution.

    Args:
        latent_channels: Channels of a latent.
        widths: Channels at each resolution, the latents' own first; each doubles the resolution of the one before.
        blocks: Residual blocks of two convolutions at each resolution.
        scaling_factor: Factor of the latents that it was trained on, as in diffusers' autoencoders.
        shift_factor: Their shift.

    References:
        | Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel CNN (Shi et al., 2016)
        | https://arxiv.org/abs/1609.05158
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        widths: tuple[int, ...] = (64, 24),
        blocks: tuple[int, ...] = (1, 1),
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(latent_channels, widths[0], 3, padding=1), nn.ReLU()]
        for width, count, following in zip(widths, blocks, (*widths[1:], None), strict=True):
            layers += [_Block(width) for _ in range(count)]
            layers += [nn.Conv2d(width, 4 * (following or 3), 3, padding=1), nn.PixelShuffle(2)]
            layers += [nn.ReLU()] if following else []
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        """Images, about in [-1, 1], with shape :math:`(N, 3, H, W)`."""
        return self.layers(latents)


class _Block(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, values: Tensor) -> Tensor:
        return (values + self.convolutions(values)).relu()


KINDS: dict[str, type[ModelMixin]] = {kind.__name__: kind for kind in (AutoencoderTiny, ShuffleDecoder)}


class TinyDecoder(nn.Module):
    """A tiny decoder, for the scaled latents of the model that it was distilled from.

    Args:
        pretrained: A folder of diffusers' ``AutoencoderTiny`` or of a :class:`ShuffleDecoder`, the name of a model on the hub
            such as ``madebyollin/taesd``, or a model itself.
        dtype: Type of the weights.
        local_files_only: Never download from the hub.

    Raises:
        InputError: If there is no such decoder.
    """

    def __init__(
        self, pretrained: str | ModelMixin, dtype: torch.dtype = torch.float32, local_files_only: bool = False
    ) -> None:
        super().__init__()
        tiny = pretrained if isinstance(pretrained, ModelMixin) else _load(pretrained, local_files_only)
        decoder = tiny.decoder if isinstance(tiny, AutoencoderTiny) else tiny
        # diffusers' own `to` warns of modules kept in float32, though there are none
        self.decoder = nn.Module.to(decoder, dtype=dtype, memory_format=torch.channels_last)
        self.channels = tiny.config.latent_channels
        self.scaling, self.shift = float(tiny.config.scaling_factor), float(tiny.config.shift_factor)

    def forward(self, z: Tensor) -> Tensor:
        """Images of scaled latents, about in [-1, 1], with shape :math:`(N, 3, H, W)`."""
        latents = (z / self.scaling + self.shift).to(next(self.decoder.parameters()).dtype)
        return self.decoder(latents).to(z.dtype)


def _load(pretrained: str, local_files_only: bool) -> ModelMixin:
    try:
        name = AutoencoderTiny.load_config(pretrained, local_files_only=local_files_only).get("_class_name")
        if name not in KINDS:
            raise OSError(f"it holds the class {name}")  # whose weights would be replaced by random ones
        tiny, found = KINDS[name].from_pretrained(
            pretrained,
            use_safetensors=True,
            local_files_only=local_files_only,
            low_cpu_mem_usage=False,  # the other way needs accelerate
            output_loading_info=True,
        )
        require_all_weights(found["missing_keys"])
    except Exception as error:  # diffusers and the formats' readers raise errors of many kinds
        raise InputError(
            f"tiny_decoder must be a folder of diffusers' AutoencoderTiny or a model's name, got '{pretrained}' "
            f"({first_line(error)}); {fetch_remedy(pretrained)}, or set tiny_decoder=null"
        ) from error
    return tiny


def find_tiny(
    prior: Prior, tiny_decoder: str | None, pretrained: object, usual: str | None = None, **settings: Any
) -> TinyDecoder | None:
    """The tiny decoder that a setting asks for; None: the full decoder.

    ``auto`` is the one in the pipeline's folder, else the usual one if it can be fetched and fits.

    Args:
        prior: The prior, on the CPU.
        tiny_decoder: See :class:`~rlsd_lightning.priors.PipelinePrior`, like the next.
        pretrained: The pipeline.
        usual: Name of a tiny decoder of such latents; None: none is known.
        settings: Further arguments of :func:`load_tiny`.

    Raises:
        InputError: If a decoder that was named, or the folder's, can't be loaded or belongs to other latents.
    """
    if tiny_decoder is None:
        return None
    folder = Path(pretrained) / FOLDER if isinstance(pretrained, str | Path) else None
    if tiny_decoder != "auto" or (folder is not None and folder.is_dir()):
        return load_tiny(prior, str(folder) if tiny_decoder == "auto" else tiny_decoder, **settings)
    try:
        found = None if usual is None else load_tiny(prior, usual, **settings)
    except InputError as error:
        log.info("no tiny decoder, so every step uses the full decoder, which is slower: %s", error)
        return None
    if found is not None:
        log.info("gradients go through the tiny decoder %s; tiny_decoder=null chooses the full decoder", usual)
    return found


def load_tiny(
    prior: Prior, pretrained: str, side: int, dtype: torch.dtype = torch.float32, local_files_only: bool = False
) -> TinyDecoder:
    """The tiny decoder of a prior, frozen, which makes about the same images of a few latents as the full decoder.

    Args:
        prior: The prior, on the CPU.
        pretrained: See :class:`TinyDecoder`, like the last two.
        side: Height and width in pixels of the pictures whose latents are compared.

    Raises:
        InputError: If there is no such decoder, or it belongs to other latents.
    """
    tiny = TinyDecoder(pretrained, dtype, local_files_only).eval().requires_grad_(False)
    channels = prior.latent_shape[0]
    if tiny.channels != channels:
        raise InputError(
            f"tiny_decoder must take latents of {channels} channels, as the prior's have, got one for {tiny.channels}: it "
            f"belongs to another kind of model; {REMEDY}"
        )
    own, rough = _both_decodes(prior, tiny, side)
    if own.shape != rough.shape:
        raise InputError(
            f"tiny_decoder must make images of {own.shape[-1]} pixels, as the full decoder does of the same latents, got "
            f"{rough.shape[-1]}: it belongs to another kind of model; {REMEDY}"
        )
    unexplained = ((rough - own).square().mean() / own.var()).item()
    if not unexplained <= MOST_UNEXPLAINED:
        raise InputError(
            "tiny_decoder must make the full decoder's images of the same latents, but misses "
            f"{unexplained:.0%} of their variance, more than {MOST_UNEXPLAINED:.0%}: it belongs to the latents of another "
            f"model; {REMEDY}"
        )
    return tiny


@torch.no_grad()
def _both_decodes(prior: Prior, tiny: TinyDecoder, side: int) -> tuple[Tensor, Tensor]:
    """Both decoders' images of a few encoded pictures of blended colours."""
    colours = 2 * torch.rand(TRIALS, 3, FIELDS, FIELDS, generator=torch.Generator().manual_seed(0)) - 1
    z = prior.encode(interpolate(colours, (side, side), mode="bilinear").to(prior.alphas))
    return prior.decode(z).float(), tiny(z).float()
