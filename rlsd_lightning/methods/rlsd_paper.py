r"""The published algorithm, as its authors' final runs had it.

Every step updates the latents, decodes them again, and updates the auxiliaries, each with an Adam of its own:

.. math::
    z &\leftarrow \mathrm{Adam}\big[ \tfrac{1}{2} \mathrm{mean}((x - D(z))^2) + \lambda \tfrac{\sigma_t}{\alpha_t}
        \mathrm{mean}(\mathrm{sg}[\hat\epsilon - \epsilon - \gamma \sigma_t J^\top g] \, z) \big] \\
    x &\leftarrow \mathrm{Adam}\big[ \tfrac{1}{2} \mathrm{mean}((y - A(x))^2)
        + \tfrac{\rho}{2} \mathrm{mean}((x - D(z))^2) \big]

with the repulsion :math:`g` of :func:`~rlsd_lightning.functional.kernels.official_repulsion` and the Jacobian :math:`J` of the
features. Means are over all particles of a measurement, so that the right step sizes depend on their number. One thing differs from
the official code: the measurement's noise is drawn once, not once per particle.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Adam

from rlsd_lightning.errors import InputError, require_at_least_zero, require_fraction, require_positive
from rlsd_lightning.features import Features
from rlsd_lightning.functional.kernels import official_repulsion
from rlsd_lightning.functional.losses import coupling, distillation, gradients_of_mean, half_mean_square
from rlsd_lightning.functional.schedules import add_noise, prior_weight
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.operators.likelihood import has_square_misfit, measured
from rlsd_lightning.priors import Prior
from rlsd_lightning.repulsion import repulsive_steps

__all__ = ["RLSDPaper"]


class RLSDPaper(ParticleModule):
    r"""Alternating updates, for the settings that were published.

    Args:
        num_steps: The number :math:`K` of timesteps.
        gamma: Absolute strength :math:`\gamma` of the repulsion; zero for two particles or fewer.
        repulsion_until: Share of the steps, from the first, that have repulsion, in [0, 1].
        rho: Weight of the coupling in the auxiliaries' loss.
        distillation_weight: The weight :math:`\lambda`.
        lr_z: Step size of Adam on the latents.
        lr_x: Step size of Adam on the auxiliaries.
        common: See :class:`~rlsd_lightning.methods.base.ParticleModule`, also for the positional arguments.

    Raises:
        InputError: If an argument is out of range.

    References:
        | Repulsive Latent Score Distillation for Solving Inverse Problems (Zilberstein et al., 2025)
        | https://arxiv.org/abs/2406.16683
    """

    def __init__(
        self,
        prior: Prior,
        measurements: Measurement | Sequence[Measurement],
        features: Features,
        *,
        num_steps: int = 999,
        gamma: float = 50.0,
        repulsion_until: float = 0.999,
        rho: float = 0.07,
        distillation_weight: float = 0.15,
        lr_z: float = 0.8,
        lr_x: float = 0.4,
        **common: Any,
    ) -> None:
        super().__init__(prior, measurements, features, num_steps=num_steps, **common)
        require_fraction(repulsion_until=repulsion_until)
        require_at_least_zero(gamma=gamma, rho=rho, distillation_weight=distillation_weight)
        require_positive(lr_z=lr_z, lr_x=lr_x)
        self.x.requires_grad_()
        self.has_proximal_results = False  # the results are x
        for measurement in self.measurements:
            if not has_square_misfit(measurement.physics.noise_model):
                raise InputError(
                    "RLSDPaper expects Gaussian noise, but this operator's is "
                    f"{type(measurement.physics.noise_model).__name__}; choose RLSD"
                )
        self.automatic_optimization = False

    def training_step(self, batch: tuple[int, int], batch_idx: int) -> None:
        step, t, _ = self.begin(batch, batch_idx)
        optimizer_z, optimizer_x = self.optimizers()
        latent_terms = self.latent_terms(step, t)
        self._descend(optimizer_z, self.z, sum(latent_terms.values()))
        with torch.no_grad():
            decoded = self.decode(self.z[self.rows])
        image_terms = self.image_terms(decoded)
        self._descend(optimizer_x, self.x, sum(image_terms.values()))
        self.keep_images(self.x[self.rows], decoded)
        self.log_terms(latent_terms | image_terms, batch_idx)

    def latent_terms(self, step: int, t: int) -> dict[str, Tensor]:
        """The terms of the latents' loss; the repulsion's is a surrogate with its gradient."""
        z = self.z[self.rows]
        alpha, sigma, eps = self.prior.alpha(t), self.prior.sigma(t), self.noise(step)
        with torch.no_grad():
            residual = self.denoise(add_noise(z, eps, alpha, sigma), t)[1] - eps
        decoded = self.decode(z)
        weight = self.hparams.distillation_weight * prior_weight(alpha, sigma)
        return {
            "coupling": coupling(self.x.detach()[self.rows], decoded) / self.num_particles,
            "denoising": weight * distillation(residual, z) / self.num_particles,
            "repulsion": self.repulsion_term(step, t, weight, z, decoded),
        }

    def repulsion_term(self, step: int, t: int, weight: Tensor, z: Tensor, decoded: Tensor) -> Tensor:
        """The surrogate of the published repulsion, which is zero for one particle and for two."""
        repels = self.hparams.gamma and self.num_particles > 2
        if not repels or self.first_step + step >= repulsive_steps(self.hparams.repulsion_until, self.num_steps):
            return decoded.new_zeros(())
        features = self.particle_features(z, decoded)
        every = self.gather(features.detach())
        push = torch.cat([official_repulsion(particles) for _, particles in self.each(every)])[self.rows]
        scale = self.hparams.gamma * self.prior.sigma(t) / (self.num_particles * self.z[0].numel())
        return -weight * scale * torch.sum(push * features)

    def image_terms(self, decoded: Tensor) -> dict[str, Tensor]:
        """The terms of the images' loss."""
        x = self.x[self.rows]
        errors = [each.y - measured(each.physics, images) for each, images in self.each_here(x)]
        fidelity = sum((half_mean_square(error) for error in errors), x.new_zeros(()))
        return {
            "fidelity": fidelity / self.num_particles,
            "coupling_x": self.hparams.rho * coupling(x, decoded) / self.num_particles,
        }

    def _descend(self, optimizer: LightningOptimizer, particles: nn.Parameter, loss: Tensor) -> None:
        (gradient,) = gradients_of_mean(loss, [particles], self.x[0].numel())
        self.manual_backward(torch.sum(gradient * particles))
        optimizer.step()
        optimizer.zero_grad()  # or the other optimizer's backward pass would exchange these gradients again

    @torch.no_grad()
    def reconstructions(self) -> tuple[Tensor, Tensor]:
        return self.gather(self.x.detach()[self.rows]), self.gather(self.decode(self.z[self.rows]))

    def configure_optimizers(self) -> list[Adam]:
        return [
            Adam([self.z], lr=self.hparams.lr_z, betas=(0.9, 0.99)),
            Adam([self.x], lr=self.hparams.lr_x, betas=(0.9, 0.99)),
        ]
