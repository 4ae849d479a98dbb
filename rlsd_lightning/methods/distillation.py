r"""Terms of the methods that optimise latents by score distillation with Adam.

.. math:: \tfrac{1 + \mu}{2} \mathrm{mean}((x - D(z))^2) + \lambda w(t) \, \mathrm{mean}(\mathrm{sg}[r] \, z)

with :math:`\mu = 0` in the refinement of :class:`~rlsd_lightning.RLSD`, and the residual
:math:`r = \hat\epsilon(\alpha_t z + \sigma_t \epsilon, t) - \epsilon`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from rlsd_lightning.errors import require_at_least_zero, require_one_of, require_positive
from rlsd_lightning.features import Features
from rlsd_lightning.functional.losses import coupling, distillation, gradients_of_mean
from rlsd_lightning.functional.schedules import PRIOR_WEIGHTS, add_noise, cosine_decay, prior_weight
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.priors import Prior

__all__ = ["ScoreDistillation"]


class ScoreDistillation(ParticleModule):
    r"""Particles whose latents follow score distillation and the coupling to their images.

    Args:
        distillation_weight: Weight :math:`\lambda` of score distillation.
        weighting: Its time weight :math:`w(t)`, see :func:`~rlsd_lightning.functional.schedules.prior_weight`.
        lr_z: First step size of Adam; it falls along half a cosine over all steps to zero.
        common: See :class:`~rlsd_lightning.methods.base.ParticleModule`, also for the positional arguments.

    Raises:
        InputError: If an argument is out of range.
    """

    def __init__(
        self,
        prior: Prior,
        measurements: Measurement | Sequence[Measurement],
        features: Features,
        *,
        distillation_weight: float = 0.05,
        weighting: str = "log",
        lr_z: float = 0.5,
        **common: Any,
    ) -> None:
        super().__init__(prior, measurements, features, **common)
        require_at_least_zero(distillation_weight=distillation_weight)
        require_positive(lr_z=lr_z, decoder_std=self.decoder_std)
        require_one_of(PRIOR_WEIGHTS, weighting=weighting)

    @torch.no_grad()
    def score_residual(self, z: Tensor, eps: Tensor, t: int) -> Tensor:
        r"""The score distillation residual :math:`\hat\epsilon(\alpha_t z + \sigma_t \epsilon, t) - \epsilon`."""
        return self.denoise(add_noise(z, eps, self.prior.alpha(t), self.prior.sigma(t)), t)[1] - eps

    def prior_weight(self, t: int) -> Tensor:
        r"""The weight :math:`\lambda w(t)`."""
        weight = prior_weight(self.prior.alpha(t), self.prior.sigma(t), self.hparams.weighting)
        return self.hparams.distillation_weight * weight

    def denoising_term(self, z: Tensor, residual: Tensor, t: int) -> Tensor:
        r"""The term :math:`\lambda w(t) \, \mathrm{mean}(\mathrm{sg}[r_i] z_i)`, summed over particles."""
        return self.prior_weight(t) * distillation(residual, z)

    def coupling_term(self, decoded: Tensor) -> Tensor:
        r"""The term :math:`\frac{1 + \mu}{2} \mathrm{mean}((x - D(z))^2)`, summed over particles, with :math:`x` set by its proximal step.

        The images go a share :math:`1 / (1 + \mu)` of the way to the measurement; the factor makes up for it, so that
        latents follow alike at any noise level.
        """
        variance = self.decoder_std**2
        x = self.solve_images(decoded, variance)
        terms = [
            (1 + self.proximal.mu(measurement, variance)) * coupling(image, of_latent)
            for measurement, image, of_latent in self.each_here(x, decoded)
        ]
        return sum(terms, decoded.new_zeros(()))

    def through_decoder(self, loss: Tensor, z: Tensor) -> Tensor:
        """A loss with the gradient in the latents of a mean over pixels, taken back through the decoder in full precision."""
        if not len(z):
            return z.sum()
        (gradient,) = gradients_of_mean(loss, [z], self.x[0].numel())
        return torch.sum(gradient * z)

    def step_size_decay(self, step: int) -> float:
        """Factor of Adam's step size."""
        return cosine_decay(self.first_step + step, self.num_steps)

    def configure_adam(self) -> Adam:
        """Adam on the latents."""
        return Adam([self.z], lr=self.hparams.lr_z, betas=(0.9, 0.99))

    def configure_optimizers(self) -> Any:
        optimizer = self.configure_adam()
        schedule = LambdaLR(optimizer, self.step_size_decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
