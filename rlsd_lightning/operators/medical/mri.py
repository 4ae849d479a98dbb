r"""Magnetic resonance imaging of real images, with one or several coils.

The transform is centred and orthonormal: :math:`y = M F S x` with ``F = fftshift(fft2(ifftshift(x), norm="ortho"))``,
the mask :math:`M` of measured frequencies and the coils' sensitivities :math:`S`. Frequency zero lies at row
:math:`H // 2` and column :math:`W // 2`.
"""

import logging
import math

import torch
from deepinv.physics import MRI, LinearPhysics, MultiCoilMRI
from deepinv.physics.generator import GaussianMaskGenerator
from torch import Tensor, nn

from rlsd_lightning.errors import InputError
from rlsd_lightning.operators.medical.kspace import (
    check_centre,
    complex_kspace,
    load_coil_maps,
    load_frequencies,
)
from rlsd_lightning.operators.medical.scans import check_white, in_image_units, require_finite
from rlsd_lightning.operators.noise import make_noise

__all__ = ["CoilMRI", "RealMRI", "mri"]

log = logging.getLogger(__name__)

CG_STEPS = 30
"""Conjugate gradient steps of one proximal step with several coils, which starts at D(z)."""
SLACK = 1.1
"""How far the norm of a measured k-space may exceed that of an image in [-1, 1], for noise."""
IMAGINARY = 0.25
"""Share of the k-space's norm that no real image explains, above which there is a warning."""


class CoilMRI(LinearPhysics):
    r"""Magnetic resonance imaging of real images, by several coils.

    Measurements have shape :math:`(N, 2 C, K, H, W)` for :math:`C` channels and :math:`K` coils, with the real and
    imaginary parts of every channel; :math:`(N, 2 C, H, W)` without sensitivities.

    Args:
        mask: Mask of measured frequencies, with shape :math:`(H, W)`.
        coil_maps: Complex sensitivities of the coils, with shape :math:`(K, H, W)`; None for an even one.
        channels: Number :math:`C` of the images' channels.
        noise_model: Noise of the measured values.
        white: Value of scanned images that is white; None for scans of images in [-1, 1].
        drawn: Whether the mask was drawn, so that a measured k-space has another.
    """

    def __init__(
        self,
        mask: Tensor,
        coil_maps: Tensor | None,
        channels: int,
        noise_model: nn.Module,
        white: float | None = None,
        drawn: bool = False,
    ) -> None:
        # a fixed number of steps: a tolerance would make the images of a batch depend on each other
        super().__init__(noise_model=noise_model, max_iter=CG_STEPS, tol=1e-10, implicit_backward_solver=False)
        self.complex = MRI(mask=mask) if coil_maps is None else MultiCoilMRI(mask=mask, coil_maps=coil_maps)
        self.coils = None if coil_maps is None else len(coil_maps)
        self.channels, self.white, self.drawn = channels, white, drawn
        self.register_buffer("mask", mask[None, None])

    def A(self, x: Tensor, **kwargs) -> Tensor:  # noqa: N802
        pairs = torch.stack((x, torch.zeros_like(x)), dim=2)  # (N, C, 2, H, W)
        return self.complex.A(pairs.flatten(0, 1)).unflatten(0, x.shape[:2]).flatten(1, 2)

    def noise(self, x: Tensor, **kwargs) -> Tensor:
        return super().noise(x, **kwargs) * self.mask  # only measured frequencies are noisy

    def A_adjoint(self, y: Tensor, **kwargs) -> Tensor:  # noqa: N802
        pairs = y.unflatten(1, (-1, 2))
        return self.complex.A_adjoint(pairs.flatten(0, 1))[:, 0].unflatten(0, pairs.shape[:2])

    def from_scan(self, values: Tensor) -> tuple[Tensor, LinearPhysics]:
        """Measurement of a k-space, and its operator.

        See :class:`~rlsd_lightning.operators.medical.scans.ReadsScans` and
        :func:`~rlsd_lightning.operators.medical.kspace.complex_kspace`.
        """
        kspace = complex_kspace(values, self.channels, self.coils, *self.mask.shape[-2:])
        physics = self._with_mask_of(kspace)
        kspace = torch.where(physics.mask[0, 0] > 0, kspace, 0)
        require_finite(kspace, "a k-space")
        check_centre(kspace)
        scan = torch.view_as_real(kspace).movedim(-1, 1).flatten(0, 1)[None]
        of_white = physics.A(torch.ones(1, self.channels, *self.mask.shape[-2:]))
        y = in_image_units(scan, of_white, self.white)
        physics._check(y, y if self.white is None else y + of_white)
        return y, physics

    def _with_mask_of(self, kspace: Tensor) -> LinearPhysics:
        """The operator with the mask of a k-space: its own if a file has it, else where values are not zero."""
        seen = (kspace != 0).flatten(0, -3).any(dim=0)
        if not seen.any():
            raise InputError("a k-space with values is expected, got zeros only")
        share = 100 * seen.float().mean().item()
        if self.drawn:
            log.info("k-space: measured are the %.1f %% of its frequencies that are not zero; mask sets others", share)
            maps = None if self.coils is None else self.complex.coil_maps[0]
            return type(self)(seen.float(), maps, self.channels, self.noise_model, self.white)
        both = 100 * (seen & (self.mask[0, 0] > 0)).float().mean().item()
        if not both:
            raise InputError(
                f"the mask measures {100 * self.mask.mean():.1f} % of the frequencies, but the k-space is zero at all of "
                "them; apply numpy.fft.fftshift to one of the two, as frequency zero is expected in the middle"
            )
        if both < share:
            log.warning("k-space: %.1f %% of its frequencies have values but are hidden by mask", share - both)
        return self

    def _check(self, y: Tensor, scan: Tensor) -> None:
        """Checks the size of the values and their phase.

        Args:
            y: The measurement in units of an image in [-1, 1].
            scan: The measurement, for an image in [0, 2] if white is given.
        """
        rows, columns = self.mask.shape[-2:]
        maps = None if self.coils is None else self.complex.coil_maps[0]
        best = 1.0 if maps is None else maps.abs().square().sum(dim=0).max().sqrt().item()
        largest, norm = best * math.sqrt(rows * columns), y[:, :2].norm().item()
        if norm > SLACK * largest:
            raise InputError(
                f"a k-space with a norm of at most {largest:.4g} is expected, that of images in [-1, 1] under an "
                f"orthonormal transform, got {norm:.4g}; set white to the largest value of the scanned image (now "
                f"{self.white}), and divide a k-space of numpy.fft.fft2 by sqrt(height * width)"
            )
        unexplained = (y - self.A(self.A_dagger(y))).norm() / scan.norm()
        if unexplained > IMAGINARY:
            log.warning(
                "k-space: no real image explains %.0f %% of it (by norm); an image with a phase needs the phase in "
                "coil_maps, see docs/scans.md",
                100 * unexplained,
            )


class RealMRI(CoilMRI):
    """Magnetic resonance imaging of real images by one coil of even sensitivity."""

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float, **kwargs) -> Tensor:
        """Closed form: for real images a frequency's weight is the mean of the mask there and at its negative."""
        mask = torch.fft.ifftshift(self.mask, dim=(-2, -1))
        seen = 0.5 * (mask + mask.flip(-2, -1).roll((1, 1), dims=(-2, -1)))[..., : mask.shape[-1] // 2 + 1]
        spectrum = torch.fft.rfft2(z + gamma * self.A_adjoint(y)) / (1 + gamma * seen)
        return torch.fft.irfft2(spectrum, s=z.shape[-2:])


def mri(
    image_shape: tuple[int, ...],
    acceleration: int = 4,
    operator_seed: int = 0,
    mask: str | None = None,
    coil_maps: str | None = None,
    white: float | None = None,
    sigma: float = 0.001,
    noise: str = "gaussian",
) -> CoilMRI:
    """Some frequencies of the Fourier transform, for each channel; see this module for the conventions.

    Args:
        acceleration: Reciprocal of the share of columns that are measured, from 1 (all) to half the width; more of them
            lie near the centre. Without effect on a k-space from a file.
        operator_seed: Seed of the choice of columns.
        mask: File of the measured frequencies, see
            :func:`~rlsd_lightning.operators.medical.kspace.load_frequencies`; None: drawn, or where a k-space from a
            file is not zero.
        coil_maps: File of the coils' sensitivities, see
            :func:`~rlsd_lightning.operators.medical.kspace.load_coil_maps`; None: one coil of even sensitivity.
        white: Value of scanned images that is white, above 0; None for a k-space of an image in [-1, 1].
        sigma: Standard deviation of the noise of real and imaginary parts, for an image in [-1, 1].

    Raises:
        InputError: If the acceleration or white is out of range, or a file does not fit.
    """
    channels, height, width = image_shape
    check_white(white)
    if not 1 <= acceleration <= width // 2:
        raise InputError(f"acceleration must be from 1 to {width // 2} for a width of {width}, got {acceleration}")
    if mask is not None:
        seen = load_frequencies(mask, height, width)
        log.info("mask: %.1f %% of the frequencies are measured", 100 * seen.mean())
    elif acceleration == 1:
        seen = torch.ones(height, width)
    else:
        generator = torch.Generator().manual_seed(operator_seed)
        seen = GaussianMaskGenerator((2, height, width), acceleration=acceleration, rng=generator).step()["mask"][0, 0]
    maps = None if coil_maps is None else load_coil_maps(coil_maps, height, width)
    kind = RealMRI if maps is None else CoilMRI
    return kind(seen, maps, channels, make_noise(noise, sigma, of_images=False), white, drawn=mask is None)
