r"""The tiny decoder with a correction for each particle, in place of the prior's decoder.

If the prior has a tiny decoder :math:`\tilde D`, then :math:`\tilde D(z) + c` replaces :math:`D(z)` in all steps, and gradients go
through :math:`\tilde D`. An update, every ``num_steps // 10`` steps of the second half of the run and where the loop ends, sets
:math:`c = \mathrm{sg}[D(z) - \tilde D(z)]` for each particle; :math:`c = 0` before. The results come from :math:`D`.
"""

import math

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor
from torch.autograd import grad

from rlsd_lightning.functional.losses import append_dims, square_norms
from rlsd_lightning.methods.base import ParticleModule

__all__ = ["CorrectedDecoder", "encoded_difference"]

UPDATES = 10
"""The correction is updated every ``num_steps // UPDATES`` steps in the second half of a run; runs below ``2 * UPDATES`` steps update it once, at the end of the loop."""
TRIAL = 0.1
"""Root mean square of the latents' move over which a decoder is taken to be linear; latents have one of about 1."""


def encoded_difference(particles: ParticleModule, images: Tensor, others: Tensor) -> Tensor:
    r""":math:`E(x) - E(x')` of two images for each particle: what the autoencoder loses is in both, and cancels.

    Without autocast, as the difference is of the size of half precision's rounding.
    """
    with torch.autocast(images.device.type, enabled=False):
        encoded, other = (particles.chunked(particles.prior.encode, each) for each in (images, others))
        return encoded - other


class CorrectedDecoder:
    r"""Decoder of a method's steps: :math:`\tilde D(z) + c`, or :math:`D(z)` where there is no tiny decoder.

    Args:
        particles: The method. Its buffer ``correction`` is set here, so that checkpoints hold it.
        loop_steps: The number of steps before the refinement.
    """

    def __init__(self, particles: ParticleModule, loop_steps: int) -> None:
        self.particles, self.loop_steps = particles, loop_steps
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
        if self.is_update_step(step):
            with torch.no_grad():
                correction.copy_(self.particles.decode(z) - decoded)
        return decoded + correction

    def is_update_step(self, step: int) -> bool:
        """Whether a step updates the correction: the loop's last (without a loop, the first), and in runs of 20 steps or more every tenth part of the second half."""
        num_steps = self.particles.num_steps
        done = self.particles.first_step + step + 1
        is_late = num_steps <= 2 * done < 2 * num_steps and num_steps >= 2 * UPDATES
        return (is_late and done % (num_steps // UPDATES) == 0) or step + 1 == max(self.loop_steps, 1)

    def solving_shift(self, z: Tensor) -> Tensor:
        r"""The shift :math:`\ell \, \nabla \tfrac{1}{2} \|D(z) - \mathrm{sg}[x]\|^2` whose length minimises :math:`\|D - x\|` along it.

        With :math:`x` solved from :math:`D(z)` and a linear operator, :math:`r = D - x` is linear in :math:`D`. A trial shift by
        :math:`h` gives :math:`r_h`, and :math:`\ell = h \langle r, r - r_h \rangle / \|r - r_h\|^2`, at least 0.

        Args:
            z: This process's latents.
        """
        particles, variance = self.particles, self.particles.decoder_std**2
        if not len(z):
            return z

        def residuals(images: Tensor) -> Tensor:
            images = images + particles.correction[particles.rows]
            return images - particles.proximal(particles.each_here(images), variance)

        z, least = z.detach().requires_grad_(), torch.finfo(torch.float32).tiny
        decoded = particles.decode(z, tiny=True)
        before = residuals(decoded.detach())
        (gradient,) = grad(decoded, z, before)
        with torch.no_grad():
            trial = TRIAL * math.sqrt(z[0].numel()) / square_norms(gradient).clamp_min(least).sqrt()
            trial = append_dims(trial, z.ndim)
            change = before - residuals(particles.decode(z - trial * gradient, tiny=True))
            gain = (before * change).flatten(1).sum(dim=1) / square_norms(change).clamp_min(least)
        return gain.clamp_min(0).view_as(trial) * trial * gradient

    def follow(self, ancestors: Tensor) -> None:
        """Take the corrections of the particles whose latents were taken, by all particles' ancestors; a collective call."""
        if self.has_tiny:
            correction, rows = self.particles.correction, self.particles.rows
            correction[rows] = self.particles.gather(correction[rows])[ancestors[rows]]

    def figures(self, step: int) -> dict[str, Tensor]:
        """Root mean square of the corrections, summed over particles / N; nothing before the first update."""
        if not self.has_tiny or not any(map(self.is_update_step, range(step + 1))):
            return {}
        particles = self.particles
        distances = square_norms(particles.correction[particles.rows]).div(particles.x[0].numel()).sqrt()
        return {"tiny_decoder_distance": distances.sum() / particles.num_particles}
