r"""Decoupled annealing posterior sampling (DAPS) in the latent space.

At every noise level a clean latent is found without the measurement, moved to the measurement by Langevin steps, and
given the noise of the next level:

.. math::
    \hat z &= \mathrm{ODE}(z_t, t \to 0), \qquad z^{(0)} = \hat z \\
    z^{(j+1)} &= z^{(j)} - \eta \nabla \Big[ \tfrac{1}{2 s^2} \|y - A D(z)\|^2
        + \tfrac{1}{2 r_t^2} \|z - \hat z\|^2 \Big] + \sqrt{2 \eta} \, \xi_j, \qquad
        r_t^2 = \tfrac{\sigma_t^2 v}{\alpha_t^2 v + \sigma_t^2} \\
    z_s &= \alpha_s z^{(J)} + \sigma_s \epsilon

where :math:`v` is the variance of the prior's latents, so that :math:`r_t` is what the noise leaves open.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from rlsd_lightning.errors import InputError, require_at_least_one, require_at_least_zero, require_positive
from rlsd_lightning.features import Features
from rlsd_lightning.functional.losses import append_dims, half_square_distance
from rlsd_lightning.functional.schedules import add_noise
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.operators.likelihood import measured, misfit, noise_std
from rlsd_lightning.priors import Prior

__all__ = ["LatentDAPS"]


class LatentDAPS(ParticleModule):
    r"""Independent samples; each noise level is coupled to the previous one through noise only.

    A step costs ``ode_steps`` calls of the denoiser, and ``langevin_steps`` decodes with their backward passes.

    Args:
        ode_steps: Deterministic steps from each noise level to clean latents.
        langevin_steps: Langevin steps :math:`J` at each level.
        step_size: The step size :math:`\eta` over :math:`(1 / r_t^2 + d / s^2)^{-1}`, the variance that a decoder of
            gain :math:`\sqrt d` and noise level :math:`s` leave.
        gain: The squared gain :math:`d` of the measured decoder :math:`A D` in its steepest directions.
        likelihood_std: Least noise level :math:`s` of the likelihood; a measurement with more noise has its own.
        latent_std: Standard deviation :math:`\sqrt{v}` of the prior's clean latents; None: the prior's.
        common: See :class:`~rlsd_lightning.methods.base.ParticleModule`, also for the positional arguments.

    Raises:
        InputError: If an argument is out of range.

    References:
        | Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing (Zhang et al., 2025)
        | https://arxiv.org/abs/2407.01521
    """

    def __init__(
        self,
        prior: Prior,
        measurements: Measurement | Sequence[Measurement],
        features: Features,
        *,
        ode_steps: int = 5,
        langevin_steps: int = 5,
        step_size: float = 0.5,
        gain: float = 10.0,
        likelihood_std: float = 0.05,
        latent_std: float | None = None,
        **common: Any,
    ) -> None:
        super().__init__(prior, measurements, features, **common)
        require_at_least_zero(likelihood_std=likelihood_std)
        require_at_least_one(ode_steps=ode_steps, langevin_steps=langevin_steps)
        require_positive(step_size=step_size, gain=gain, latent_std=self.hparams.latent_std)
        self.register_buffer("z_t", self.noisy_start())
        self.stds = {
            measurement.name: max(noise_std(measurement.physics.noise_model, measurement.y), likelihood_std)
            for measurement in self.measurements
        }
        if not all(self.stds.values()):
            raise InputError("likelihood_std must be above 0 for a measurement without noise, got 0")

    def training_step(self, batch: tuple[int, int], batch_idx: int) -> Tensor:
        step, t, s = self.begin(batch, batch_idx)
        start = self._ode_solution(self.z_t[self.rows].detach(), t)
        z = self._langevin(start, step, t)
        if s is not None:
            self.z_t[self.rows] = add_noise(z, self.noise(step), self.prior.alpha(s), self.prior.sigma(s))
        return half_square_distance(self.z[self.rows], z)

    @torch.no_grad()
    def _ode_solution(self, z_t: Tensor, t: int) -> Tensor:
        """Clean latents, by deterministic steps over evenly spaced timesteps."""
        count = self.hparams.ode_steps
        levels = sorted({t - k * t // count for k in range(count)}, reverse=True)
        for level, following in pairwise(levels):
            clean, noise = self.denoise(z_t, level)
            z_t = add_noise(clean, noise, self.prior.alpha(following), self.prior.sigma(following))
        return self.denoise(z_t, levels[-1])[0]

    def _langevin(self, start: Tensor, step: int, t: int) -> Tensor:
        z, settings = start, self.hparams
        if not len(z):
            decoded = self.decode(z)
            self.keep_images(decoded, decoded)
            return z
        alpha, sigma, variance = self.prior.alpha(t), self.prior.sigma(t), settings.latent_std**2
        posterior_var = sigma**2 * variance / (alpha**2 * variance + sigma**2)
        precisions = [
            particles.new_full((len(particles),), settings.gain / self.stds[measurement.name] ** 2)
            for measurement, particles in self.each_here(z)
        ]
        step_size = settings.step_size / (1 / posterior_var + append_dims(torch.cat(precisions), z.ndim))
        noise = self.noise(step, "langevin", (settings.langevin_steps,))
        for inner in range(settings.langevin_steps):
            z = z.detach().requires_grad_()
            decoded = self.decode(z)
            (pull,) = torch.autograd.grad(self._energy(decoded), z)
            z = z.detach() - step_size * (pull + (z.detach() - start) / posterior_var)
            z = z + (2 * step_size).sqrt() * noise[:, inner]
        self.keep_images(decoded, decoded)
        return z.detach()

    def _energy(self, decoded: Tensor) -> Tensor:
        """The negative log likelihood, summed over particles."""
        total = decoded.new_zeros((), dtype=torch.float32)
        for measurement, images in self.each_here(decoded):
            physics, y = measurement.physics, measurement.y
            std = self.stds[measurement.name]
            errors = misfit(physics.noise_model, measured(physics, images), y, std)
            total = total + y[0].numel() / (2 * std**2) * errors.sum()
        return total
