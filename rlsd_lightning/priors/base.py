"""The contract of a prior: a frozen denoiser of latents, between an encoder and a decoder."""

import copy
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from rlsd_lightning.errors import InputError
from rlsd_lightning.functional.schedules import PREDICTION_TYPES, clean_and_noise
from rlsd_lightning.priors.measured.calibration import Calibration, measure, saved_calibration, size_name
from rlsd_lightning.priors.tiles import in_tiles

__all__ = ["Prior"]

log = logging.getLogger(__name__)


class Prior(nn.Module, ABC):
    r"""A latent diffusion prior.

    Subclasses implement :meth:`network`, and :meth:`encode` and :meth:`decode` if the latent is not the image itself.
    They call ``self.freeze()`` at the end of their constructor.

    Args:
        alphas: Signal levels :math:`\alpha_t`, falling, with shape :math:`(T,)`.
        sigmas: Noise levels :math:`\sigma_t`, rising, with the same shape.
        latent_shape: Shape of one latent.
        image_shape: Shape of one image; images are in [-1, 1].
        prediction_type: Output of the network: ``epsilon``, ``v_prediction``, ``sample`` or ``flow``.
        timestep_offset: Smallest timestep that the network was trained on.

    Raises:
        InputError: If the prediction type is unknown.
    """

    origin: Path | None = None
    """The checkpoint's folder, file or name on the hub, beside which its calibration is kept; None: no checkpoint."""
    computed_names: tuple[str, ...] = ("alphas", "sigmas")
    """Buffers that the prior has computed itself; every processor rounds them in its own way."""

    def __init__(
        self,
        alphas: Tensor,
        sigmas: Tensor,
        latent_shape: tuple[int, ...],
        image_shape: tuple[int, ...],
        prediction_type: str = "epsilon",
        timestep_offset: int = 1,
    ) -> None:
        super().__init__()
        if prediction_type not in PREDICTION_TYPES:
            raise InputError(f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got '{prediction_type}'")
        self.register_buffer("alphas", alphas)
        self.register_buffer("sigmas", sigmas)
        self.latent_shape = tuple(latent_shape)
        self.image_shape = tuple(image_shape)
        self.prediction_type = prediction_type
        self.timestep_offset = timestep_offset
        self.multiple: int | None = None
        """Number of pixels that must divide both sides of an image; None: images have ``image_shape`` only."""
        self.trained_size = max(image_shape[-2:])
        """Longer side in pixels of the images that the networks were trained on."""
        self.tile: int | None = None
        """Largest side in pixels that networks take in one piece; larger images are seen in tiles. None: any."""
        self.compiled: set[str] = set()
        """Names of the networks that are compiled; group normalisations then see tiles apart."""
        self.calibrations: dict[str, Calibration] = {}
        """The calibrations in use by height and width as ``64x48``; resized copies of this prior share them."""
        self.warnings: list[str] = []
        """What is suspicious about the checkpoint or the prompts, in sentences for the results."""

    @property
    def calibration(self) -> Calibration:
        """Scales that methods need: those in use, else those kept for this checkpoint, else measured on own samples.

        Raises:
            InputError: If what is kept is damaged, or own samples are not finite.
        """
        size = size_name(self.image_shape)
        if size not in self.calibrations:
            self.calibrations[size] = saved_calibration(self.origin, self.image_shape) or self._measure()
        return self.calibrations[size]

    @calibration.setter
    def calibration(self, value: Calibration) -> None:
        self.calibrations[size_name(self.image_shape)] = value

    def _measure(self) -> Calibration:
        start = time.perf_counter()
        found = measure(self)
        if self.origin is not None:
            log.info(
                "the prior's scales were measured on %d own samples in %.3g s: decoder_std=%g, image_std=%g, latent_std=%g; "
                "rlsd calibrate measures them on pictures and keeps them",
                *(found.count, time.perf_counter() - start, found.decoder_std, found.image_std, found.latent_std),
            )
        return found

    def freeze(self) -> None:
        """Switches to evaluation mode and turns off the gradients of all weights; levels are no wider than these."""
        kinds = {weight.dtype for weight in self.parameters()}
        if kinds and torch.float64 not in kinds:  # latents have the levels' type
            self.alphas, self.sigmas = self.alphas.float(), self.sigmas.float()
        self.eval().requires_grad_(False)

    def warn(self, sentence: str) -> None:
        """Logs a warning, and keeps it for the results of every measurement."""
        log.warning("%s", sentence)
        self.warnings.append(sentence)

    @property
    def stride(self) -> int:
        """Pixels to one latent, along each side."""
        return self.image_shape[-1] // self.latent_shape[-1]

    @property
    def is_tiled(self) -> bool:
        """Whether the networks see images in tiles."""
        return self.tile is not None and max(self.image_shape[-2:]) > self.tile

    def resized(self, image_shape: tuple[int, ...] | None) -> Self:
        """The same prior for images of another height and width; it shares the networks.

        Args:
            image_shape: Shape of one image; None: this prior's own.
        """
        if image_shape is None or tuple(image_shape) == self.image_shape:
            return self
        height, width = image_shape[-2:]
        resized = copy.copy(self)
        resized.image_shape = (self.image_shape[0], height, width)
        resized.latent_shape = (self.latent_shape[0], height // self.stride, width // self.stride)
        return resized

    def tiled(self, function: Callable[[Tensor], Tensor], values: Tensor, zoom: int | Fraction = 1) -> Tensor:
        """A network's output for latents (or for images, if it divides lengths by the stride), in tiles if need be.

        Args:
            function: The network, which multiplies heights and widths by ``zoom``.
            values: Its input, with shape :math:`(N, C, H, W)`.
            zoom: Length of the output over that of the input.
        """
        if not self.is_tiled:
            return function(values)
        network = None if self.compiled else self  # what is compiled does not see that others change it
        return in_tiles(function, values, self.tile if zoom < 1 else self.tile // self.stride, zoom, network)

    @property
    def num_train_timesteps(self) -> int:
        """Length of the training schedule."""
        return len(self.alphas)

    def alpha(self, t: int) -> Tensor:
        r"""Signal level :math:`\alpha_t`, with shape :math:`()`."""
        return self.alphas[t]

    def sigma(self, t: int) -> Tensor:
        r"""Noise level :math:`\sigma_t`, with shape :math:`()`."""
        return self.sigmas[t]

    def denoise(self, z_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        r"""Clean latents :math:`\hat z(z_t, t)` and the noise :math:`\hat\epsilon`, with :math:`z_t = \alpha_t \hat z + \sigma_t \hat\epsilon`.

        Args:
            z_t: Noisy latents, with shape :math:`(N, *\mathrm{latent\_shape})`.
            t: The timestep, from 0 to :math:`T - 1`.

        Returns:
            Two tensors with the shape of ``z_t``.
        """
        output = self.tiled(lambda part: self.network(part, t), z_t)
        return clean_and_noise(output, z_t, self.alpha(t), self.sigma(t), self.prediction_type)

    @abstractmethod
    def network(self, z_t: Tensor, t: int) -> Tensor:
        """The network's output, of the kind ``prediction_type``."""

    def compile_networks(self, regional: bool = False, **options: Any) -> None:
        """Compiles the networks in place, with the options of ``torch.compile``.

        Args:
            regional: Compile the denoiser's repeated blocks only, where it has some: one compilation for all of them.

        Raises:
            InputError: If the prior has none.
        """
        raise InputError(f"compile_networks: a prior with networks is expected, got {type(self).__name__}")

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images in [-1, 1]; the identity unless overridden."""
        return images

    def decode(self, z: Tensor) -> Tensor:
        """Images of latents, about in [-1, 1]; the identity unless overridden."""
        return z

    def decode_tiny(self, z: Tensor) -> Tensor:
        """Approximate images of latents by a tiny decoder; those of :meth:`decode` if the prior has none."""
        return self.decode(z)

    @property
    def has_tiny_decoder(self) -> bool:
        """Whether :meth:`decode_tiny` is another network than :meth:`decode`."""
        return False
