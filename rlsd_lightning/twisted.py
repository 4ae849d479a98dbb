r"""Twisted particle filter: particles whose shares of the posterior's modes are right, not only their places.

Particles go down the diffusion's noise levels together. With :math:`\hat z = (z_t - \sigma_t \hat\epsilon) / \alpha_t`
and the spread :math:`u_t = \sigma_t^2 / (\alpha_t^2 v + \sigma_t^2)` of what noise leaves open, every particle has

.. math::
    x^* &= \arg\min_x J(x), \quad J(x) = -\log p(y \mid A(x)) + \tfrac{1}{2 c_t} \|x - D(\hat z)\|^2 \\
    \log g_t &= -J(x^*) \qquad \text{(how well the clean image it will become explains y)} \\
    \delta &= E(x^*) - E(D(\hat z)) \\
    z_s &\sim q_t = \mathcal{N}(m_t(z_t, \hat z + \delta), \tau_t^2 I), \quad
        w \leftarrow w \, \frac{g_s(z_s)}{g_t(z_t)} \, \frac{\mathcal{N}(z_s; m_t(z_t, \hat z), \tau_t^2 I)}{q_t(z_s)}

and where the weights have become too unequal, particles are drawn anew in proportion to them. For a linear operator,
Gaussian noise and a Gaussian prior of variance :math:`v`, :math:`g_t` is :math:`p(y \mid z_t)`, a constant apart. For any
other prior the weights make up for the difference as :math:`N` grows, but for what the timesteps leave out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import SGD

from rlsd_lightning.errors import InputError
from rlsd_lightning.functional.losses import at_least_float32, square_misfit
from rlsd_lightning.functional.noise import keyed_normal, keyed_uniform
from rlsd_lightning.functional.resampling import effective_share, systematic_ancestors
from rlsd_lightning.functional.schedules import add_noise, reverse_step
from rlsd_lightning.likelihood import has_square_misfit, measured, misfit, noise_std
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.particles import ParticleModule, check_settings, noise_key
from rlsd_lightning.priors import Prior
from rlsd_lightning.proximal import proximal_step

__all__ = ["TwistedFilter"]


class TwistedFilter(ParticleModule):
    r"""Weighted, resampled particles of each measurement's posterior.

    A step costs one call of the denoiser, one decode and its backward pass. The parameter ``z`` holds the clean latents
    as the particles see them now; the noisy ones and the weights are buffers, and so in every checkpoint.

    Args:
        prior: The latent diffusion prior.
        measurements: What is known: one measurement, or several that are solved side by side.
        features: Not compared while particles move, there is no repulsion; the results measure diversity in them.
        num_particles: The number :math:`N` of particles of each measurement.
        num_steps: The number :math:`K` of timesteps.
        seed: Seed of all noise.
        warm_share: Share of the timesteps, those with the least noise, that is taken where the measurement says what the
            particles start from.
        particle_chunk: Networks see so many particles at a time; all at once if left out.
        latent_std: Standard deviation :math:`\sqrt{v}` of the prior's clean latents.
        image_std: Standard deviation of its images about their mean, over all pixels; that of the latents where they are
            the images.
        decoder_std: How far :math:`D(z)` typically is from an image; 0 says that the latents decode exactly, and the
            results are then draws with all their noise.
        resample_below: Particles are drawn anew where the effective share of the particles is below this; 0: only at
            the end.
        evidence_values: Weights count as if so many values had been measured where there are more: a few particles
            can't represent thousands of measured values. Fewer values count in full.
        min_mu: The least weight of :math:`\|x - D\|^2` beside the fidelity, both as means; in effect the least noise.

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
        features: nn.Module,
        *,
        num_particles: int = 4,
        num_steps: int = 200,
        seed: int = 0,
        warm_share: float = 0.5,
        particle_chunk: int | None = None,
        latent_std: float = 1.0,
        image_std: float = 0.5,
        decoder_std: float = 0.08,
        resample_below: float = 0.5,
        evidence_values: int = 4,
        min_mu: float = 1e-3,
    ) -> None:
        super().__init__(
            prior,
            measurements,
            features,
            num_particles=num_particles,
            num_steps=num_steps,
            seed=seed,
            warm_share=warm_share,
            particle_chunk=particle_chunk,
        )
        check_settings(
            {"decoder_std": decoder_std, "resample_below": resample_below},
            {"latent_std": latent_std, "image_std": image_std, "evidence_values": evidence_values, "min_mu": min_mu},
        )
        if resample_below > 1:
            raise InputError(f"method.resample_below must be at most 1, got {resample_below}")
        self.save_hyperparameters(ignore=["prior", "measurements", "features"])
        self.x.requires_grad_(False)
        self.register_buffer("z_t", self._noisy_start())
        self.register_buffer("log_weights", torch.zeros(len(self.z)))

    def _noisy_start(self) -> Tensor:
        if self.measurements[0].start is None:
            return self.z.detach().clone()
        t = self.timesteps[0]
        noise = self._first_draw("z_init", self.prior.latent_shape)
        return add_noise(self.z.detach(), noise, self.prior.alpha(t).cpu(), self.prior.sigma(t).cpu())

    def training_step(self, batch: tuple[int, int], batch_idx: int) -> Tensor:
        step, t = batch
        assert step == batch_idx, f"step {step} came as batch {batch_idx}: the schedule was not restored"
        last = step + 1 == len(self.timesteps)
        z_t = self.z_t[self.rows]
        clean = self._denoised(z_t, t)
        shift, log_twist = self._guide(clean, self._spreads(t)[1], self._measured())
        self.log_weights[self.rows] += log_twist
        shares = self._select(step, last, z_t, clean, shift, log_twist)
        if last:
            clean, shift = self._last_draw(clean, shift, step, t)
        else:
            self._move(step, t, z_t, clean, shift, log_twist)
        target = (clean + shift).to(self.z)
        self._log(shares, t, batch_idx)
        z = self.z[self.rows]
        return torch.sum((z.detach() - target) * z)  # SGD with step size 1 puts the latents there

    def _spreads(self, t: int) -> tuple[Tensor, Tensor]:
        """What noise leaves open: the variance of a clean latent and of its decoded image."""
        alpha, sigma = self.prior.alpha(t), self.prior.sigma(t)
        variance = self.hparams.latent_std**2
        share = sigma**2 / (alpha**2 * variance + sigma**2)
        return variance * share, self.hparams.image_std**2 * share + self.hparams.decoder_std**2

    @torch.no_grad()
    def _denoised(self, z_t: Tensor, t: int) -> Tensor:
        if not len(z_t):
            return z_t
        parts = z_t.split(self.particle_chunk or len(z_t))
        noise = torch.cat([self.prior.predict_noise(part, t) for part in parts])
        return (z_t - self.prior.sigma(t) * noise) / self.prior.alpha(t)

    def _measured(self) -> list[Tensor]:
        """The measurements that this process has particles of."""
        return [measurement.y for measurement, _ in self.each_here(self.z[self.rows])]

    @torch.no_grad()
    def _guide(self, clean: Tensor, image_var: Tensor, ys: list[Tensor]) -> tuple[Tensor, Tensor]:
        r"""The shift :math:`\delta` towards the measurement, and :math:`\log g_t`, times the share that counts."""
        if not len(clean):
            return clean, self.log_weights[:0]
        decoded = self.decode(clean)
        toward, log_twist = self._proximal(decoded, image_var, ys)
        # the difference of two encoded images: what coding loses is in both
        return self._encode(decoded + toward.to(decoded)) - self._encode(decoded), log_twist

    def _encode(self, images: Tensor) -> Tensor:
        return self._chunked(self.prior.encode, images)

    def _proximal(self, decoded: Tensor, image_var: Tensor, ys: list[Tensor]) -> tuple[Tensor, Tensor]:
        r""":math:`x^* - D(\hat z)`, and :math:`-J(x^*)` times the share that counts, of this process's particles."""
        toward, log_twists = [], []
        if not len(decoded):
            return decoded, self.log_weights[:0]
        for (measurement, images), y in zip(self.each_here(at_least_float32(decoded)), ys, strict=True):
            physics, mu = measurement.physics, self._mu(measurement, image_var)
            x = proximal_step(physics, y, images, mu)
            error = misfit(physics.noise_model, measured(physics, x), y)
            envelope = error + mu * square_misfit(x, images)
            log_twist = -0.5 * x[0].numel() / (mu * image_var) * envelope
            toward.append(x - images)
            log_twists.append(self._counted(measurement) * log_twist)
        return torch.cat(toward), torch.cat(log_twists)

    def _mu(self, measurement: Measurement, image_var: Tensor) -> float:
        pixels_per_value = self.x[0].numel() / measurement.y[0].numel()
        noise_var = noise_std(measurement.physics.noise_model, measurement.y) ** 2
        return max(pixels_per_value * noise_var / image_var.item(), self.hparams.min_mu)

    def _counted(self, measurement: Measurement) -> float:
        return min(1.0, self.hparams.evidence_values / measurement.y[0].numel())

    def _select(self, step: int, last: bool, *values: Tensor) -> Tensor:
        """Draws particles anew in place where their weights are too unequal; returns the shares that were effective."""
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
        key = noise_key(measurement)
        return keyed_uniform(seed=self.seed, measurement=key, stream="resample", step=self.first_step + step)

    def _move(self, step: int, t: int, z_t: Tensor, clean: Tensor, shift: Tensor, log_twist: Tensor) -> None:
        """To the next noise level, with what that and leaving this one does to the weights."""
        following = self.timesteps[step + 1]
        levels = (self.prior.alpha(t), self.prior.sigma(t), self.prior.alpha(following), self.prior.sigma(following))
        from_noisy, from_clean, variance = reverse_step(*levels)
        variance = variance + from_clean**2 * self._spreads(t)[0]
        noise, guided = variance.sqrt() * self.noise(step), from_clean * shift
        self.z_t[self.rows] = from_noisy * z_t + from_clean * clean + guided + noise
        unguided = (noise.square() - (noise + guided).square()).flatten(1).sum(dim=1) / (2 * variance)
        for measurement, weights, twist, ratio in self.each_here(self.log_weights[self.rows], log_twist, unguided):
            weights += self._counted(measurement) * ratio - twist

    def _last_draw(self, clean: Tensor, shift: Tensor, step: int, t: int) -> tuple[Tensor, Tensor]:
        r"""A draw of :math:`z_0` given :math:`z_t` and y where the latents decode exactly, else its mean.

        The draw perturbs the clean latent and the measurement, and solves for what is nearest to both: exact for linear
        operators and Gaussian noise. Other noise leaves the measurement as it is.
        """
        if self.hparams.decoder_std or not len(clean):
            return clean, shift
        latent_var, image_var = self._spreads(t)
        clean = clean + latent_var.sqrt() * self.keyed_noise("last_z", step)
        return clean, self._guide(clean, image_var, self._perturbed(step))[0]

    def _perturbed(self, step: int) -> list[Tensor]:
        """The measurements with noise of their own for each of this process's particles."""
        ys = []
        for measurement, indices in self.each_here(self._index[self.rows]):
            y, noise_model = measurement.y, measurement.physics.noise_model
            if has_square_misfit(noise_model):
                key = {"seed": self.seed, "measurement": noise_key(measurement), "step": self.first_step + step}
                noise = keyed_normal(tuple(y.shape[1:]), indices.tolist(), stream="last_y", **key)
                y = y + noise_std(noise_model, y) * noise.to(y)
            ys.append(y)
        return ys

    def _log(self, shares: Tensor, t: int, batch_idx: int) -> None:
        if self.logs(batch_idx):
            self.log("effective_share", shares.mean(), prog_bar=True)
            self.log("noise_level", self.prior.sigma(t))

    @torch.no_grad()
    def reconstructions(self) -> tuple[Tensor, Tensor]:
        decoded = self.decode(self.z.detach()[self.rows])
        if not self.hparams.decoder_std:
            return self.gather(decoded), self.gather(decoded)
        image_var = torch.full((), self.hparams.decoder_std**2)
        toward = self._proximal(decoded, image_var, self._measured())[0]
        return self.gather(decoded + toward), self.gather(decoded)

    def configure_optimizers(self) -> SGD:
        return SGD([self.z], lr=1.0)
