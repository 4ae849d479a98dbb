r"""Features :math:`\phi` in which the kernel compares particles.

Each is a module called with latents and decoded images that returns one vector per particle, with shape
:math:`(N, D)`, differentiably. One that does not look at the images may say so with ``needs_images = False``, and then
gets None instead of them, and all particles at once. Its ``strength``, 1 if it has none, multiplies relative repulsion while
particles are sampled, so that the same gamma suits all: of a step in pixels or latents the denoiser keeps far more than of
one in a vision transformer's features, which is mostly texture that no clean image has.
"""

from pathlib import Path

from torch import Tensor, nn
from torch.nn.functional import interpolate

from rlsd_lightning.errors import InputError

__all__ = ["LatentFeatures", "PixelFeatures", "ViTFeatures"]


class PixelFeatures(nn.Module):
    """The decoded image itself, flattened."""

    strength = 0.1

    def forward(self, z: Tensor, images: Tensor) -> Tensor:
        return images.flatten(1)


class LatentFeatures(nn.Module):
    """The latent itself, flattened; needs no derivative of the decoder."""

    needs_images = False
    """Every process has all latents, but decodes its own only: these features need not be exchanged."""
    strength = 0.1

    def forward(self, z: Tensor, images: Tensor | None = None) -> Tensor:
        return z.flatten(1)


class ViTFeatures(nn.Module):
    """The class token of a vision transformer from a transformers folder: DINO, or the embedded one for faces.

    Args:
        pretrained: A local folder, or the name of a model on the hub such as ``facebook/dino-vits16``.
        image_size: Height and width that images are resized to; the network's own if left out, 0 for no resizing
            (positional encodings are then interpolated, as the official code does at 512).
        local_files_only: Never reach for the hub.

    Raises:
        InputError: If there is no such network.

    References:
        | Emerging Properties in Self-Supervised Vision Transformers (Caron et al., 2021)
        | https://arxiv.org/abs/2104.14294
    """

    def __init__(self, pretrained: str, image_size: int | None = None, local_files_only: bool = False) -> None:
        super().__init__()
        # transformers takes a second to import, and pixels and latents don't need it
        from transformers import ViTModel

        try:
            self.vit = ViTModel.from_pretrained(pretrained, add_pooling_layer=False, local_files_only=local_files_only)
        except (OSError, ValueError) as error:
            kind = "folder" if Path(pretrained).exists() else "folder or model name"
            raise InputError(
                f"features.pretrained must be a {kind} of a transformers ViTModel, got '{pretrained}'; "
                f"check the path, or fetch it with `hf download {pretrained}`"
            ) from error
        self.image_size = self.vit.config.image_size if image_size is None else image_size
        self.eval().requires_grad_(False)

    def forward(self, z: Tensor, images: Tensor) -> Tensor:
        size = self.image_size
        if size and tuple(images.shape[-2:]) != (size, size):
            images = interpolate(images, size=(size, size), mode="bicubic", antialias=True)
        return self.vit(pixel_values=images, interpolate_pos_encoding=size == 0).last_hidden_state[:, 0]
