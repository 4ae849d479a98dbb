"""Computed tomography and magnetic resonance imaging; each colour channel is measured separately."""

import torch
from deepinv.physics import MRI, LinearPhysics, Tomography
from deepinv.physics.generator import GaussianMaskGenerator
from torch import Tensor

from rlsd_lightning.errors import InputError
from rlsd_lightning.operators.noise import make_noise

__all__ = ["RealMRI", "mri", "tomography"]

CG_STEPS = 15
"""Conjugate gradient steps of one proximal step of tomography, which starts at D(z)."""


class RealMRI(LinearPhysics):
    """Magnetic resonance imaging of real images, with a mask of measured frequencies of shape :math:`(H, W)`."""

    def __init__(self, mask: Tensor, noise_model: torch.nn.Module) -> None:
        super().__init__(noise_model=noise_model)
        self.complex = MRI(mask=mask)
        self.register_buffer("mask", mask[None, None])

    def A(self, x: Tensor, **kwargs) -> Tensor:  # noqa: N802
        pairs = torch.stack((x, torch.zeros_like(x)), dim=2)  # (N, C, 2, H, W)
        return self.complex.A(pairs.flatten(0, 1)).view(len(x), -1, *x.shape[-2:])

    def noise(self, x: Tensor, **kwargs) -> Tensor:
        return super().noise(x, **kwargs) * self.mask  # only measured frequencies are noisy

    def A_adjoint(self, y: Tensor, **kwargs) -> Tensor:  # noqa: N802
        pairs = y.reshape(-1, 2, *y.shape[-2:])
        return self.complex.A_adjoint(pairs)[:, 0].reshape(len(y), -1, *y.shape[-2:])

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
    sigma: float = 0.001,
    noise: str = "gaussian",
) -> LinearPhysics:
    """Some columns of the Fourier transform, more of them near the centre.

    Args:
        acceleration: Reciprocal of the share of columns that are measured, from 1 (all) to half the width.
        operator_seed: Seed of the choice of columns.
        sigma: Standard deviation of the noise of real and imaginary parts, under an orthonormal transform.

    Raises:
        InputError: If the acceleration is out of range.
    """
    height, width = image_shape[-2:]
    if not 1 <= acceleration <= width // 2:
        raise InputError(f"acceleration must be from 1 to {width // 2} for a width of {width}, got {acceleration}")
    if acceleration == 1:
        mask = torch.ones(height, width)
    else:
        generator = torch.Generator().manual_seed(operator_seed)
        mask = GaussianMaskGenerator((2, height, width), acceleration=acceleration, rng=generator).step()["mask"][0, 0]
    return RealMRI(mask, make_noise(noise, sigma, of_images=False))


def tomography(
    image_shape: tuple[int, ...], angles: int = 20, sigma: float = 0.001, noise: str = "gaussian"
) -> Tomography:
    """Projections along parallel rays from evenly spaced directions.

    Args:
        angles: Number of directions.
        sigma: Standard deviation of the noise, for the operator scaled to norm one.

    Raises:
        InputError: If the image is not square or there is no direction.
    """
    height, width = image_shape[-2:]
    if height != width:
        raise InputError(f"tomography needs square images, got {width}x{height}; choose a square image_size")
    if angles < 1:
        raise InputError(f"angles must be at least 1, got {angles}")
    noise_model = make_noise(noise, sigma, of_images=False)
    with torch.random.fork_rng(devices=[]):  # the norm comes from a power iteration that starts at a random image
        torch.manual_seed(0)
        # a fixed number of steps: a tolerance would make the images of a batch depend on each other
        solver = {"max_iter": CG_STEPS, "tol": 1e-10}
        return Tomography(angles=angles, img_width=width, normalize=True, noise_model=noise_model, **solver)
