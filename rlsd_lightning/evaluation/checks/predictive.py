r"""Posterior predictive check: residuals of posterior draws have the noise's size, distribution and whiteness.

If :math:`u` is a draw of the posterior given :math:`y`, then :math:`(u, y)` has the same law as the truth with its
measurement, so :math:`y - A(u)` is distributed as the noise: no degrees of freedom are lost. A particle :math:`x_i` is no
such draw. It is the mean of the images near :math:`D(z_i)` that explain :math:`y`, so its residual is smaller than the
noise. A draw is

.. math:: u_i = x_i + \mathrm{prox}(D(z_i) + e, \; y + n) - \mathrm{prox}(D(z_i), y)

with errors :math:`e` of the decoder's variance and noise :math:`n`. It is exact for linear operators, Gaussian noise and
white errors. Other draws are :math:`\mathrm{prox}(D(z_i) + e, \; y + n)`, which is nearly the same. Photon counts become
standard normal by their distribution function, randomised within each count.

References:
    | Bayesian model assessment using pivotal quantities (Johnson, 2007)
    | https://doi.org/10.1214/07-BA229
    | Gaussian sampling by local perturbations (Papandreou & Yuille, 2010)
    | Randomized quantile residuals (Dunn & Smyth, 1996)
"""

import math

import torch
from deepinv.physics import GaussianNoise, LinearPhysics
from torch import Tensor

from rlsd_lightning.evaluation.causes import MIXING
from rlsd_lightning.evaluation.checks.draws import Draws
from rlsd_lightning.evaluation.checks.whiteness import Whiteness, whiteness
from rlsd_lightning.evaluation.scores import Solved
from rlsd_lightning.functional.losses import at_least_float32
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.operators.likelihood import measured, noise_std, observed_values
from rlsd_lightning.operators.noise import PoissonNoise
from rlsd_lightning.operators.proximal import RESULT_STEPS, proximal_step

__all__ = ["posterior_draws", "predictive_check", "standard_residuals"]

FIRST_DRAW = 8
"""Number of the first draw; Stein's check has those before."""


@torch.no_grad()
def predictive_check(module: ParticleModule, solved: Solved) -> Whiteness | None:
    """Residuals of draws near the particles against white noise; None if the noise is unknown, or too few values."""
    physics, y = solved.measurement.physics, solved.measurement.y
    known = isinstance(physics.noise_model, GaussianNoise | PoissonNoise)
    if not known or not noise_std(physics.noise_model, y):
        return None
    draws = Draws(module, solved.measurement, len(solved.images), FIRST_DRAW)
    residuals = standard_residuals(solved.measurement, posterior_draws(module, solved, draws), draws)
    seen = observed_values(physics, y)
    seen_parts = torch.complex(seen.float(), seen.float()) if residuals.is_complex() else seen.to(residuals)
    planes = [_planes(value) for value in (residuals * seen, seen_parts)]
    return whiteness(planes[0], planes[1][0] > 0, neighbours=not isinstance(physics, MIXING))


def posterior_draws(module: ParticleModule, solved: Solved, draws: Draws) -> Tensor:
    """Images that are draws of the posterior if the latents are, with shape (N, C, H, W)."""
    measurement, images, decoded = solved.measurement, *map(at_least_float32, solved[1:3])
    physics, y, variance = measurement.physics, measurement.y, module.decoder_std**2
    if not module.has_proximal_results:
        return images
    weight, errors = module.proximal.mu(measurement, variance), math.sqrt(variance) * draws(decoded)
    noise = draws(y.expand(len(images), *y.shape[1:])) * observed_values(physics, y)
    if not isinstance(physics.noise_model, PoissonNoise):
        noise = noise * noise_std(physics.noise_model, y)
        if isinstance(physics, LinearPhysics):  # the step is linear in both arguments
            return images + proximal_step(physics, noise, errors, weight)
    else:
        noise = noise * (2 * physics.noise_model.gain * (measured(physics, decoded) + 1).clamp_min(0)).sqrt()
    return proximal_step(physics, y + noise, decoded + errors, weight, inner_steps=RESULT_STEPS)


def standard_residuals(measurement: Measurement, images: Tensor, draws: Draws) -> Tensor:
    """Residuals that are standard normal for draws of the posterior, with the shape of measurements."""
    physics, y = measurement.physics, measurement.y
    at_images = measured(physics, images).expand(len(images), *y.shape[1:])
    if not isinstance(physics.noise_model, PoissonNoise):
        return (y - at_images) / noise_std(physics.noise_model, y)
    counts, expected = (((each + 1) / 2 / physics.noise_model.gain).cpu().double() for each in (y, at_images))
    counts, expected = counts.round().clamp_min(0).expand_as(expected), expected.clamp_min(1e-6)
    below = torch.where(counts > 0, torch.special.gammaincc(counts.clamp_min(1), expected), 0.0)
    within = torch.special.ndtr(draws(at_images).cpu().double()) * (
        torch.special.gammaincc(counts + 1, expected) - below
    )
    return torch.special.ndtri((below + within).clamp(1e-12, 1 - 1e-12)).to(at_images)


def _planes(values: Tensor) -> Tensor:
    """Values with shape (n, C, H, W); parts of complex values are channels."""
    if values.is_complex():
        values = torch.view_as_real(values).movedim(-1, 1)
    if values.ndim == 2:
        return values[:, None, None]
    return values.flatten(1, -3) if values.ndim > 4 else values.reshape(len(values), -1, *values.shape[-2:])
