r"""Features :math:`\phi` that the kernel compares.

A feature network returns one vector for each particle, with shape :math:`(N, D)`, differentiably in the latents or in
the decoded images.
"""

import copy
import functools
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from rlsd_lightning.errors import InputError, fetch_remedy, first_line, require_all_weights, require_positive
from rlsd_lightning.functional.losses import at_least_float32
from rlsd_lightning.signatures import typed

__all__ = ["Features", "LPIPSFeatures", "LatentFeatures", "PixelFeatures", "VAEFeatures", "ViTFeatures", "load_lpips"]

CACHED = "alexnet-owt-*.pth"
"""AlexNet's weights in torch's cache."""
SMALLEST_LPIPS = 31
"""Least side in pixels of images that AlexNet takes."""


@functools.cache
def load_lpips(fetch: bool = False) -> nn.Module | None:
    """The LPIPS metric, or None if AlexNet's weights are not in torch's cache and ``fetch`` is false.

    Raises:
        OSError: If they can't be fetched.
    """
    if not fetch and not list((Path(torch.hub.get_dir()) / "checkpoints").glob(CACHED)):
        return None
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity(net_type="alex")


class Features(nn.Module):
    r"""The base of feature networks.

    Args:
        gamma_scale: Factor of ``gamma`` in the loop of RLSD, above 0. The denoiser removes less of a step in pixels or
            latents than of a step in a vision transformer's features, so these need a smaller factor.
    """

    of_latents = False
    """Whether these are features of the latents instead of the decoded images."""

    @typed
    def __init__(self, gamma_scale: float = 1.0) -> None:
        super().__init__()
        require_positive(gamma_scale=gamma_scale)
        self.gamma_scale = gamma_scale

    def forward(self, z: Tensor, images: Tensor) -> Tensor:
        """Features of latents and their decoded images, with shape :math:`(N, D)`."""
        raise TypeError(f"{type(self).__name__} must define forward(z, images)")


class PixelFeatures(Features):
    """The decoded image itself, flattened."""

    @typed
    def __init__(self, gamma_scale: float = 0.1) -> None:
        super().__init__(gamma_scale)

    def forward(self, z: Tensor, images: Tensor) -> Tensor:
        return images.flatten(1)


class LatentFeatures(Features):
    """The latent itself, flattened; needs no gradient through the decoder."""

    of_latents = True

    @typed
    def __init__(self, gamma_scale: float = 0.1) -> None:
        super().__init__(gamma_scale)

    def forward(self, z: Tensor, images: Tensor) -> Tensor:
        return z.flatten(1)


class VAEFeatures(Features):
    """Activations of the encoder of a diffusion pipeline's VAE after each of its resolutions.

    Half the squared distance of two images' features is the cosine distance of their activations, a mean over pixels and
    a sum over resolutions. This is LPIPS with the encoder in place of AlexNet and without learned weights.

    Args:
        pretrained: A local folder in the diffusers format with a ``vae``, or the name of a model on the hub.
        variant: Variant of the weights, such as ``fp16``; None: those without one, or the only one in a folder.
        local_files_only: Never download from the hub.
        gamma_scale: See :class:`Features`.

    Raises:
        InputError: If there is no such network, or its files lack weights of the encoder.
    """

    @typed
    def __init__(
        self,
        pretrained: str | Path,
        variant: str | None = None,
        local_files_only: bool = False,
        gamma_scale: float = 0.3,
    ) -> None:
        super().__init__(gamma_scale)
        # these take seconds to import, and pixels and latents don't need them
        from diffusers import AutoencoderKL

        from rlsd_lightning.priors.loading.folders import pipeline_folder, variant_of

        folder = Path(pretrained)
        if folder.is_dir():
            folder = pipeline_folder(folder)
            if variant is None and (folder / "vae").is_dir():
                variant = variant_of(folder, ["vae"], allow_pickle=False)
        try:
            vae, found = AutoencoderKL.from_pretrained(
                str(folder) if folder.is_dir() else pretrained,
                subfolder="vae",
                variant=variant,
                use_safetensors=True,
                local_files_only=local_files_only,
                low_cpu_mem_usage=False,  # the other way needs accelerate
                output_loading_info=True,
            )
            require_all_weights(found["missing_keys"], "encoder.")
        except Exception as error:  # diffusers and the formats' readers raise errors of many kinds
            raise InputError(
                f"pretrained must be a diffusers folder with a vae in safetensors, or a model's name, got "
                f"'{pretrained}' ({first_line(error)}); {fetch_remedy(pretrained)}, or choose PixelFeatures"
            ) from error
        self.encoder = vae.encoder
        self.eval().requires_grad_(False)

    def forward(self, z: Tensor, images: Tensor) -> Tensor:
        return _perceptual((seen, 1.0) for seen in self._activations(images))

    def _activations(self, images: Tensor) -> Iterable[Tensor]:
        seen = self.encoder.conv_in(images.expand(-1, 3, -1, -1))
        for block in self.encoder.down_blocks:
            seen = block(seen)
            yield seen


class LPIPSFeatures(Features):
    """AlexNet's activations with the learned weights of LPIPS: the squared distance of features is the LPIPS of the images.

    Args:
        local_files_only: Take AlexNet's weights from torch's cache only.
        gamma_scale: See :class:`Features`.

    Raises:
        InputError: If AlexNet's weights are not in torch's cache and can't be fetched, or an image is below 31x31 pixels.

    References:
        | The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (Zhang et al., 2018)
        | https://arxiv.org/abs/1801.03924
    """

    @typed
    def __init__(self, local_files_only: bool = False, gamma_scale: float = 0.3) -> None:
        super().__init__(gamma_scale)
        try:
            lpips = load_lpips(fetch=not local_files_only)
            reason = "are not in torch's cache"
        except OSError as error:
            lpips, reason = None, f"can't be fetched ({error})"
        if lpips is None:
            raise InputError(
                f"LPIPSFeatures expects AlexNet's weights, which {reason}; copy torchvision's {CACHED} to "
                f"{torch.hub.get_dir()}/checkpoints, or choose PixelFeatures"
            )
        self.lpips = copy.deepcopy(lpips.net)  # the metric is shared, and may be on another device
        self.eval().requires_grad_(False)

    def forward(self, z: Tensor, images: Tensor) -> Tensor:
        if min(images.shape[-2:]) < SMALLEST_LPIPS:
            raise InputError(
                f"LPIPSFeatures expects images of at least {SMALLEST_LPIPS}x{SMALLEST_LPIPS} pixels, got "
                f"{images.shape[-1]}x{images.shape[-2]}; choose PixelFeatures or VAEFeatures"
            )
        activations = self.lpips.net(self.lpips.scaling_layer(images))
        weights = [linear.model[-1].weight.flatten()[:, None, None] for linear in self.lpips.lins]
        return _perceptual(zip(activations, weights, strict=True))


class ViTFeatures(Features):
    """The class token of a vision transformer from a transformers folder: DINO, or the embedded one for faces.

    Images in [-1, 1] are its input as they are, as in the official code, whatever DINO's own normalisation.

    Args:
        pretrained: A local folder, or the name of a model on the hub such as ``facebook/dino-vits16``.
        image_size: Height and width that images are resized to; the network's own if left out, 0 for no resizing
            (positional encodings are then interpolated, as the official code does at 512).
        local_files_only: Never download from the hub.
        gamma_scale: See :class:`Features`.

    Raises:
        InputError: If there is no such network.

    References:
        | Emerging Properties in Self-Supervised Vision Transformers (Caron et al., 2021)
        | https://arxiv.org/abs/2104.14294
    """

    @typed
    def __init__(
        self,
        pretrained: str | Path,
        image_size: int | None = None,
        local_files_only: bool = False,
        gamma_scale: float = 1.0,
    ) -> None:
        super().__init__(gamma_scale)
        # transformers takes a second to import, and pixels and latents don't need it
        from transformers import ViTModel

        try:
            self.vit, found = ViTModel.from_pretrained(
                pretrained, add_pooling_layer=False, local_files_only=local_files_only, output_loading_info=True
            )
            require_all_weights(found["missing_keys"])
        except Exception as error:  # transformers and the formats' readers raise errors of many kinds
            kind = "folder" if Path(pretrained).exists() else "folder or model name"
            raise InputError(
                f"pretrained must be a {kind} of a transformers ViTModel, got '{pretrained}' ({first_line(error)}); "
                f"{fetch_remedy(pretrained)}"
            ) from error
        self.image_size = self.vit.config.image_size if image_size is None else image_size
        self.eval().requires_grad_(False)

    def forward(self, z: Tensor, images: Tensor) -> Tensor:
        images, size = images.expand(-1, 3, -1, -1), self.image_size  # a grey image has one channel
        if size and tuple(images.shape[-2:]) != (size, size):
            images = interpolate(images, size=(size, size), mode="bicubic", antialias=True)
        return self.vit(pixel_values=images, interpolate_pos_encoding=size == 0).last_hidden_state[:, 0]


def _perceptual(layers: Iterable[tuple[Tensor, Tensor | float]]) -> Tensor:
    r"""Vectors :math:`f` with :math:`\|f_i - f_j\|^2 = \sum_l \mathrm{mean}_p \sum_c w_{lc} (\hat a_{lpc,i} - \hat a_{lpc,j})^2`.

    Activations :math:`a_l`, with shape (N, C, H, W), are scaled to length one at every pixel :math:`p`; weights
    :math:`w_l` have shape (C, 1, 1).
    """
    parts = []
    for seen, weight in layers:
        seen = at_least_float32(seen)  # squares of half precision's activations overflow
        unit = seen * torch.rsqrt(seen.square().sum(dim=1, keepdim=True) + 1e-8)
        parts.append((unit * (weight / seen[0, 0].numel()) ** 0.5).flatten(1))
    return torch.cat(parts, dim=1)
