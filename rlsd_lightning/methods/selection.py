r"""Selection: particles that explain a measurement badly are replaced by those that explain it well.

The distance :math:`d_i = \|x_i - D(\hat z_i)\|` says how far a particle's clean image is from one that explains the measurement.
At 30, 50 and 70 % of the loop a particle with :math:`d_i > r q` takes the clean latent of one that is not as far. Here :math:`q` is
the lower quartile of a measurement's distances, the least of up to four. The particle keeps its own noise: the copies differ from
the next step on.

This is the selection of a particle filter, without its weights: distances of thousands of correlated values would leave one
particle. Distances of few values differ by chance (by a share of about :math:`1 / \sqrt{2 m}` for :math:`m` values), so nothing is
replaced where fewer than 300 are measured.

References:
    | Feynman-Kac Formulae (Del Moral, 2004)
    | https://doi.org/10.1007/978-1-4684-9393-1
    | A General Framework for Inference-time Scaling and Steering of Diffusion Models (Singhal et al., 2025)
    | https://arxiv.org/abs/2501.06848
"""

import math

import torch
from torch import Tensor

from rlsd_lightning.functional.noise import keyed_uniform
from rlsd_lightning.functional.resampling import ancestors_of_outliers
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.methods.decoding import CorrectedDecoder
from rlsd_lightning.operators.likelihood import observed_values

__all__ = ["Selection"]

SHARES = (0.3, 0.5, 0.7)
"""Shares of the loop after which particles are replaced: the layout is known, and enough steps remain for copies to differ."""
LEAST_VALUES = 300
"""Fewest measured values with selection: four particles of one distribution are then replaced in below 1 % of cases."""


class Selection:
    """Replaces the clean latents of a method's outliers, measurement by measurement.

    Args:
        particles: The method. Its buffer ``replaced`` is set here, so that checkpoints hold it: how often each particle was replaced.
        decoder: Its decoder, whose corrections belong to the clean latents.
        ratio: The ratio :math:`r`, at least 1; None: nothing is replaced.
        loop_steps: The number of steps of the loop.
    """

    def __init__(
        self, particles: ParticleModule, decoder: CorrectedDecoder, ratio: float | None, loop_steps: int
    ) -> None:
        self.particles, self.decoder = particles, decoder
        is_off = ratio is None or particles.num_particles == 1
        if not is_off:
            particles.register_buffer("replaced", torch.zeros(len(particles.z), dtype=torch.long))
        self.steps = frozenset() if is_off else frozenset(math.ceil(share * loop_steps) - 1 for share in SHARES)
        counts = [observed_values(each.physics, each.y).sum() for each in particles.measurements]
        self.ratios = torch.tensor([[math.inf if is_off or count < LEAST_VALUES else ratio] for count in counts])

    @torch.no_grad()
    def __call__(self, step: int, distances: Tensor) -> None:
        """Replace after a step, by the distances of this process's particles; a collective call."""
        particles = self.particles
        distances = particles.gather(distances).view(-1, particles.num_particles)
        draws = [
            keyed_uniform(
                seed=particles.seed, measurement=each.noise_key, stream="resample", step=particles.first_step + step
            )
            for each in particles.measurements
        ]
        ancestors = ancestors_of_outliers(distances, self.ratios.to(distances), torch.tensor(draws).to(distances))
        particles.z.copy_(particles.z[ancestors])
        particles.replaced += ancestors != torch.arange(len(ancestors), device=ancestors.device)
        self.decoder.follow(ancestors)

    def figures(self) -> dict[str, Tensor]:
        """Number of replacements of this process's particles so far; nothing without selection."""
        return {"replaced": self.particles.replaced[self.particles.rows].sum()} if self.steps else {}
