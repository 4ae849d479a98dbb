r"""The tiny decoder with a correction for each particle, in place of the prior's decoder.

If the prior has a tiny decoder :math:`\tilde D`, then :math:`\tilde D(z) + c` replaces :math:`D(z)` in all steps, and gradients go
through :math:`\tilde D`. An update, at every tenth of the second half of the run and where the loop ends, sets
:math:`c = \mathrm{sg}[D(z) - \tilde D(z)]` for each particle; :math:`c = 0` before. The results come from :math:`D`.
"""

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from rlsd_lightning.functional.losses import square_norms
from rlsd_lightning.methods.base import ParticleModule

__all__ = ["CorrectedDecoder"]

UPDATES = 10
"""Updates in a whole run, of which the first half are left out; runs below twice as many steps have one."""


class CorrectedDecoder:
    r"""Decoder of a method's steps: :math:`\tilde D(z) + c`, or :math:`D(z)` where there is no tiny decoder.

    Args:
        particles: The method. Its buffer ``correction`` is set here, so that checkpoints hold it.
        loop: The number of steps before the refinement.
    """

    def __init__(self, particles: ParticleModule, loop: int) -> None:
        self.particles, self.loop = particles, loop
        # JPEG and phase retrieval lose by it
        are_linear = all(isinstance(each.physics, LinearPhysics) for each in particles.measurements)
        self.has_tiny = particles.prior.has_tiny_decoder and are_linear
        if self.has_tiny:
            particles.register_buffer("correction", torch.zeros_like(particles.x))

    def __call__(self, z: Tensor, step: int) -> Tensor:
        """Images of this process's latents in a step."""
        decoded = self.particles.decode(z, tiny=self.has_tiny)
        if not self.has_tiny:
            return decoded
        correction = self.particles.correction[self.particles.rows]
        if self.updates(step):
            with torch.no_grad():
                correction.copy_(self.particles.decode(z) - decoded)
        return decoded + correction

    def updates(self, step: int) -> bool:
        """Whether a step updates the correction: the loop's last, and from 20 steps on the end of every later tenth."""
        num_steps = self.particles.num_steps
        done = self.particles.first_step + step + 1
        is_late = num_steps <= 2 * done < 2 * num_steps and num_steps >= 2 * UPDATES
        return (is_late and done % (num_steps // UPDATES) == 0) or step + 1 == self.loop

    def figures(self, step: int) -> dict[str, Tensor]:
        """Root mean square of the corrections, summed over particles / N; nothing before the first update."""
        if not self.has_tiny or not any(map(self.updates, range(step + 1))):
            return {}
        particles = self.particles
        distances = square_norms(particles.correction[particles.rows]).div(particles.x[0].numel()).sqrt()
        return {"tiny_decoder_distance": distances.sum() / particles.num_particles}
