"""Particles that keep apart: the gradient of their own density, and how strong it is beside what else moves them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlsd_lightning.errors import InputError
from rlsd_lightning.functional.kernels import (
    MOST_DIFFERENCES,
    log_density_gradient,
    mean_square_difference,
    median_bandwidth,
    thumbnails,
)
from rlsd_lightning.functional.losses import at_least_float32
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.base import check_settings
from rlsd_lightning.methods.sampling import AnnealedModule
from rlsd_lightning.priors import Prior

__all__ = ["Push", "RepulsiveModule", "square_norms"]


class Push(NamedTuple):
    r"""The gradient of the particles' log density :math:`\log \sum_j k(f_i, f_j)`, towards HIGHER density.

    Attributes:
        latents: In the latents, with their shape; None if the features don't look at them.
        images: In their decoded images, with their shape; None if the features don't look at them.
    """

    latents: Tensor | None
    images: Tensor | None


class RepulsiveModule(AnnealedModule):
    r"""What methods with a kernel between particles share.

    Args:
        prior: The latent diffusion prior.
        measurements: What is known: one measurement, or several that are solved side by side.
        features: Called with latents and images, returns what the kernel compares.
        gamma: Strength of the repulsion; 0 switches it off.
        gamma_mode: ``relative``: the repulsion's norm is at most ``gamma`` times that of what it stands beside, for each
            particle, times the features' ``strength`` while particles are sampled; ``absolute``: :math:`\gamma \sigma_t`
            times the gradient.
        room: Root mean square difference of a distilled particle's image :math:`D(z_i)` to the others', in units of an image
            in [-1, 1], from which on relative repulsion has its full strength; below, strength falls with the square of
            the difference, so that particles are left alone where the data leave them no room: distilled ones would not
            come back by themselves, sampled ones do, and have the full strength. 0: full everywhere.
        sigma_break: Repulsion acts in the first so many thousandths of the steps, those with the most noise.
        common: Arguments of :class:`~rlsd_lightning.methods.sampling.AnnealedModule` and
            :class:`~rlsd_lightning.methods.base.ParticleModule`.

    Raises:
        InputError: If an argument is out of range.
    """

    def __init__(
        self,
        prior: Prior,
        measurements: Measurement | Sequence[Measurement],
        features: nn.Module,
        *,
        gamma: float = 0.2,
        gamma_mode: str = "relative",
        room: float = 0.4,
        sigma_break: int = 500,
        **common: Any,
    ) -> None:
        super().__init__(prior, measurements, features, **common)
        if gamma_mode not in ("relative", "absolute"):
            raise InputError(f"method.gamma_mode must be relative or absolute, got '{gamma_mode}'")
        check_settings({"gamma": gamma, "room": room, "sigma_break": sigma_break}, {})

    def repels(self, step: int) -> bool:
        """Whether there is repulsion in a step; a lone particle has none."""
        return (
            self.num_particles > 1 and self.hparams.gamma > 0 and self.repulsion_is_on(step, self.hparams.sigma_break)
        )

    def push(self, latents: Tensor, images: Tensor, every: Tensor | None = None) -> Push:
        """The push of this process's particles; all processes of a group call it together, those without any too.

        Args:
            latents: With shape (n, ...).
            images: The decoded latents.
            every: All particles' latents, where this process has them: then some features need not be exchanged.
        """
        latents, images = latents.detach().requires_grad_(), images.detach().requires_grad_()
        features = at_least_float32(self.compared(latents, images))
        if every is None or getattr(self.features, "needs_images", True):
            others = self.gather(features.detach())
        else:
            with torch.no_grad():
                others = at_least_float32(self.features(every.detach(), None))
        if not len(latents):
            return Push(latents, None)
        towards = self._density_gradient(features, others)
        return Push(*torch.autograd.grad(features, (latents, images), towards, allow_unused=True))

    def strength(
        self, norms: Tensor, beside: Tensor, sigma: Tensor, shares: Tensor | float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """What pushes of some norms are multiplied by, and their norm then over that of what they stand beside.

        Args:
            norms: Norms of the pushes, with shape (n,).
            beside: Norms of what they stand beside, with the same shape.
            sigma: The noise level.
            shares: Of the full strength, with the same shape, if it is relative.

        Returns:
            The factors, with shape (n,), and the ratio, summed over this process's shares of measurements.
        """
        if self.hparams.gamma_mode == "absolute":
            scale = self.hparams.gamma * sigma * torch.ones_like(norms)
        else:
            # a lone particle, or two in one place, have no direction to go
            scale = torch.where(norms > 0, self.hparams.gamma * shares * beside / norms, 0.0)
        ratio = torch.where(beside > 0, scale * norms / beside, 0.0)
        return scale, ratio.sum() / self.num_particles

    def room_shares(self, decoded: Tensor) -> Tensor:
        """Each particle's share of the full strength by how far its image is from the others', with shape (n,)."""
        if not self.hparams.room or self.hparams.gamma_mode == "absolute":
            return decoded.new_ones(len(decoded))
        # every process sums over all particles: sums over some would be rounded in another way
        seen = self.gather(at_least_float32(thumbnails(decoded.detach())))
        squares = torch.cat([mean_square_difference(particles) for _, particles in self.each(seen)])
        return (squares[self.rows] / self.hparams.room**2).clamp(max=1)

    def _density_gradient(self, features: Tensor, every: Tensor) -> Tensor:
        """The gradient of this process's particles' log densities in their features; no kernel joins two measurements."""
        first, last, count = self.rows.start, self.rows.stop, self.num_particles
        if first % count == 0 and last % count == 0:  # of whole measurements: all at once
            sets = features.unflatten(0, (-1, count))
            at_once = max(1, MOST_DIFFERENCES // (count * sets[0].numel()))
            gradients = [log_density_gradient(few, few, median_bandwidth(few)) for few in sets.split(at_once)]
            return torch.cat(gradients).flatten(0, 1)
        others = {measurement.name: rows for measurement, rows in self.each(every)}
        gradients = [
            log_density_gradient(mine, others[measurement.name], median_bandwidth(others[measurement.name]))
            for measurement, mine in self.each_here(features)
        ]
        return torch.cat(gradients)


def square_norms(value: Tensor) -> Tensor:
    """Every particle's squared norm, with shape (N,)."""
    return at_least_float32(value).square().flatten(1).sum(dim=1)
