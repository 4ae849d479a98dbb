r"""The published algorithm, as its authors' final runs had it.

Every step updates the latents, decodes them again, and updates the auxiliaries, each with an Adam of its own:

.. math::
    z &\leftarrow \mathrm{Adam}\big[ \tfrac{1}{2} \mathrm{mean}(x - D(z))^2 + \lambda \tfrac{\sigma_t}{\alpha_t}
        \mathrm{mean}(\mathrm{sg}[\hat\epsilon - \epsilon - \gamma \sigma_t J^\top g] \, z) \big] \\
    x &\leftarrow \mathrm{Adam}\big[ \tfrac{1}{2} \mathrm{mean}(y - A(x))^2
        + \tfrac{\rho}{2} \mathrm{mean}(x - D(z))^2 \big]

with means over a measurement's particles together, so that step sizes belong to a number of particles, and with the kernel of
:func:`~rlsd_lightning.functional.kernels.official_repulsion`. One thing differs from the official code: the
measurement's noise is drawn once, not once per particle.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from rlsd_lightning.errors import InputError
from rlsd_lightning.functional.kernels import official_repulsion
from rlsd_lightning.functional.losses import coupling, distillation, gradients_of_mean, half_mean_square
from rlsd_lightning.functional.schedules import prior_weight
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.base import ParticleModule, check_settings
from rlsd_lightning.operators.likelihood import has_square_misfit, measured
from rlsd_lightning.priors import Prior

__all__ = ["RLSDPaper"]


class RLSDPaper(ParticleModule):
    r"""Alternating updates, for the settings that were published.

    Args:
        prior: The latent diffusion prior.
        measurements: What is known: one measurement, or several that are solved side by side.
        features: Called with latents and images, returns what the kernel compares.
        num_steps: The number :math:`K` of timesteps.
        gamma: Absolute strength :math:`\gamma` of the repulsion; zero for two particles or fewer.
        sigma_break: Repulsion acts in the first so many thousandths of the steps.
        rho: Weight of the coupling in the auxiliaries' loss.
        distillation_weight: The weight :math:`\lambda`.
        lr_z: Step size of Adam on the latents.
        lr_x: Step size of Adam on the auxiliaries.
        common: Further arguments of :class:`~rlsd_lightning.methods.base.ParticleModule`.

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
        features: nn.Module,
        *,
        num_steps: int = 999,
        gamma: float = 50.0,
        sigma_break: int = 999,
        rho: float = 0.07,
        distillation_weight: float = 0.15,
        lr_z: float = 0.8,
        lr_x: float = 0.4,
        **common: Any,
    ) -> None:
        super().__init__(prior, measurements, features, num_steps=num_steps, **common)
        check_settings(
            {"gamma": gamma, "sigma_break": sigma_break, "rho": rho, "distillation_weight": distillation_weight},
            {"lr_z": lr_z, "lr_x": lr_x},
        )
        for measurement in self.measurements:
            if not has_square_misfit(measurement.physics.noise_model):
                raise InputError(
                    "method=rlsd_paper knows Gaussian noise only, but this operator's is "
                    f"{type(measurement.physics.noise_model).__name__}; choose method=rlsd"
                )
        self.automatic_optimization = False

    def training_step(self, batch: tuple[int, int], batch_idx: int) -> None:
        step, t = batch
        assert step == batch_idx, f"step {step} came as batch {batch_idx}: the schedule was not restored"
        optimizer_z, optimizer_x = self.optimizers()
        losses = self.latent_losses(step, t)
        self._descend(optimizer_z, self.z, sum(losses.values()))
        with torch.no_grad():
            decoded = self.decode(self.z[self.rows])
        losses_x = self.auxiliary_losses(decoded)
        self._descend(optimizer_x, self.x, sum(losses_x.values()))
        losses |= losses_x
        self.log_losses(losses, batch_idx)

    def latent_losses(self, step: int, t: int) -> dict[str, Tensor]:
        """The terms of the latents' loss; the repulsion's is a surrogate with its gradient."""
        alpha, sigma = self.prior.alpha(t), self.prior.sigma(t)
        z = self.z[self.rows]
        score = self.score(z, self.noise(step), t)
        decoded = self.decode(z)
        weight = self.hparams.distillation_weight * prior_weight(alpha, sigma)
        losses = {
            "coupling": coupling(self.x.detach()[self.rows], decoded) / self.num_particles,
            "distillation": weight * distillation(score, z) / self.num_particles,
        }
        # the published push is zero for one particle and for two
        repels = self.hparams.gamma and self.num_particles > 2
        if repels and self.repulsion_is_on(step, self.hparams.sigma_break):
            features = self.compared(z, decoded)
            every = self.gather(features.detach())
            push = torch.cat([official_repulsion(particles) for _, particles in self.each(every)])[self.rows]
            scale = self.hparams.gamma * sigma / (self.num_particles * self.z[0].numel())
            losses["repulsion"] = -weight * scale * torch.sum(push * features)
        elif self.hparams.gamma:  # a curve that ends would go on with its last value
            losses["repulsion"] = torch.zeros_like(losses["coupling"])
        return losses

    def auxiliary_losses(self, decoded: Tensor) -> dict[str, Tensor]:
        """The terms of the auxiliaries' loss."""
        x = self.x[self.rows]
        errors = [y - measured(physics, particles) for (_, y, physics, *_), particles in self.each_here(x)]
        fidelity = sum((half_mean_square(error) for error in errors), x.new_zeros(()))
        return {
            "fidelity": fidelity / self.num_particles,
            "coupling_x": self.hparams.rho * coupling(x, decoded) / self.num_particles,
        }

    def _descend(self, optimizer: Adam, particles: nn.Parameter, loss: Tensor) -> None:
        optimizer.zero_grad()
        (gradient,) = gradients_of_mean(loss, [particles], self.x[0].numel())
        self.manual_backward(torch.sum(gradient * particles))
        optimizer.step()

    @torch.no_grad()
    def reconstructions(self) -> tuple[Tensor, Tensor]:
        return self.gather(self.x.detach()[self.rows]), self.gather(self.decode(self.z[self.rows]))

    def configure_optimizers(self) -> list[Adam]:
        return [
            Adam([self.z], lr=self.hparams.lr_z, betas=(0.9, 0.99)),
            Adam([self.x], lr=self.hparams.lr_x, betas=(0.9, 0.99)),
        ]
