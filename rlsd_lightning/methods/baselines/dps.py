r"""Latent diffusion posterior sampling (DPS), and with a gluing term PSLD.

An ancestral step of the prior (:func:`~rlsd_lightning.functional.schedules.reverse_step`; the clean latent itself at the
end), then one down the gradient in :math:`z_t` of how far the clean latent
:math:`\hat z = (z_t - \sigma_t \hat\epsilon) / \alpha_t` is from the measurement:

.. math::
    z_s \sim \mathcal{N}(m_t(z_t, \hat z), \tau_t^2 I), \qquad
    z_s \leftarrow z_s - \nabla_{z_t} \big[ \zeta \|y - A D(\hat z)\| + \gamma \|\hat z - E(P D(\hat z))\| \big],
    \quad P x = x + A^\top (y - A x) / \|A\|^2

The published PSLD does not divide by :math:`\|A\|^2`, as for a mask, whose norm is one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from rlsd_lightning.errors import InputError, require_at_least_zero, require_positive
from rlsd_lightning.features import Features
from rlsd_lightning.functional.losses import half_square_distance, norms
from rlsd_lightning.functional.precision import full_precision
from rlsd_lightning.functional.schedules import guidance_factor, reverse_step
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.operators.likelihood import measured
from rlsd_lightning.priors import Prior

__all__ = ["LatentDPS"]


class LatentDPS(ParticleModule):
    r"""Independent samples guided by the gradient of the residual's norm.

    A step costs a call of the denoiser and a decode, and the backward pass of both; gluing adds an encode and its
    backward pass.

    Args:
        guidance_scale: Step size :math:`\zeta` of the residual with the embedded faces, the same for any number of steps;
            :func:`~rlsd_lightning.functional.schedules.guidance_factor` scales it to other priors.
        gluing: Step size :math:`\gamma` of the gluing term, for linear operators only: 0 in DPS, 0.1 in PSLD.
        latent_std: See :class:`~rlsd_lightning.RLSD`.
        image_std: See :class:`~rlsd_lightning.RLSD`.
        common: See :class:`~rlsd_lightning.methods.base.ParticleModule`, also for the positional arguments.

    Raises:
        InputError: If an argument is out of range, or there is a gluing term for an operator that is not linear.

    References:
        | Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., 2023)
        | https://arxiv.org/abs/2209.14687
        | Solving Linear Inverse Problems Provably via Posterior Sampling with Latent Diffusion Models (Rout et al., 2023)
        | https://arxiv.org/abs/2307.00619
    """

    def __init__(
        self,
        prior: Prior,
        measurements: Measurement | Sequence[Measurement],
        features: Features,
        *,
        guidance_scale: float = 3.0,
        gluing: float = 0.0,
        latent_std: float | None = None,
        image_std: float | None = None,
        **common: Any,
    ) -> None:
        super().__init__(prior, measurements, features, **common)
        require_at_least_zero(guidance_scale=guidance_scale, gluing=gluing)
        scales = self.hparams.latent_std, self.hparams.image_std
        require_positive(latent_std=scales[0], image_std=scales[1])
        self.zeta = guidance_scale * guidance_factor(prior.latent_shape, prior.image_shape, *scales)
        self.register_buffer("z_t", self.noisy_start())
        for measurement in self.measurements if gluing else []:
            if not isinstance(measurement.physics, LinearPhysics):
                raise InputError(
                    "gluing must be 0 for an operator that is not linear, but this one is a "
                    f"{type(measurement.physics).__name__}; set gluing=0"
                )
        self._square_norms: dict[str, Tensor] = {}

    def training_step(self, batch: tuple[int, int], batch_idx: int) -> Tensor:
        step, t, s = self.begin(batch, batch_idx)
        z_t = self.z_t[self.rows].detach().requires_grad_()
        z_hat, _ = self.denoise(z_t, t)
        distance, gradient = self.distance(z_hat), torch.zeros_like(z_t)
        if len(z_t):
            (gradient,) = torch.autograd.grad(distance, z_t)
        z_hat = z_hat.detach()
        if s is None:
            z_hat = z_hat - gradient
        elif len(z_t):
            self.z_t[self.rows] = self.ancestral_draw(step, t, s, z_t.detach(), z_hat) - gradient
        self.log_terms({"guidance": distance}, batch_idx)
        return half_square_distance(self.z[self.rows], z_hat)

    def ancestral_draw(self, step: int, t: int, s: int, z_t: Tensor, z_hat: Tensor) -> Tensor:
        r"""A draw of the next timestep's noisy latents :math:`z_s` given :math:`z_t` and the clean ones."""
        levels = (self.prior.alpha(t), self.prior.sigma(t), self.prior.alpha(s), self.prior.sigma(s))
        from_noisy, from_clean, variance = reverse_step(*levels)
        return from_noisy * z_t + from_clean * z_hat + variance.sqrt() * self.noise(step)

    def distance(self, z_hat: Tensor) -> Tensor:
        """The guidance term, summed over particles."""
        total, decoded = z_hat.new_zeros((), dtype=torch.float32), self.decode(z_hat)
        self.keep_images(decoded, decoded)
        for measurement, latents, images in self.each_here(z_hat, decoded):
            physics, y = measurement.physics, measurement.y
            residual = y - measured(physics, images)
            total = total + self.zeta * norms(residual).sum()
            if self.hparams.gluing:
                with full_precision(images.device):
                    glued = images + physics.A_adjoint(residual) / self._square_norm(measurement)
                total = total + self.hparams.gluing * norms(latents - self.chunked(self.prior.encode, glued)).sum()
        return total

    def _square_norm(self, measurement: Measurement) -> Tensor:
        """The operator's squared norm, with which a projection's adjoint is its pseudo-inverse."""
        if measurement.name not in self._square_norms:
            image = torch.zeros(1, *self.prior.image_shape, device=self.device)
            # power iterations start from random numbers, which must be the same after a restart
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []), torch.no_grad():
                torch.manual_seed(0)
                norm = measurement.physics.compute_sqnorm(image, verbose=False)
            # an operator that sees nothing has the norm zero, or none
            self._square_norms[measurement.name] = torch.where(norm > 0, norm, 1.0)
        return self._square_norms[measurement.name]
