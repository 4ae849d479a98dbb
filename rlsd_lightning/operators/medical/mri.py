r"""Magnetic resonance imaging of real images, with one or several coils.

The transform is centred and orthonormal: :math:`y = M F S x` with ``F = fftshift(fft2(ifftshift(x), norm="ortho"))``,
the mask :math:`M` of measured frequencies and the coils' sensitivities :math:`S`. Frequency zero lies at row
:math:`H // 2` and column :math:`W // 2`.
"""

import logging
import math
from pathlib import Path

import numpy as np
import torch
from deepinv.physics import MRI, MultiCoilMRI, Physics
from deepinv.physics.generator import GaussianMaskGenerator
from torch import Tensor, nn

from rlsd_lightning.errors import InputError, require
from rlsd_lightning.operators.medical.kspace import (
    check_centre,
    complex_kspace,
    in_single_precision,
    load_coil_maps,
    load_frequencies,
)
from rlsd_lightning.operators.medical.scans import (
    Scan,
    check_white,
    in_image_units,
    log_noise_unit,
)
from rlsd_lightning.operators.noise import make_noise
from rlsd_lightning.reading.values import check_finite
from rlsd_lightning.signatures import typed

__all__ = ["CoilMRI", "RealMRI", "mri"]

log = logging.getLogger(__name__)

CG_STEPS = 30
"""Conjugate gradient steps of one proximal step with several coils, which starts at D(z)."""
SLACK = 1.1
"""Largest norm of a measured k-space, relative to the largest of images in [-1, 1]; the excess is noise."""
UNEXPLAINED = 0.25
"""Share of the k-space's norm that no real image explains, above which there is a warning."""


class CoilMRI(Scan):
    r"""Magnetic resonance imaging of real images, by several coils.

    Measurements have shape :math:`(N, 2 C, K, H, W)` for :math:`C` channels and :math:`K` coils, with the real and
    imaginary parts of every channel; :math:`(N, 2, K, H, W)` of grey; and no axis of coils without sensitivities.

    Args:
        mask: Mask of measured frequencies, with shape :math:`(H, W)`.
        coil_maps: Complex sensitivities of the coils, with shape :math:`(K, H, W)`; None for an even one.
        channels: As in :class:`~rlsd_lightning.operators.medical.Scan`, like ``noise_model``, ``white`` and ``grey``.
        drawn: Whether the mask is a random one. That of a measured k-space is then where its values are not zero.
    """

    def __init__(
        self,
        mask: Tensor,
        coil_maps: Tensor | None,
        channels: int,
        noise_model: nn.Module,
        white: float | None = None,
        grey: bool = False,
        drawn: bool = False,
    ) -> None:
        super().__init__(noise_model, CG_STEPS, channels, white, grey)
        self.complex = MRI(mask=mask) if coil_maps is None else MultiCoilMRI(mask=mask, coil_maps=coil_maps)
        self.coils = None if coil_maps is None else len(coil_maps)
        self.drawn = drawn
        self.register_buffer("mask", mask[None, None])

    def A(self, x: Tensor, **kwargs) -> Tensor:  # noqa: N802
        x = self.measured_channels(x)
        pairs = torch.stack((x, torch.zeros_like(x)), dim=2)  # (N, C, 2, H, W)
        return self.complex.A(pairs.flatten(0, 1)).unflatten(0, x.shape[:2]).flatten(1, 2)

    def noise(self, x: Tensor, **kwargs) -> Tensor:
        return super().noise(x, **kwargs) * self.mask  # only measured frequencies are noisy

    def A_adjoint(self, y: Tensor, **kwargs) -> Tensor:  # noqa: N802
        pairs = y.unflatten(1, (-1, 2))
        x = self.complex.A_adjoint(pairs.flatten(0, 1))[:, 0].unflatten(0, pairs.shape[:2])
        return self.measured_channels_adjoint(x)

    def from_array(self, values: np.ndarray) -> Tensor:
        """Measurements of an array of k-spaces, with shape :math:`(n, 2, K, H, W)` unless every channel was measured.

        See :func:`~rlsd_lightning.operators.medical.kspace.complex_kspace` for the axes. Frequencies that the mask hides are
        zero.

        Raises:
            InputError: If the array has other axes, or values that no image in [-1, 1] gives.
        """
        channels, size = 1 if self.grey else self.channels, self.mask.shape[-2:]
        scans = complex_kspace(in_single_precision(values), channels, self.coils or 1, *size)
        return torch.cat([self._measurement(scan if self.coils else scan[:, 0]) for scan in scans])

    def for_measurement(self, y: Tensor) -> Physics:
        """The operator of a measurement: of grey, and with the mask of what is not zero if this one was drawn."""
        grey = y.shape[1] == 2
        if self.drawn:
            return self._changed(grey, (y != 0).flatten(0, -3).any(dim=0))
        return self.in_grey if grey and not self.grey else self

    def _changed(self, grey: bool, seen: Tensor) -> "CoilMRI":
        maps = None if self.coils is None else self.complex.coil_maps[0]
        return type(self)(seen.float(), maps, self.channels, self.noise_model, self.white, grey)

    def _measurement(self, kspace: Tensor) -> Tensor:
        """The measurement of a complex k-space with shape (C, K, H, W), or (C, H, W) without coils; C is 1 for grey."""
        seen, grey = self._measured(kspace), len(kspace) == 1
        physics = self._changed(grey, seen if self.drawn else self.mask[0, 0])
        kspace = torch.where(physics.mask[0, 0] > 0, kspace, 0)
        check_finite(kspace.numpy(), "k-space")
        check_centre(kspace)
        scan = torch.view_as_real(kspace).movedim(-1, 1).flatten(0, 1)[None]
        of_white = physics.A(torch.ones(1, self.channels, *self.mask.shape[-2:]))
        y = in_image_units(scan, of_white, self.white)
        physics.check_magnitude(y)
        physics.warn_of_unexplained(y, y if self.white is None else y + of_white)
        return y

    def _measured(self, kspace: Tensor) -> Tensor:
        """Frequencies with values other than zero, with shape (H, W).

        Raises:
            InputError: If there are none, or the mask hides them all.
        """
        seen = (kspace != 0).flatten(0, -3).any(dim=0)
        if not seen.any():
            raise InputError(
                "a k-space with values other than zero is expected, got zeros only; check how it was saved"
            )
        share = 100 * seen.float().mean().item()
        if self.drawn:
            log.info("k-space: %.1f %% of the frequencies are not zero and count as measured; mask sets others", share)
            return seen
        within = 100 * (seen & (self.mask[0, 0] > 0)).float().mean().item()
        if not within:
            raise InputError(
                f"a k-space with values where mask measures is expected, {100 * self.mask.mean():.1f} % of the frequencies, "
                "got zeros at all of them; apply numpy.fft.fftshift to the one whose frequency zero is not in the middle"
            )
        if share - within > 0.05:
            log.warning("k-space: mask hides %.1f %% of the frequencies, which have values", share - within)
        return seen

    def check_magnitude(self, y: Tensor) -> None:
        """Checks that images in [-1, 1] give values of this size.

        Raises:
            InputError: If they don't.
        """
        rows, columns = self.mask.shape[-2:]
        sensitivity = self.complex.coil_maps[0].abs().square().sum(dim=0).max().sqrt().item() if self.coils else 1.0
        largest, norm = sensitivity * math.sqrt(rows * columns), y[:, :2].norm().item()
        if norm > SLACK * largest:
            raise InputError(
                f"a k-space of norm at most {largest:.4g} is expected, that of images in [-1, 1] under an orthonormal "
                f"transform, got {norm:.4g} with white={self.white}; set white to the largest value of the scanned image, "
                f"or divide by sqrt(height * width) = {math.sqrt(rows * columns):.4g} what numpy.fft.fft2 gave"
            )

    def warn_of_unexplained(self, y: Tensor, scan: Tensor) -> None:
        """Warns of a k-space that no real image explains.

        Args:
            y: The measurement in units of an image in [-1, 1].
            scan: The k-space in the same units, without an offset.
        """
        unexplained = ((y - self.A(self.A_dagger(y))).norm() / scan.norm()).item()
        if unexplained > UNEXPLAINED:
            log.warning(
                "k-space: no real image explains %.0f %% of it (by norm); put the image's phase into coil_maps, see "
                "docs/scans.md",
                100 * unexplained,
            )


class RealMRI(CoilMRI):
    """Magnetic resonance imaging of real images by one coil of even sensitivity."""

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float, **kwargs) -> Tensor:
        """Closed form, frequency by frequency."""
        weight = gamma / self.channels if self.grey else gamma  # the mean of the channels has this square norm
        spectrum = torch.fft.rfft2(self.as_seen(z) + gamma * self.A_adjoint(y)) / (1 + weight * self._seen())
        return z - self.as_seen(z) + torch.fft.irfft2(spectrum, s=z.shape[-2:])

    def A_dagger(self, y: Tensor, **kwargs) -> Tensor:  # noqa: N802
        """Closed form; what was not measured is zero."""
        seen = self._seen()
        weight = self.channels if self.grey else 1.0
        spectrum = torch.fft.rfft2(weight * self.A_adjoint(y)) * torch.where(seen > 0, 1 / seen.clamp_min(0.5), 0.0)
        return torch.fft.irfft2(spectrum, s=self.mask.shape[-2:])

    def _seen(self) -> Tensor:
        """Share of a real image's frequency that is measured: 0, 1/2 or 1, the mean of the mask there and at its negative."""
        mask = torch.fft.ifftshift(self.mask, dim=(-2, -1))
        return 0.5 * (mask + mask.flip(-2, -1).roll((1, 1), dims=(-2, -1)))[..., : mask.shape[-1] // 2 + 1]


@typed
def mri(
    image_shape: tuple[int, int, int],
    acceleration: int = 4,
    operator_seed: int = 0,
    mask: str | Path | None = None,
    coil_maps: str | Path | None = None,
    grey: bool = False,
    white: float | None = None,
    sigma: float = 0.001,
    noise: str = "gaussian",
) -> CoilMRI:
    """Some frequencies of the Fourier transform; see this module for the conventions.

    Args:
        acceleration: Reciprocal of the share of columns that are measured, from 1 (all) to half the width; more of them
            lie near the centre. Without effect on a k-space from a file.
        operator_seed: Seed of the choice of columns.
        mask: File of the measured frequencies, see
            :func:`~rlsd_lightning.operators.medical.kspace.load_frequencies`; None: drawn, or where a k-space from a
            file is not zero.
        coil_maps: File of the coils' sensitivities, see
            :func:`~rlsd_lightning.operators.medical.kspace.load_coil_maps`; None: one coil of even sensitivity.
        grey: Whether the mean of the channels is measured, as by a scanner, instead of every channel. A k-space from a
            file decides itself.
        white: Value of scanned images that is white, above 0; None for a k-space of an image in [-1, 1].
        sigma: Standard deviation of the noise of real and imaginary parts, for an image in [-1, 1].

    Raises:
        InputError: If the acceleration or white is out of range, or a file does not fit.
    """
    channels, height, width = image_shape
    check_white(white)
    most = width // 2
    require(lambda value: 1 <= value <= most, f"from 1 to {most} for a width of {width}", acceleration=acceleration)
    if mask is not None:
        seen = load_frequencies(mask, height, width)
        log.info("mask: %.1f %% of the frequencies are measured", 100 * seen.mean())
    elif acceleration == 1:
        seen = torch.ones(height, width)
    else:
        generator = torch.Generator().manual_seed(operator_seed)
        # deepinv's share of central columns, but at most 0.6 of those that are measured
        central = min(0.08 if acceleration < 8 else 0.04, 0.6 / acceleration)
        drawn = GaussianMaskGenerator((2, height, width), acceleration, central, rng=generator)
        seen = drawn.step()["mask"][0, 0]
    log_noise_unit(white)
    maps = None if coil_maps is None else load_coil_maps(coil_maps, height, width)
    kind = RealMRI if maps is None else CoilMRI
    return kind(seen, maps, channels, make_noise(noise, sigma, of_images=False), white, grey, drawn=mask is None)
