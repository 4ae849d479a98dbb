r"""Kernel repulsion between the particles of one measurement.

.. math:: \gamma_i \nabla \log q(\phi_i), \qquad q(\phi) = \textstyle\sum_j k(\phi, \phi_j), \qquad
    k(\phi, \phi') = \exp(-\|\phi - \phi'\|^2 / h)

with features :math:`\phi_i` of a particle's latents or decoded image. Particles move down this gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rlsd_lightning.errors import require_at_least_zero, require_fraction, require_one_of
from rlsd_lightning.functional.kernels import (
    log_density,
    log_density_gradient,
    median_bandwidth,
    sets_at_a_time,
    sets_in,
)
from rlsd_lightning.functional.losses import append_dims, at_least_float32, square_norms
from rlsd_lightning.methods.base import ParticleModule

__all__ = ["DensityGradient", "Repulsion", "density_gradient", "repulsive_steps"]


class DensityGradient(NamedTuple):
    r"""The log density of this process's particles, and its gradient.

    Attributes:
        value: :math:`\log q(\phi_i)`, with shape :math:`(n,)`.
        gradient: :math:`\nabla \log q(\phi_i)`, towards HIGHER density, in the latents or the decoded images, whichever
            the features are of; with their shape.
    """

    value: Tensor
    gradient: Tensor


class Repulsion:
    r"""The repulsion of a method's particles: its gradient and its strength.

    Args:
        particles: The method, which knows its features, measurements and processes.
        gamma: Strength of the repulsion, at least 0; 0 switches it off.
        gamma_mode: ``relative``: ``gamma`` is the ratio of the repulsion's norm to the norm that the method compares it with,
            for each particle; ``absolute``: :math:`\gamma_i = \gamma \sigma_t`.
        repulsion_until: Share of the steps, from the first, that have repulsion, in [0, 1]; the last of all steps has none.

    Raises:
        InputError: If an argument is out of range.
    """

    def __init__(
        self, particles: ParticleModule, gamma: float, gamma_mode: str = "relative", repulsion_until: float = 0.5
    ) -> None:
        require_at_least_zero(gamma=gamma)
        require_fraction(repulsion_until=repulsion_until)
        require_one_of(("relative", "absolute"), gamma_mode=gamma_mode)
        self.particles, self.gamma, self.relative = particles, gamma, gamma_mode == "relative"
        self.steps = repulsive_steps(repulsion_until, particles.num_steps) - particles.first_step

    def acts(self, step: int) -> bool:
        """Whether a step has repulsion; a lone particle has none."""
        return self.gamma > 0 and self.particles.num_particles > 1 and step < self.steps

    def gradient(self, z: Tensor, decoded: Tensor) -> DensityGradient:
        """The gradient at this process's clean latents and their images; all processes call it, also without particles."""
        particles, z, decoded = self.particles, z.detach(), decoded.detach()
        leaf = (z if particles.features.of_latents else decoded).requires_grad_()
        features = at_least_float32(particles.particle_features(z, decoded))
        every = particles.gather(features.detach())
        if not len(leaf):
            return DensityGradient(leaf.new_zeros(0), leaf)
        value, towards = density_gradient(features.detach(), every, particles.rows, particles.num_particles)
        return DensityGradient(value, torch.autograd.grad(features, leaf, towards)[0])

    def add_to(self, gradient: Tensor, density: DensityGradient, t: int, zeta: float) -> tuple[Tensor, Tensor]:
        r"""A data gradient with :math:`\gamma_i \nabla \log q(\phi_i)` added, and the values :math:`\gamma_i \log q(\phi_i)`.

        Where nothing is measured, the data gradient counts as the step size :math:`\zeta`.
        """
        particles = self.particles
        norm, data_norm = square_norms(density.gradient).sqrt(), square_norms(gradient).sqrt()
        data_norm = torch.where(data_norm > 0, data_norm, zeta)
        gamma = self.strength(norm, data_norm, particles.prior.sigma(t), particles.features.gamma_scale)
        if not self.relative:
            gamma = zeta * gamma  # a relative one contains the step size already
        ratio = torch.where(data_norm > 0, gamma * norm / data_norm, 0.0)  # 0 only if guidance_scale is
        particles.repulsion_ratios.append(ratio.sum().detach() / particles.num_particles)
        return gradient + append_dims(gamma, gradient.ndim) * density.gradient, gamma * density.value

    def strength(self, norms: Tensor, compared: Tensor, sigma: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        r"""The factors :math:`\gamma_i`, with shape (n,).

        Args:
            norms: Norms of the repulsion's gradients, with shape (n,).
            compared: Norms of the gradients that they are compared with, with shape (n,).
            sigma: Noise level :math:`\sigma_t`.
            scale: The features' ``gamma_scale``.
        """
        if not self.relative:
            return self.gamma * sigma * torch.ones_like(norms)
        # two particles in one place have no direction to go
        return torch.where(norms > 0, self.gamma * scale * compared / norms, 0.0)


def repulsive_steps(until: float, num_steps: int) -> int:
    """Number of steps with repulsion; the last step never has any."""
    return min(int(until * num_steps + 1e-9), num_steps - 1)


def density_gradient(features: Tensor, every: Tensor, rows: slice, count: int) -> tuple[Tensor, Tensor]:
    """Log densities of some particles in the kernel of their own measurement, and the gradients in their features.

    Args:
        features: Features of the particles in ``rows``, with shape (n, D).
        every: Features of all particles of all measurements, with shape (M N, D).
        rows: Which particles these are.
        count: The number N of particles of a measurement.

    Returns:
        With shapes (n,) and (n, D).
    """
    sets = every.unflatten(0, (-1, count))
    if rows.start % count == 0 and rows.stop % count == 0:  # whole measurements: some at once
        parts = features.unflatten(0, (-1, count)).split(sets_at_a_time(features, count))
        pairs = [(part, part) for part in parts]
    else:
        first = rows.start
        pairs = [
            (features[None, start - first : stop - first], sets[k, None]) for k, start, stop in sets_in(rows, count)
        ]
    values, gradients = [], []
    for mine, others in pairs:
        bandwidth = median_bandwidth(others)
        values.append(log_density(mine, others, bandwidth).flatten())
        gradients.append(log_density_gradient(mine, others, bandwidth).flatten(0, 1))
    return torch.cat(values), torch.cat(gradients)
