r"""Few-step posterior sampling with a consistency model (LATINO), without any backward pass.

A consistency model makes a clean latent of a noisy one in one call. Timesteps go down, :math:`t \to s`; a step is

.. math::
    \hat z &= \mathrm{denoise}(z_t, t), \qquad x = \arg\min_x \mathrm{misfit}(A(x), y) + \mu_t \, \mathrm{mean}((x - D(\hat z))^2) \\
    z &= E(x), \qquad z_s = \alpha_s z + \sigma_s n, \qquad n \sim \mathcal{N}(0, I)

with the prior's encoder :math:`E` and decoder :math:`D`. The last step ends at :math:`z`. Further data steps repeat the proximal step
from :math:`D(z)` and move :math:`z` by :math:`E(x) - E(D(z))`, in which the autoencoder's error cancels: an encoder averages over the few
pixels that sparse data correct, and one step brings the latents a part of the way.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlsd_lightning.errors import require_at_least_one, require_positive
from rlsd_lightning.features import Features
from rlsd_lightning.functional.losses import half_square_distance
from rlsd_lightning.functional.schedules import add_noise, image_variances
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.methods.decoding import encoded_difference
from rlsd_lightning.priors import Prior

__all__ = ["LATINO"]


class LATINO(ParticleModule):
    r"""Independent samples; each step calls the denoiser, the decoder and the encoder once, or more with ``data_steps``.

    Meant for latent consistency models and 4 to 16 steps. The weight :math:`\mu_t` follows from the noise level of the
    measurement and the variance of :math:`D(\hat z)`, as in :class:`~rlsd_lightning.RLSD`; the published method sets it by hand.

    Args:
        data_steps: Proximal steps of each step, at least 1; each further one costs a decode and two encodes.
        image_std: See :class:`~rlsd_lightning.RLSD`.
        antithetic: See :class:`~rlsd_lightning.methods.base.ParticleModule`.
        common: See :class:`~rlsd_lightning.methods.base.ParticleModule`, also for the positional arguments.

    Raises:
        InputError: If an argument is out of range.

    References:
        | LATINO-PRO: LAtent consisTency INverse sOlver with PRompt Optimization (Spagnoletti et al., 2025)
        | https://arxiv.org/abs/2503.12615
    """

    timestep_spacing = "trailing"  # few steps must start at pure noise

    def __init__(
        self,
        prior: Prior,
        measurements: Measurement | Sequence[Measurement],
        features: Features,
        *,
        num_steps: int = 8,
        data_steps: int = 1,
        image_std: float | None = None,
        antithetic: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(prior, measurements, features, num_steps=num_steps, antithetic=antithetic, **common)
        require_at_least_one(data_steps=data_steps)
        image_std = self.hparams.image_std
        require_positive(image_std=image_std, decoder_std=self.decoder_std)
        self.image_variances = image_variances(prior.alphas, prior.sigmas, image_std, self.decoder_std)
        self.register_buffer("z_t", self.noisy_start())

    def training_step(self, batch: tuple[int, int], batch_idx: int) -> Tensor:
        step, t, s = self.begin(batch, batch_idx)
        z = self.clean_latents(t)
        if s is not None:
            self.z_t[self.rows] = add_noise(z, self.noise(step), self.prior.alpha(s), self.prior.sigma(s))
        return half_square_distance(self.z[self.rows], z)

    @torch.no_grad()
    def clean_latents(self, t: int) -> Tensor:
        r"""Latents after the proximal steps that set :math:`x`: :math:`E(x)` after the first."""
        z = self.denoise(self.z_t[self.rows], t)[0]
        for step in range(self.hparams.data_steps):
            decoded = self.decode(z)
            x = self.solve_images(decoded, self.image_variances[t])
            if len(x):
                z = self.chunked(self.prior.encode, x) if step == 0 else z + encoded_difference(self, x, decoded)
        return z
