r"""Out-of-distribution check of a picture: a prior's autoencoder reconstructs what it was trained on, and little else.

The figure is the error of :math:`v = D(E(u))`, compared with the same of pictures that the prior knows
(:class:`~rlsd_lightning.priors.Calibration`): :math:`\mathrm{rms}(v - u)` for a known picture :math:`u`. For measured data
:math:`u` is a particle, and what is seen counts,

.. math:: \sqrt{(\mathrm{mean} |y - A(v)|^2 - s^2) \, / \, g^2}

with the noise's standard deviation :math:`s` and the operator's gain :math:`g`, the root mean square of :math:`A` for white errors. A
prior in pixels has no autoencoder, and gives no warning.
"""

import torch
from deepinv.physics import Physics
from torch import Tensor

from rlsd_lightning.functional.losses import at_least_float32
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.operators import NullOperator
from rlsd_lightning.operators.likelihood import measured, noise_std, observed_values
from rlsd_lightning.priors import Prior
from rlsd_lightning.priors.measured import reconstruction_error
from rlsd_lightning.resources import embedded

__all__ = ["unknown_picture"]

UNKNOWN = 2.0
"""Least error of an unknown picture, over the 95 % quantile of known ones."""
SMALL = 0.05
"""Size of the errors that an operator's gain is measured with."""


@torch.no_grad()
def unknown_picture(prior: Prior, measurement: Measurement, images: Tensor | None = None) -> str | None:
    """Warning of a picture that is out of a prior's distribution, with the remedy; None for others.

    Args:
        prior: The prior.
        measurement: The measurement, with the clean picture unless there are ``images``.
        images: Particles in [-1, 1], with shape :math:`(N, C, H, W)`, of which one is looked at.
    """
    if prior.latent_shape == prior.image_shape or isinstance(measurement.physics, NullOperator):
        return None
    image = (measurement.truth if images is None else images[:1]).to(prior.alphas)
    error, reconstructed = reconstruction_error(prior, image)
    seen = error.item() if images is None else _seen_error(measurement.physics, measurement.y, reconstructed)
    largest = prior.calibration.largest_error
    if seen is None or seen <= UNKNOWN * largest:
        return None
    others = "" if prior.origin == embedded("priors/photos") else "prior=photos, or "
    return (
        f"the prior does not know such pictures: its autoencoder reconstructs this one with an error of {seen:.2g}, and "
        f"those that it knows with at most {largest:.2g}; choose {others}a checkpoint of such pictures"
    )


def _seen_error(physics: Physics, y: Tensor, image: Tensor) -> float | None:
    """Error of an image as far as it is measured, without the noise; None if nothing is, or the data are complex."""
    if y.is_complex():
        return None
    image = at_least_float32(image)
    signs = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)).sign().to(image)
    seen, at_image = observed_values(physics, y), measured(physics, image)
    gain = ((measured(physics, image + SMALL * signs) - at_image)[seen] / SMALL).square().mean()
    excess = (y - at_image)[seen].square().mean() - noise_std(physics.noise_model, y) ** 2
    return (excess.clamp_min(0) / gain).sqrt().item() if gain > 0 else None
