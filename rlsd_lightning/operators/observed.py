"""What an operator sees: pixels of the image, and the values of a measurement that were measured at all."""

from deepinv.physics import Demosaicing, Inpainting, Physics
from torch import Tensor

from rlsd_lightning.functional.metrics import residual_rms
from rlsd_lightning.operators.compressive import MaskedSinglePixelCamera
from rlsd_lightning.operators.likelihood import measured, noise_std
from rlsd_lightning.operators.medical import RealMRI

__all__ = ["MASKED", "data_fit", "observed_pixels"]

MASKED = (Inpainting, RealMRI, MaskedSinglePixelCamera)
"""Operators whose measurement has zeros where nothing was measured."""


def observed_pixels(physics: Physics, image_shape: tuple[int, ...]) -> Tensor | None:
    """Which values of an image the operator passes on as they are, if it hides some and changes none.

    Returns:
        A boolean tensor of the image's shape, or None for operators that are no masks.
    """
    if not isinstance(physics, Inpainting | Demosaicing):
        return None
    return (physics.mask[0] > 0).expand(image_shape)


def data_fit(physics: Physics, images: Tensor, y: Tensor) -> dict[str, float | None]:
    r"""How far the particles' measurements :math:`A(x)` are from :math:`y`, in units of the noise's deviation.

    Args:
        physics: The operator and its noise.
        images: The particles, with shape :math:`(N, C, H, W)`.
        y: The measurement, with shape :math:`(1, \dots)`.

    Returns:
        ``residual_sigmas``, the root mean square of :math:`(y - A(x)) / s` over the values that were measured, about 1
        for the truth; ``within_3_sigmas``, the share of these values with :math:`|y - A(x)| \le 3 s`. For Poisson noise
        :math:`s^2` is its mean variance. None where no noise is known.
    """
    at_particles = measured(physics, images).expand(len(images), *y.shape[1:])
    if isinstance(physics, MASKED) and physics.mask is not None:
        seen = (physics.mask > 0).expand(y.shape)[0]
        at_particles, y = at_particles[:, seen], y[:, seen]
    std = noise_std(physics.noise_model, y) if y.numel() else 0.0
    if not std:
        return {"residual_sigmas": None, "within_3_sigmas": None}
    return {
        "residual_sigmas": residual_rms(at_particles, y).item() / std,
        "within_3_sigmas": ((y - at_particles).abs() <= 3 * std).float().mean().item(),
    }
