r"""What methods have in common whose particles go down the noise levels, as in sampling from the prior."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from rlsd_lightning.functional.schedules import add_noise, reverse_step
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.base import ParticleModule, check_settings, noise_key
from rlsd_lightning.operators.proximal import RESULT_STEPS, noise_share, proximal_step, solves_apart
from rlsd_lightning.priors import Prior
from rlsd_lightning.uncertainty import DecoderError, decoder_error

__all__ = ["AnnealedModule"]

LEAST_ALPHA = 1e-4
"""Signal levels below count as this one where they are divided by."""


class AnnealedModule(ParticleModule):
    r"""Particles whose noisy latents ``z_t``, a buffer, lose noise from step to step.

    The parameter ``z`` holds the clean latents as the particles see them now, so that pictures and results are those of
    every method. The results are :math:`\arg\min_x \mathrm{misfit}(A(x), y) + \mu \, \mathrm{mean}(x - D(z_i))^2` in all of
    them, so that they can be compared at an equal residual.

    Args:
        prior: The latent diffusion prior.
        measurements: What is known: one measurement, or several that are solved side by side.
        features: Not compared while particles move; the results measure diversity in them.
        decoder_std: How far :math:`D(z)` typically is from an image; 0 says that latents decode exactly, and the results
            are then :math:`D(z_i)`.
        min_mu: The least weight of :math:`\|x - D\|^2` beside the misfit, both as means.
        common: Arguments of :class:`~rlsd_lightning.methods.base.ParticleModule`.

    Raises:
        InputError: If an argument is out of range.
    """

    def __init__(
        self,
        prior: Prior,
        measurements: Measurement | Sequence[Measurement],
        features: nn.Module,
        *,
        decoder_std: float = 0.08,
        min_mu: float = 1e-3,
        **common: Any,
    ) -> None:
        super().__init__(prior, measurements, features, **common)
        check_settings({"decoder_std": decoder_std}, {"min_mu": min_mu})
        # numbers that steps need: read now, as reading from a device waits for it
        num_values = self.x[0].numel()
        self._noise_shares = {each.name: noise_share(each, num_values) for each in self.measurements}
        alphas, sigmas = prior.alphas.square(), prior.sigmas.square()
        self.open_share: list[float] = (sigmas / (alphas + sigmas)).tolist()
        r"""The share :math:`\sigma_t^2 / (\alpha_t^2 + \sigma_t^2)` of white latents' variance that every timestep's noise leaves open."""
        self.x.requires_grad_(False)
        self.register_buffer("z_t", self._noisy_start())

    def _noisy_start(self) -> Tensor:
        if self.measurements[0].start is None:
            return self.z.detach().clone()
        t = self.timesteps[0]
        noise = self._first_draw("z_init", self.prior.latent_shape)
        return add_noise(self.z.detach(), noise, self.prior.alpha(t).cpu(), self.prior.sigma(t).cpu())

    def training_step(self, batch: tuple[int, int], batch_idx: int) -> Tensor:
        step, t = batch
        assert step == batch_idx, f"step {step} came as batch {batch_idx}: the schedule was not restored"
        target = self.advance(step, t).detach().to(self.z)
        if self.logs(batch_idx):
            self.log("noise_level", self.prior.sigma(t))
        z = self.z[self.rows]
        return torch.sum((z.detach() - target) * z)  # SGD with step size 1 puts the latents there

    @abstractmethod
    def advance(self, step: int, t: int) -> Tensor:
        """Takes this process's noisy latents from timestep t to the next; returns the clean ones as they see them."""

    def next_timestep(self, step: int) -> int | None:
        """The timestep after a step's; None after the last."""
        return self.timesteps[step + 1] if step + 1 < len(self.timesteps) else None

    def ancestral(self, step: int, t: int, z_t: Tensor, clean: Tensor) -> Tensor:
        """A draw of the next timestep's noisy latents, given this one's and the clean ones; a step must follow."""
        following = self.timesteps[step + 1]
        levels = (self.prior.alpha(t), self.prior.sigma(t), self.prior.alpha(following), self.prior.sigma(following))
        from_noisy, from_clean, variance = reverse_step(*levels)
        return from_noisy * z_t + from_clean * clean + variance.sqrt() * self.noise(step)

    def denoised(self, z_t: Tensor, t: int) -> Tensor:
        r"""The clean latents :math:`\hat z = (z_t - \sigma_t \hat\epsilon) / \alpha_t`, a chunk of particles at a time."""
        if not len(z_t):
            return z_t
        noise = self._chunked(lambda part: self.prior.predict_noise(part, t), z_t)
        # where nothing is left of the signal, z_t is the noise, and 0 / 0 the latents' mean
        return (z_t - self.prior.sigma(t) * noise) / self.prior.alpha(t).clamp_min(LEAST_ALPHA)

    def mu(self, measurement: Measurement, image_var: float) -> float:
        r"""The proximal weight :math:`\max(n / m \cdot s^2 / v, \mathrm{min\_mu})` for images that are known up to a variance v."""
        return max(self._noise_shares[measurement.name] / image_var, self.hparams.min_mu)

    @torch.no_grad()
    def reconstructions(self) -> tuple[Tensor, Tensor]:
        decoded = self.decode(self.z.detach()[self.rows])
        every = self.gather(decoded)
        if not self.hparams.decoder_std:
            return every, every
        images = self.proximal_steps(decoded, self.hparams.decoder_std**2, inner_steps=RESULT_STEPS)
        return self.gather(images), every

    def decoder_error(self, measurement: Measurement, images: Tensor, decoded: Tensor) -> DecoderError | None:
        image_var = self.hparams.decoder_std**2
        without_decoder = self.prior.latent_shape == self.prior.image_shape
        if not image_var or without_decoder or images.ndim != 4:
            return None
        settings = {"seed": self.seed, "key": noise_key(measurement)}
        at_once = self.particle_chunk or self.num_particles  # whatever the processes: others would round in another way
        weight = self.mu(measurement, image_var)
        return decoder_error(measurement, images, decoded, image_var, weight, at_once=at_once, **settings)

    def proximal_steps(self, decoded: Tensor, image_var: float, **settings: Any) -> Tensor:
        """The images that explain the measurements and are nearest to this process's decoded ones, known up to a variance."""
        steps = [
            proximal_step(measurement.physics, y, particles, self.mu(measurement, image_var), **settings)
            for measurement, y, particles in self._alike(decoded)
        ]
        return torch.cat(steps) if steps else decoded

    def _alike(self, images: Tensor) -> Iterator[tuple[Measurement, Tensor, Tensor]]:
        """Neighbours under one operator and as much noise: their first, their measurements, and this process's images.

        Many small operations cost a GPU as much as one of their size together. Where memory is saved each measurement is
        by itself.
        """

        def kind(each: tuple[Measurement, Tensor]) -> tuple:
            name, y, physics, *_ = each[0]
            together = self.particle_chunk is None and solves_apart(physics)
            return (id(physics), self._noise_shares[name], y.shape) if together else (name,)

        for _, group in groupby(self.each_here(images), kind):
            measurements, parts = zip(*group, strict=True)
            y = measurements[0].y
            if len(parts) > 1:
                y = torch.cat(
                    [one.y.expand(len(part), *y.shape[1:]) for one, part in zip(measurements, parts, strict=True)]
                )
            yield measurements[0], y, torch.cat(parts)

    def configure_optimizers(self) -> SGD:
        return SGD([self.z], lr=1.0)
