r"""Repulsive Latent Score Distillation.

For steps :math:`k` with timesteps :math:`t` from high noise to low, and every particle :math:`i`:

.. math::
    z_{t,i} &= \alpha_t z_i + \sigma_t \epsilon_{i,k} \\
    r_i &= \hat\epsilon(z_{t,i}, t) - \epsilon_{i,k} + \gamma \sigma_t \nabla_{z_i} \log \textstyle\sum_j k(f_i, f_j)
        \quad \text{with features } f_i = \phi(D(z_i)) \\
    x_i &= \arg\min_x \mathrm{misfit}(A(x), y) + \mu \, \mathrm{mean}(x - D(z_i))^2 \\
    z_i &\leftarrow \mathrm{Adam} \big[ \tfrac{1 + \mu}{2} \mathrm{mean}(x_i - D(z_i))^2
        + \lambda w(t) \, \mathrm{mean}(\mathrm{sg}[r_i] z_i) \big]

The misfit is :math:`\mathrm{mean}(y - A(x))^2` for Gaussian noise, and its like for others. One decode a step serves the proximal step, the coupling and the features.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from rlsd_lightning.errors import InputError
from rlsd_lightning.functional.kernels import log_density, mean_square_difference, median_bandwidth, thumbnails
from rlsd_lightning.functional.losses import at_least_float32, coupling, distillation
from rlsd_lightning.functional.schedules import PRIOR_WEIGHTS, prior_weight
from rlsd_lightning.likelihood import measured, misfit
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.particles import ParticleModule, check_settings
from rlsd_lightning.priors import Prior
from rlsd_lightning.proximal import proximal_step, proximal_weight

__all__ = ["RLSD"]

GAIN_EVERY = 10
"""Steps between two measurements of the decoder's gain, each of which costs one more backward pass."""


class RLSD(ParticleModule):
    r"""N interacting particles that explain a measurement under a latent diffusion prior.

    Args:
        prior: The latent diffusion prior.
        measurements: What is known: one measurement, or several that are solved side by side.
        features: Called with latents and images, returns what the kernel compares.
        gamma: Strength of the repulsion; 0 switches it off.
        gamma_mode: ``relative``: the repulsion's norm is at most ``gamma`` times that of :math:`\hat\epsilon - \epsilon`,
            for each particle; ``absolute``: as written above.
        room: Root mean square difference of a particle's image :math:`D(z_i)` to the others', in units of an image in
            [-1, 1], from which on relative repulsion has its full strength; below, strength falls with the square of
            the difference, so that particles are left alone where the data leave them no room. 0: full everywhere.
        sigma_break: Repulsion acts in the first so many thousandths of the steps, those with the most noise.
        augmented: Whether there is an auxiliary image :math:`x`; if not, the fidelity acts on :math:`D(z)`.
        x_update: ``prox`` solves for :math:`x`; ``adam`` takes one Adam step on both variables (the published form).
        decoder_std: How far :math:`D(z)` typically is from an image, in units of an image in [-1, 1]; together with
            the noise level :math:`s`, :math:`n` pixels and :math:`m` measured values it gives
            :math:`\mu = \max(n / m \cdot s^2 / \mathrm{decoder\_std}^2, \mathrm{min\_mu})`.
        min_mu: The least :math:`\mu`.
        rho: Weight of the coupling of both variables where ``x_update`` is ``adam``.
        distillation_weight: The weight :math:`\lambda`.
        weighting: The weight :math:`w(t)`: ``linear`` (:math:`\sigma_t / \alpha_t`), ``sqrt``, ``log``, ``square`` or
            ``const``.
        lr_z: First step size of Adam on the latents.
        lr_x: First step size of Adam on the auxiliaries.
        final_lr: Share of the step size that is left at the end of the cosine decay; 1 is no decay.
        renew_every: The decoder runs, and with it the gradients of the coupling, the fidelity and the repulsion are
            renewed, once in so many steps; the steps between use the last ones again. The denoiser runs in every step.
        common: Arguments of :class:`~rlsd_lightning.particles.ParticleModule`.

    Raises:
        InputError: If an argument is out of range.

    References:
        | Repulsive Latent Score Distillation for Solving Inverse Problems (Zilberstein et al., 2025)
        | https://arxiv.org/abs/2406.16683
    """

    def __init__(
        self,
        prior: Prior,
        measurements: Measurement | Sequence[Measurement],
        features: nn.Module,
        *,
        gamma: float = 0.5,
        gamma_mode: str = "relative",
        room: float = 0.4,
        sigma_break: int = 500,
        augmented: bool = True,
        x_update: str = "prox",
        decoder_std: float = 0.08,
        min_mu: float = 1e-3,
        rho: float = 0.1,
        distillation_weight: float = 0.05,
        weighting: str = "log",
        lr_z: float = 0.5,
        lr_x: float = 0.4,
        final_lr: float = 0.0,
        renew_every: int = 1,
        **common: Any,
    ) -> None:
        super().__init__(prior, measurements, features, **common)
        if gamma_mode not in ("relative", "absolute"):
            raise InputError(f"method.gamma_mode must be relative or absolute, got '{gamma_mode}'")
        if x_update not in ("prox", "adam"):
            raise InputError(f"method.x_update must be prox or adam, got '{x_update}'")
        if renew_every < 1 or (renew_every > 1 and augmented and x_update == "adam"):
            raise InputError(
                f"method.renew_every must be at least 1, and 1 where method.x_update is adam, got {renew_every}"
            )
        if weighting not in PRIOR_WEIGHTS:
            raise InputError(f"method.weighting must be one of {', '.join(PRIOR_WEIGHTS)}, got '{weighting}'")
        check_settings(
            {
                "gamma": gamma,
                "room": room,
                "sigma_break": sigma_break,
                "rho": rho,
                "distillation_weight": distillation_weight,
            },
            {"decoder_std": decoder_std, "min_mu": min_mu, "lr_z": lr_z, "lr_x": lr_x},
        )
        self.mu = {measurement.name: self._proximal_weight(measurement) for measurement in self.measurements}
        self.x.requires_grad_(augmented and x_update == "adam")
        self.register_buffer("decoder_gain", torch.ones(len(self.z)))
        if renew_every > 1:
            self.register_buffer("held", torch.zeros_like(self.z))
            self._renewed: dict[str, Tensor] = {}  # to be logged

    def _proximal_weight(self, measurement: Measurement) -> float:
        return proximal_weight(measurement, self.x[0].numel(), self.hparams.decoder_std**2, self.hparams.min_mu)

    def training_step(self, batch: tuple[int, int], batch_idx: int) -> Tensor:
        step, t = batch
        assert step == batch_idx, f"step {step} came as batch {batch_idx}: the schedule was not restored"
        alpha, sigma = self.prior.alpha(t), self.prior.sigma(t)
        weight = self.hparams.distillation_weight * prior_weight(alpha, sigma, self.hparams.weighting)
        z = self.z[self.rows]
        score = self.score(z, self.noise(step), t)
        losses = {"distillation": weight * distillation(score, z)}
        if self.hparams.renew_every == 1:
            losses |= self._decoder_losses(z, score, weight, sigma, step)
            loss = sum(losses.values())
        else:
            if step % self.hparams.renew_every == 0:
                renewed = self._decoder_losses(z, score, weight, sigma, step)
                # a mean over an image's pixels has a gradient that half precision would round to zero
                scale = self.x[0].numel()
                if len(z):
                    (gradient,) = torch.autograd.grad(scale * sum(renewed.values()), z)
                    self.held[self.rows] = gradient / scale
                self._renewed = {name: value.detach() for name, value in renewed.items()}
            loss = losses["distillation"] + torch.sum(self.held[self.rows] * z)
            losses |= self._renewed
        self.log_losses(losses, batch_idx)
        return loss

    def _decoder_losses(self, z: Tensor, score: Tensor, weight: Tensor, sigma: Tensor, step: int) -> dict[str, Tensor]:
        """The terms that need the decoded latents: what ties them to the measurements, and the repulsion."""
        decoded = self.decode(z)
        losses = self._likelihood(decoded)
        if not self.hparams.gamma:
            return losses
        if self.repulsion_is_on(step, self.hparams.sigma_break):
            surrogate, ratio = self._repulsion(z, decoded, score, sigma, step)
            losses["repulsion"] = weight * surrogate
            self.repulsion_ratios.append(ratio.detach())
        else:  # a curve that ends would go on with its last value
            losses["repulsion"] = ratio = decoded.new_zeros(())
        self.log_step({"repulsion_to_score": ratio}, step)
        return losses

    def _likelihood(self, decoded: Tensor) -> dict[str, Tensor]:
        """The terms that tie the latents to the measurements; in the proximal form they also renew x."""
        if not self.hparams.augmented:
            return {"fidelity": self._fidelity(decoded)}
        if self.hparams.x_update == "adam":
            x = self.x[self.rows]
            return {
                "fidelity": self._fidelity(x),
                "coupling": self.hparams.rho * coupling(x, decoded),
            }
        self.x.data[self.rows] = x = self._proximal_steps(decoded)
        # x goes a share 1 / (1 + mu) of the way to the measurement; the latents feel all of it, whatever the noise
        terms = [
            (1 + self.mu[measurement.name]) * coupling(x_of_one, decoded_of_one)
            for measurement, x_of_one, decoded_of_one in self.each_here(x, decoded)
        ]
        return {"coupling": sum(terms, decoded.new_zeros(()))}

    def _proximal_steps(self, decoded: Tensor) -> Tensor:
        steps = [
            proximal_step(measurement.physics, measurement.y, particles, self.mu[measurement.name])
            for measurement, particles in self.each_here(decoded)
        ]
        return torch.cat(steps) if steps else decoded

    def _fidelity(self, images: Tensor) -> Tensor:
        terms = [
            misfit(physics.noise_model, measured(physics, particles), y).sum()
            for (_, y, physics, *_), particles in self.each_here(images)
        ]
        return 0.5 * sum(terms, images.new_zeros(()))

    def _repulsion(self, z: Tensor, decoded: Tensor, score: Tensor, sigma: Tensor, step: int) -> tuple[Tensor, Tensor]:
        r"""A surrogate whose gradient in z is the scaled repulsion over the number of elements of a latent,
        and the ratio of the repulsion's norm to the score's, a mean over a measurement's particles.

        The gradient of the log density is taken back to the decoded image only, and goes through the decoder together
        with that of the coupling. Its norm after the decoder, which relative strength needs, is the norm before it
        times the decoder's gain, measured now and then.
        """
        latents, images = z.detach().requires_grad_(), decoded.detach().requires_grad_()
        features = at_least_float32(self.compared(latents, images))
        density = self._log_density(features)
        room = self._room(decoded)  # exchanges images, so those without particles take part
        if not len(z):
            return z.sum(), decoded.new_zeros(())
        push = torch.autograd.grad(density, (latents, images), allow_unused=True)
        through_decoder = push[1] is not None
        push_z, push_x = (
            torch.zeros_like(leaf) if gradient is None else gradient
            for gradient, leaf in zip(push, (latents, images), strict=True)
        )
        before = torch.sqrt(_square_norm(push_z) + _square_norm(push_x))
        gain = self.decoder_gain[self.rows]
        if through_decoder and step % GAIN_EVERY == 0:
            (pulled,) = torch.autograd.grad(decoded, z, push_x, retain_graph=True)
            after = torch.sqrt(_square_norm(push_z + pulled))
            gain.copy_(torch.where(before > 0, after / before, gain))
        norm, score_norm = before * gain, _square_norm(score).sqrt()
        if self.hparams.gamma_mode == "absolute":
            scale = self.hparams.gamma * sigma * torch.ones_like(norm)
        else:
            # a lone particle, or two in one place, have no direction to go
            scale = torch.where(norm > 0, self.hparams.gamma * room * score_norm / norm, 0.0)
        ratio = (scale * norm / score_norm).sum() / self.num_particles
        scale = scale.view(-1, *[1] * (z.ndim - 1)) / self.z[0].numel()
        surrogate = torch.sum(scale * push_z * z)
        if through_decoder:
            surrogate = surrogate + torch.sum(scale.view(-1, *[1] * (decoded.ndim - 1)) * push_x * decoded)
        return surrogate, ratio

    def _room(self, decoded: Tensor) -> Tensor:
        """The share of the full strength that the repulsion of each of this process's particles has."""
        if not self.hparams.room or self.hparams.gamma_mode == "absolute":
            return decoded.new_ones(len(decoded))
        # every process sums over all particles: sums over some would be rounded in another way
        seen = self.gather(at_least_float32(thumbnails(decoded.detach())))
        squares = torch.cat([mean_square_difference(particles) for _, particles in self.each(seen)])
        return (squares[self.rows] / self.hparams.room**2).clamp(max=1)

    def _log_density(self, features: Tensor) -> Tensor:
        """The sum of this process's particles' log densities; no kernel joins two measurements."""
        others = {measurement.name: rows for measurement, rows in self.each(self._every(features))}
        densities = [
            log_density(mine, others[measurement.name], median_bandwidth(others[measurement.name])).sum()
            for measurement, mine in self.each_here(features)
        ]
        return sum(densities)

    @torch.no_grad()
    def _every(self, features: Tensor) -> Tensor:
        """All particles' features."""
        if getattr(self.features, "needs_images", True):
            return self.gather(features.detach())
        return at_least_float32(self.features(self.z.detach(), None))

    @torch.no_grad()
    def reconstructions(self) -> tuple[Tensor, Tensor]:
        decoded = self.decode(self.z[self.rows])
        if not self.hparams.augmented:
            x = decoded
        elif self.hparams.x_update == "adam":
            x = self.x[self.rows]
        else:
            x = self._proximal_steps(decoded)
        return self.gather(x.detach()), self.gather(decoded)

    def configure_optimizers(self) -> dict:
        groups = [{"params": [self.z], "lr": self.hparams.lr_z}]
        if self.x.requires_grad:
            groups.append({"params": [self.x], "lr": self.hparams.lr_x})
        optimizer = Adam(groups, betas=(0.9, 0.99))
        final = self.hparams.final_lr

        def decay(step: int) -> float:
            done = (self.first_step + step) / self.full_length
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))

        schedule = LambdaLR(optimizer, decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _square_norm(value: Tensor) -> Tensor:
    return at_least_float32(value).square().flatten(1).sum(dim=1)
