r"""Twisted particle filter: particles whose shares of the posterior's modes are right, not only their places.

Particles go down the diffusion's noise levels together. With :math:`\hat z = (z_t - \sigma_t \hat\epsilon) / \alpha_t`
and the spread :math:`u_t = \sigma_t^2 / (\alpha_t^2 v + \sigma_t^2)` of what noise leaves open, every particle has

.. math::
    x^* &= \arg\min_x J(x), \quad J(x) = -\log p(y \mid A(x)) + \tfrac{1}{2 c_t} \|x - D(\hat z)\|^2 \\
    \log g_t &= -J(x^*) \qquad \text{(how well the clean image it will become explains y)} \\
    \delta &= E(x^*) - E(D(\hat z)) \\
    z_s &\sim q_t = \mathcal{N}(m_t(z_t, \hat z + \delta), \tau_t^2 I), \quad
        w \leftarrow w \, \frac{g_s(z_s)}{g_t(z_t)} \, \frac{\mathcal{N}(z_s; m_t(z_t, \hat z), \tau_t^2 I)}{q_t(z_s)}

and where the weights have become too unequal, particles are resampled in proportion to them. For a linear operator,
Gaussian noise and a Gaussian prior of variance :math:`v`, :math:`g_t` is :math:`p(y \mid z_t)` up to a constant. For other
priors the weights correct the difference as :math:`N` grows, up to time discretisation.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlsd_lightning.errors import InputError, require_fraction, require_positive
from rlsd_lightning.features import Features
from rlsd_lightning.functional.losses import at_least_float32, half_square_distance, square_misfit
from rlsd_lightning.functional.noise import keyed_normal, keyed_uniform
from rlsd_lightning.functional.resampling import effective_share, systematic_ancestors
from rlsd_lightning.functional.schedules import reverse_step
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.methods.decoding import encoded_difference
from rlsd_lightning.operators.likelihood import has_square_misfit, measured, misfit, noise_std
from rlsd_lightning.operators.proximal import proximal_step
from rlsd_lightning.priors import Prior

__all__ = ["TwistedFilter"]


class TwistedFilter(ParticleModule):
    r"""Weighted, resampled particles of each measurement's posterior.

    A step costs one call of the denoiser, one decode and two encodes.

    Args:
        latent_std: Standard deviation :math:`\sqrt{v}` of the prior's clean latents; None: the prior's.
        image_std: Standard deviation of its images about their mean, over all pixels; None: the prior's.
        resample_below: Effective sample size over N below which particles are resampled, in [0, 1]; 0: only at the end.
        evidence_values: Number of measured values to which the likelihood is tempered, above 0: a few particles can't
            represent the evidence of thousands. A measurement of fewer values is not tempered.
        common: See :class:`~rlsd_lightning.methods.base.ParticleModule`, also for the positional arguments. With
            ``decoder_std=0`` the results are draws with all their noise, and ``min_mu`` is in effect the least noise.

    Raises:
        InputError: If an argument is out of range.

    References:
        | Practical and Asymptotically Exact Conditional Sampling in Diffusion Models (Wu et al., 2023)
        | https://arxiv.org/abs/2306.17775
        | Robust Bayesian Inference via Coarsening (Miller & Dunson, 2019)
        | https://arxiv.org/abs/1506.06101
    """

    def __init__(
        self,
        prior: Prior,
        measurements: Measurement | Sequence[Measurement],
        features: Features,
        *,
        latent_std: float | None = None,
        image_std: float | None = None,
        resample_below: float = 0.5,
        evidence_values: int = 4,
        **common: Any,
    ) -> None:
        super().__init__(prior, measurements, features, **common)
        require_fraction(resample_below=resample_below)
        stds = {name: self.hparams[name] for name in ("latent_std", "image_std")}
        require_positive(**stds, evidence_values=evidence_values)
        if self.hparams.antithetic:
            raise InputError("antithetic must be false for TwistedFilter, which resamples independent draws")
        self.register_buffer("z_t", self.noisy_start())
        self.register_buffer("log_weights", torch.zeros(len(self.z)))

    def training_step(self, batch: tuple[int, int], batch_idx: int) -> Tensor:
        step, t, s = self.begin(batch, batch_idx)
        return half_square_distance(self.z[self.rows], self.advance(step, t, s))

    @torch.no_grad()
    def advance(self, step: int, t: int, s: int | None) -> Tensor:
        """Take this process's noisy latents to the next timestep and return the clean ones."""
        last = s is None
        z_t = self.z_t[self.rows]
        clean, _ = self.denoise(z_t, t)
        shift, log_twist = self._guide(clean, self._spreads(t)[1], self._measured())
        self.log_weights[self.rows] += log_twist
        shares = self._resample(step, last, z_t, clean, shift, log_twist)
        if last:
            clean, shift = self._last_draw(clean, shift, step, t)
        else:
            self._move(step, t, s, z_t, clean, shift, log_twist)
        if self.is_log_step(step):
            self.log("effective_share", shares.mean(), prog_bar=True)
        return clean + shift

    def _spreads(self, t: int) -> tuple[Tensor, Tensor]:
        """Variances of a clean latent and of its decoded image, given the noisy latent."""
        alpha, sigma = self.prior.alpha(t), self.prior.sigma(t)
        variance = self.hparams.latent_std**2
        share = sigma**2 / (alpha**2 * variance + sigma**2)
        return variance * share, self.hparams.image_std**2 * share + self.hparams.decoder_std**2

    def _measured(self) -> list[Tensor]:
        """The measurements that this process has particles of."""
        return [measurement.y for measurement, _ in self.each_here(self.z[self.rows])]

    @torch.no_grad()
    def _guide(self, clean: Tensor, image_var: Tensor, ys: list[Tensor]) -> tuple[Tensor, Tensor]:
        r"""The shift :math:`\delta` towards the measurement, and the tempered :math:`\log g_t`."""
        decoded = self.decode(clean)
        toward, log_twist = self._proximal(decoded, image_var, ys)
        self.keep_images(decoded + toward.to(decoded), decoded)
        if not len(clean):
            return clean, log_twist
        return encoded_difference(self, decoded + toward.to(decoded), decoded), log_twist

    def _proximal(self, decoded: Tensor, image_var: Tensor, ys: list[Tensor]) -> tuple[Tensor, Tensor]:
        r""":math:`x^* - D(\hat z)`, and the tempered :math:`-J(x^*)`, of this process's particles."""
        toward, log_twists = [], []
        if not len(decoded):
            return decoded, self.log_weights[:0]
        for (measurement, images), y in zip(self.each_here(at_least_float32(decoded)), ys, strict=True):
            physics, mu = measurement.physics, self.proximal.mu(measurement, image_var.item())
            x = proximal_step(physics, y, images, mu)
            error = misfit(physics.noise_model, measured(physics, x), y)
            envelope = error + mu * square_misfit(x, images)
            log_twist = -0.5 * x[0].numel() / (mu * image_var) * envelope
            toward.append(x - images)
            log_twists.append(self._tempering(measurement) * log_twist)
        return torch.cat(toward), torch.cat(log_twists)

    def _tempering(self, measurement: Measurement) -> float:
        """The exponent of the likelihood, in (0, 1]."""
        return min(1.0, self.hparams.evidence_values / measurement.y[0].numel())

    def _resample(self, step: int, last: bool, *values: Tensor) -> Tensor:
        """Resample the particles and these values in place; returns each measurement's effective sample size over N, as it was before."""
        weights = self.gather(self.log_weights[self.rows])
        shares = torch.stack([effective_share(each) for _, each in self.each(weights)])
        if self.num_particles == 1 or not (last or (shares < self.hparams.resample_below).any()):
            self.log_weights.copy_(weights)
            return shares
        ancestors = torch.arange(len(weights), device=weights.device)
        for index, ((measurement, each), share) in enumerate(zip(self.each(weights), shares.tolist(), strict=True)):
            if last or share < self.hparams.resample_below:
                start = index * self.num_particles
                rows = slice(start, start + self.num_particles)
                ancestors[rows] = start + systematic_ancestors(each, self._uniform(measurement, step))
                weights[rows] = 0
        self.log_weights.copy_(weights)
        for value in values:
            value.copy_(self.gather(value)[ancestors][self.rows])
        return shares

    def _uniform(self, measurement: Measurement, step: int) -> float:
        key = measurement.noise_key
        return keyed_uniform(seed=self.seed, measurement=key, stream="resample", step=self.first_step + step)

    def _move(self, step: int, t: int, s: int, z_t: Tensor, clean: Tensor, shift: Tensor, log_twist: Tensor) -> None:
        """To the next noise level, with what that and leaving this one does to the weights."""
        levels = (self.prior.alpha(t), self.prior.sigma(t), self.prior.alpha(s), self.prior.sigma(s))
        from_noisy, from_clean, variance = reverse_step(*levels)
        variance = variance + from_clean**2 * self._spreads(t)[0]
        noise, guided = variance.sqrt() * self.noise(step), from_clean * shift
        self.z_t[self.rows] = from_noisy * z_t + from_clean * clean + guided + noise
        unguided = (noise.square() - (noise + guided).square()).flatten(1).sum(dim=1) / (2 * variance)
        unguided = torch.where(variance > 0, unguided, 0.0)  # a repeated timestep moves nothing
        for measurement, weights, twist, ratio in self.each_here(self.log_weights[self.rows], log_twist, unguided):
            weights += self._tempering(measurement) * ratio - twist

    def _last_draw(self, clean: Tensor, shift: Tensor, step: int, t: int) -> tuple[Tensor, Tensor]:
        r"""A draw of :math:`z_0` given :math:`z_t` and y where the latents decode exactly, else its mean.

        The draw perturbs the clean latent and the measurement, and solves for what is nearest to both: exact for linear
        operators and Gaussian noise. Other noise leaves the measurement as it is.
        """
        if self.hparams.decoder_std or not len(clean):
            return clean, shift
        latent_var, image_var = self._spreads(t)
        clean = clean + latent_var.sqrt() * self.noise(step, "last_z")
        return clean, self._guide(clean, image_var, self._perturbed(step))[0]

    def _perturbed(self, step: int) -> list[Tensor]:
        """The measurements with noise of their own for each of this process's particles."""
        ys = []
        numbers = torch.arange(self.rows.start, self.rows.stop) % self.num_particles  # in their measurement
        for measurement, indices in self.each_here(numbers):
            y, noise_model = measurement.y, measurement.physics.noise_model
            if has_square_misfit(noise_model):
                key = {"seed": self.seed, "measurement": measurement.noise_key, "step": self.first_step + step}
                shape = (*y.shape[1:], 2) if y.is_complex() else tuple(y.shape[1:])
                noise = keyed_normal(shape, indices.tolist(), stream="last_y", **key)
                noise = torch.view_as_complex(noise) if y.is_complex() else noise
                y = y + noise_std(noise_model, y) * noise.to(y)
            ys.append(y)
        return ys
