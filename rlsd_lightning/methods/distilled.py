r"""Repulsive score distillation in every step: the paper's objective with a proximal step.

.. math::
    x &= \arg\min_x \mathrm{misfit}(A(x), y) + \mu \, \mathrm{mean}((x - D(z))^2) \\
    r &= \hat\epsilon(\alpha_t z + \sigma_t \epsilon, t) - \epsilon + \gamma_i \nabla_z \log \textstyle\sum_j k(\phi_i, \phi_j),
        \qquad \epsilon \sim \mathcal{N}(0, I) \\
    z &\leftarrow \mathrm{Adam} \big[ \tfrac{1 + \mu}{2} \mathrm{mean}((x - D(z))^2) + \lambda w(t) \, \mathrm{mean}(\mathrm{sg}[r] z) \big]

Without repulsion this is score distillation (SDS).

References:
    | Repulsive Latent Score Distillation for Solving Inverse Problems (Zilberstein et al., 2025)
    | https://arxiv.org/abs/2406.16683
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlsd_lightning.errors import require_at_least_zero
from rlsd_lightning.features import Features
from rlsd_lightning.functional.kernels import coarse_pixels, mean_square_difference
from rlsd_lightning.functional.losses import append_dims, at_least_float32, square_norms
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.distillation import ScoreDistillation
from rlsd_lightning.priors import Prior
from rlsd_lightning.repulsion import Repulsion

__all__ = ["Distilled"]

GAIN_EVERY = 10
"""Steps between two measurements of the decoder's gain, each of which costs one more backward pass."""


class Distilled(ScoreDistillation):
    r"""Particles that are distilled in every step, with fresh noise.

    Args:
        gamma: Strength of the repulsion beside the score; 0 switches it off.
        gamma_mode: ``relative`` or ``absolute``, see :class:`~rlsd_lightning.repulsion.Repulsion`.
        repulsion_until: Share of the steps, from the first, that have repulsion, in [0, 1].
        repulsion_saturation: Image distance at which relative repulsion saturates, in units of an image in [-1, 1]; below it,
            strength scales with (distance / saturation)^2. 0: full strength everywhere.
        common: See :class:`~rlsd_lightning.methods.distillation.ScoreDistillation`, and
            :class:`~rlsd_lightning.methods.base.ParticleModule`, also for the positional arguments.

    Raises:
        InputError: If an argument is out of range.
    """

    def __init__(
        self,
        prior: Prior,
        measurements: Measurement | Sequence[Measurement],
        features: Features,
        *,
        gamma: float = 0.5,
        gamma_mode: str = "relative",
        repulsion_until: float = 0.5,
        repulsion_saturation: float = 0.4,
        **common: Any,
    ) -> None:
        super().__init__(prior, measurements, features, **common)
        require_at_least_zero(repulsion_saturation=repulsion_saturation)
        self.repulsion = Repulsion(self, gamma, gamma_mode, repulsion_until)
        self.register_buffer("decoder_gain", torch.ones(len(self.z)))

    def training_step(self, batch: tuple[int, int], batch_idx: int) -> Tensor:
        step, t, _ = self.begin(batch, batch_idx)
        z = self.z[self.rows]
        residual = self.score_residual(z, self.noise(step), t)
        denoising = self.denoising_term(z, residual, t)
        decoded = self.decode(z)
        coupling = self.coupling_term(decoded)
        repulsion = self.prior_weight(t) * self.repulsion_term(step, t, z, decoded, residual)
        repels = self.repulsion.acts(step)
        ratio = self.repulsion_ratios[-1] if repels else z.new_zeros(())
        terms = {"denoising": denoising, "coupling": coupling, "repulsion": repulsion}
        self.log_terms(terms, batch_idx, repulsion_ratio=ratio)
        return denoising + self.through_decoder(coupling + repulsion, z)

    def repulsion_term(self, step: int, t: int, z: Tensor, decoded: Tensor, residual: Tensor) -> Tensor:
        r"""A surrogate whose gradient in the latents is :math:`\gamma_i \nabla_z \log q(\phi_i)` over their number of elements.

        The gradient goes through the decoder together with the coupling's. Its norm in the latents, which a relative
        strength needs, is its norm in the image times the decoder's gain, which is measured now and then.
        """
        if not self.repulsion.acts(step):
            return decoded.new_zeros(())
        # processes without particles take part in what is exchanged
        density, saturation = self.repulsion.gradient(z, decoded), self.saturation(decoded)
        if not len(z):
            self.repulsion_ratios.append(z.new_zeros(()))
            return z.sum()
        norm, score = square_norms(density.gradient).sqrt(), square_norms(residual).sqrt()
        gain = self.decoder_gain[self.rows]
        if not self.features.of_latents and step % GAIN_EVERY == 0:
            (in_latents,) = torch.autograd.grad(decoded, z, density.gradient, retain_graph=True)
            gain.copy_(torch.where(norm > 0, square_norms(in_latents).sqrt() / norm, gain))
        gamma = self.repulsion.strength(norm * gain, score, self.prior.sigma(t), saturation)
        ratio = torch.where(score > 0, gamma * norm * gain / score, 0.0)
        self.repulsion_ratios.append(ratio.sum().detach() / self.num_particles)
        weights = append_dims(gamma / z[0].numel(), density.gradient.ndim)
        return torch.sum(weights * density.gradient * (z if self.features.of_latents else decoded))

    def saturation(self, decoded: Tensor) -> Tensor | float:
        """Each particle's share of the full strength by its image's distance to the others', with shape (n,)."""
        reach = self.hparams.repulsion_saturation
        if not reach or not self.repulsion.relative:
            return 1.0
        # every process sums over all particles: sums over some would be rounded differently
        seen = self.gather(at_least_float32(coarse_pixels(decoded.detach())))
        squares = torch.cat([mean_square_difference(particles) for _, particles in self.each(seen)])
        return (squares[self.rows] / reach**2).clamp(max=1)
