r"""Repulsive Latent Score Distillation.

Timesteps :math:`t` go from high noise to low. In the first of them the particles :math:`i` are sampled: they keep their
noise from step to step, and the auxiliary image pulls at them through the decoder and the denoiser.

.. math::
    \hat z_i &= (z_{t,i} - \sigma_t \hat\epsilon(z_{t,i}, t)) / \alpha_t \\
    x_i &= \arg\min_x \mathrm{misfit}(A(x), y) + \mu_t \, \mathrm{mean}(x - D(\hat z_i))^2 \\
    z_{s,i} &\sim \mathcal{N}(m_t(z_{t,i}, \hat z_i), \tau_t^2 I), \qquad
    z_{s,i} \leftarrow z_{s,i} - \zeta_K \nabla_{z_{t,i}} \big[ \|x_i - D(\hat z_i)\|
        + \gamma_i \log \textstyle\sum_j k(f_i, f_j) \big] \quad \text{with features } f_i = \phi(D(\hat z_i))

In the others they are distilled, with fresh noise :math:`\epsilon` in every step:

.. math::
    r_i &= \hat\epsilon(\alpha_t z_i + \sigma_t \epsilon_{i,k}, t) - \epsilon_{i,k}
        + \gamma \sigma_t \nabla_{z_i} \log \textstyle\sum_j k(f_i, f_j) \quad \text{with } f_i = \phi(D(z_i)) \\
    x_i &= \arg\min_x \mathrm{misfit}(A(x), y) + \mu \, \mathrm{mean}(x - D(z_i))^2 \\
    z_i &\leftarrow \mathrm{Adam} \big[ \tfrac{1 + \mu}{2} \mathrm{mean}(x_i - D(z_i))^2
        + \lambda w(t) \, \mathrm{mean}(\mathrm{sg}[r_i] z_i) \big]

Sampling finds what the hidden part may be, given the seen one; distillation takes the noise out of it, and brings it to
the measurement. With antithetic noise, the default, the noises of a measurement's particles sum to zero in both: each has
the distribution of independent noise, any two have the correlation :math:`-1 / (N - 1)`, and particles differ more. The misfit is
:math:`\mathrm{mean}(y - A(x))^2` for Gaussian noise, and its like for others.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from rlsd_lightning.errors import InputError
from rlsd_lightning.functional.losses import coupling, distillation, gradients_of_mean, norms
from rlsd_lightning.functional.schedules import PRIOR_WEIGHTS, prior_weight
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.base import check_settings
from rlsd_lightning.operators.likelihood import measured, misfit
from rlsd_lightning.priors import Prior
from rlsd_lightning.repulsion import RepulsiveModule, square_norms
from rlsd_lightning.uncertainty import DecoderError

__all__ = ["RLSD"]

GAIN_EVERY = 10
"""Steps between two measurements of the decoder's gain, each of which costs one more backward pass; distillation begins
with one."""


class RLSD(RepulsiveModule):
    r"""N interacting particles that explain a measurement under a latent diffusion prior.

    Args:
        prior: The latent diffusion prior.
        measurements: What is known: one measurement, or several that are solved side by side.
        features: Called with latents and images, returns what the kernel compares.
        sampling_share: Share of the timesteps, those with the most noise, in which particles are sampled; 0 distils in
            all, as published, 1 samples in all.
        zeta: Step size :math:`\zeta` of the auxiliary image's pull in a run of a hundred steps; in :math:`K` steps it is
            :math:`\zeta_K = 100 \, \zeta / K`, so that all pulls together are the same.
        image_std: Standard deviation of the prior's images: while particles are sampled :math:`D(\hat z)` is taken to be known
            up to the variance :math:`\mathrm{image\_std}^2 \sigma_t^2 / (\alpha_t^2 + \sigma_t^2) + \mathrm{decoder\_std}^2`,
            which gives :math:`\mu_t` as that of ``decoder_std`` gives :math:`\mu`.
        augmented: Whether there is an auxiliary image :math:`x`; if not, the fidelity acts on :math:`D(z)`, and
            :math:`\|y - A D(\hat z)\|` is what pulls.
        x_update: ``prox`` solves for :math:`x`; ``adam`` takes one Adam step on both variables (the published form),
            which is for distillation alone.
        decoder_std: How far :math:`D(z)` typically is from an image, in units of an image in [-1, 1]; together with
            the noise level :math:`s`, :math:`n` pixels and :math:`m` measured values it gives
            :math:`\mu = \max(n / m \cdot s^2 / \mathrm{decoder\_std}^2, \mathrm{min\_mu})`.
        rho: Weight of the coupling of both variables where ``x_update`` is ``adam``.
        distillation_weight: The weight :math:`\lambda`.
        weighting: The weight :math:`w(t)`: ``linear`` (:math:`\sigma_t / \alpha_t`), ``sqrt``, ``log``, ``square`` or
            ``const``.
        lr_z: First step size of Adam on the latents, if it began at the first timestep.
        lr_x: First step size of Adam on the auxiliaries.
        final_lr: Share of the step size that is left at the end of the cosine decay; 1 is no decay.
        renew_every: In distillation the decoder runs, and with it the gradients of the coupling, the fidelity and the
            repulsion are renewed, once in so many steps; the steps between use the last ones again. In sampling the
            steps between are those of the prior alone, and the others pull so many times as hard. The denoiser runs in
            every step.
        antithetic: Whether a measurement's particles have noise that sums to zero, see
            :class:`~rlsd_lightning.methods.base.ParticleModule`.
        common: Arguments of :class:`~rlsd_lightning.repulsion.RepulsiveModule` and the classes it is made from. The
            repulsion stands beside the pull while particles are sampled, times the features' ``strength``, and beside
            :math:`\hat\epsilon - \epsilon` in distillation.

    Raises:
        InputError: If an argument is out of range.

    References:
        | Repulsive Latent Score Distillation for Solving Inverse Problems (Zilberstein et al., 2025)
        | https://arxiv.org/abs/2406.16683
        | Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., 2023)
        | https://arxiv.org/abs/2209.14687
    """

    def __init__(
        self,
        prior: Prior,
        measurements: Measurement | Sequence[Measurement],
        features: nn.Module,
        *,
        sampling_share: float = 0.8,
        zeta: float = 1.0,
        image_std: float = 0.5,
        augmented: bool = True,
        x_update: str = "prox",
        decoder_std: float = 0.08,
        rho: float = 0.1,
        distillation_weight: float = 0.05,
        weighting: str = "log",
        lr_z: float = 0.5,
        lr_x: float = 0.4,
        final_lr: float = 0.0,
        renew_every: int = 1,
        antithetic: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(prior, measurements, features, decoder_std=decoder_std, antithetic=antithetic, **common)
        if x_update not in ("prox", "adam"):
            raise InputError(f"method.x_update must be prox or adam, got '{x_update}'")
        if not 0 <= sampling_share <= 1 or (sampling_share and augmented and x_update == "adam"):
            raise InputError(
                f"method.sampling_share must be from 0 to 1, and 0 where method.x_update is adam, got {sampling_share}"
            )
        if renew_every < 1 or (renew_every > 1 and augmented and x_update == "adam"):
            raise InputError(
                f"method.renew_every must be at least 1, and 1 where method.x_update is adam, got {renew_every}"
            )
        if weighting not in PRIOR_WEIGHTS:
            raise InputError(f"method.weighting must be one of {', '.join(PRIOR_WEIGHTS)}, got '{weighting}'")
        check_settings(
            {"rho": rho, "distillation_weight": distillation_weight, "zeta": zeta},
            {"decoder_std": decoder_std, "image_std": image_std, "lr_z": lr_z, "lr_x": lr_x},
        )
        # a start with less noise has some of these steps behind it
        self.sampling_steps = max(0, round(sampling_share * self.full_length) - self.first_step)
        self.step_size = 100 * zeta / self.full_length
        self.x.requires_grad_(augmented and x_update == "adam")
        self.register_buffer("decoder_gain", torch.ones(len(self.z)))
        if renew_every > 1:
            self.register_buffer("held", torch.zeros_like(self.z))
        self._renewed: dict[str, Tensor] = {}  # the last terms that needed the decoder, to be logged
        self._ratio = torch.zeros(())  # of the last repulsion to what it stands beside, to be logged
        self._exchanges = True

    def training_step(self, batch: tuple[int, int], batch_idx: int) -> Tensor:
        step, t = batch
        assert step == batch_idx, f"step {step} came as batch {batch_idx}: the schedule was not restored"
        self._exchanges = step >= self.sampling_steps  # else all gradients are zero
        if self._exchanges:
            losses, loss = self._distil(step, t)
        else:
            self.z.data.copy_(self.gather(self.advance(step, t)))
            losses = self._renewed
            loss = 0.0 * self.z.sum()  # leaves Adam where it is, and gives half precision's scaler something to look at
        # a curve that ends would go on with its last value
        zero = loss.new_zeros(())
        self.log_losses({name: losses.get(name, zero) for name in self._terms()}, batch_idx)
        if self.hparams.gamma:
            ratio = self._ratio if self.repels(step) else zero
            self.log_step({"repulsion_ratio": ratio.to(zero.device)}, batch_idx)
        return loss

    def on_train_batch_start(self, batch: tuple[int, int], batch_idx: int) -> None:
        if 0 < batch_idx == self.sampling_steps:
            for optimizer in self.trainer.optimizers:
                optimizer.state.clear()  # Adam has counted steps that it did not take

    def on_after_backward(self) -> None:
        if self._exchanges:
            super().on_after_backward()

    def advance(self, step: int, t: int) -> Tensor:
        # the noisy latents that the last of these steps leaves are not looked at
        pulls = step % self.hparams.renew_every == 0 and step + 1 < self.sampling_steps
        z_t = self.z_t[self.rows].detach().requires_grad_(pulls)
        clean = self.denoised(z_t, t)
        gradient = torch.zeros_like(z_t)
        if pulls:
            self._renewed, gradient = self._guidance(z_t, clean, step, t)
        clean = clean.detach()
        if len(z_t) and self.next_timestep(step) is not None:
            self.z_t[self.rows] = self.ancestral(step, t, z_t.detach(), clean) - gradient
        return clean

    def _guidance(self, z_t: Tensor, clean: Tensor, step: int, t: int) -> tuple[dict[str, Tensor], Tensor]:
        """The terms that pull, and their gradient in the noisy latents: through the decoder, then the denoiser."""
        decoded = self.decode(clean)
        image = decoded.detach().requires_grad_()
        distances = self._distances(image, t)
        push = self.push(clean, decoded) if self.repels(step) else None
        gradient, ratio = torch.zeros_like(z_t), distances.new_zeros(())
        if len(z_t):
            (pull,) = torch.autograd.grad(distances.sum(), image)
            if push is not None and push.latents is not None and push.images is not None:
                (through,) = torch.autograd.grad(decoded, clean, push.images, retain_graph=True)
                push = push._replace(latents=push.latents + through, images=None)
            if push is not None and push.images is not None:
                pull, ratio = self._repelled(pull, push.images, t)
            (pull,) = torch.autograd.grad(decoded, clean, pull)
            if push is not None and push.latents is not None:
                pull, ratio = self._repelled(pull, push.latents, t)
            (gradient,) = torch.autograd.grad(clean, z_t, pull)
        # processes without particles take part in what is exchanged
        if push is not None:
            self._ratio = ratio.detach()
            self.repulsion_ratios.append(self._ratio)
        return {"guidance": distances.detach().sum()}, self.hparams.renew_every * gradient

    def _distances(self, images: Tensor, t: int) -> Tensor:
        """How far decoded images are from the measurement, times the step size; in the augmented form renews x."""
        if self.hparams.augmented:
            image_var = self.hparams.image_std**2 * self.open_share[t] + self.hparams.decoder_std**2
            self.x.data[self.rows] = x = self.proximal_steps(images, image_var)
            return self.step_size * norms(x - images)
        residuals = [norms(y - measured(physics, mine)) for (_, y, physics, *_), mine in self.each_here(images)]
        return self.step_size * torch.cat(residuals) if residuals else images.new_zeros(0)

    def _repelled(self, pull: Tensor, push: Tensor, t: int) -> tuple[Tensor, Tensor]:
        beside = square_norms(pull).sqrt()
        beside = torch.where(beside > 0, beside, self.step_size)  # where nothing is measured, nothing pulls
        scale, ratio = self.strength(square_norms(push).sqrt(), beside, self.prior.sigma(t))
        # a relative one has the step size from the pull
        absolute = self.hparams.gamma_mode == "absolute"
        factor = self.step_size if absolute else getattr(self.features, "strength", 1.0)
        scale, ratio = factor * scale, factor * ratio
        return pull + scale.view(-1, *[1] * (push.ndim - 1)) * push, ratio

    def _distil(self, step: int, t: int) -> tuple[dict[str, Tensor], Tensor]:
        """The terms of the objective, and one whose gradient is theirs."""
        alpha, sigma = self.prior.alpha(t), self.prior.sigma(t)
        weight = self.hparams.distillation_weight * prior_weight(alpha, sigma, self.hparams.weighting)
        z = self.z[self.rows]
        score = self.score(z, self.noise(step), t)
        moved = (z, self.x) if self.x.requires_grad else (z,)
        if step % self.hparams.renew_every == 0 or step == self.sampling_steps:
            renewed = self._decoder_losses(z, score, weight, sigma, step)
            gradients = [torch.zeros_like(each) for each in moved]
            if len(z):
                gradients = gradients_of_mean(sum(renewed.values()), moved, self.x[0].numel())
            self._renewed = {name: value.detach() for name, value in renewed.items()}
            if self.hparams.renew_every > 1:
                self.held[self.rows] = gradients[0]
        else:
            gradients = [self.held[self.rows]]
        losses = {"distillation": weight * distillation(score, z), **self._renewed}
        pulled = sum(torch.sum(gradient * value) for gradient, value in zip(gradients, moved, strict=True))
        return losses, losses["distillation"] + pulled

    def _decoder_losses(self, z: Tensor, score: Tensor, weight: Tensor, sigma: Tensor, step: int) -> dict[str, Tensor]:
        """The terms that need the decoded latents: what ties them to the measurements, and the repulsion."""
        decoded = self.decode(z)
        losses = self._likelihood(decoded)
        if self.repels(step):
            surrogate, ratio = self._repulsion(z, decoded, score, sigma, step)
            losses["repulsion"] = weight * surrogate
            self._ratio = ratio.detach()
            self.repulsion_ratios.append(self._ratio)
        return losses

    def _terms(self) -> list[str]:
        """The names of all terms of the steps' losses."""
        names = ["guidance"] if self.sampling_steps else []
        if self.sampling_steps == len(self.timesteps):
            return names
        names.append("distillation")
        if self.hparams.x_update == "adam" or not self.hparams.augmented:
            names.append("fidelity")
        if self.hparams.augmented:
            names.append("coupling")
        if self.repels(self.sampling_steps):
            names.append("repulsion")
        return names

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
        self.x.data[self.rows] = x = self.proximal_steps(decoded, self.hparams.decoder_std**2)
        # x goes a share 1 / (1 + mu) of the way to the measurement; the latents feel all of it, whatever the noise
        terms = [
            (1 + self.mu(measurement, self.hparams.decoder_std**2)) * coupling(x_of_one, decoded_of_one)
            for measurement, x_of_one, decoded_of_one in self.each_here(x, decoded)
        ]
        return {"coupling": sum(terms, decoded.new_zeros(()))}

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
        push, shares = self.push(z, decoded, self.z), self.room_shares(decoded)
        if not len(z):
            return z.sum(), decoded.new_zeros(())
        before = sum(square_norms(part) for part in push if part is not None).sqrt()
        gain = self.decoder_gain[self.rows]
        if push.images is not None and (step % GAIN_EVERY == 0 or step == self.sampling_steps):
            (pulled,) = torch.autograd.grad(decoded, z, push.images, retain_graph=True)
            after = square_norms(pulled if push.latents is None else pulled + push.latents).sqrt()
            gain.copy_(torch.where(before > 0, after / before, gain))
        scale, ratio = self.strength(before * gain, square_norms(score).sqrt(), sigma, shares)
        scale = scale / self.z[0].numel()
        surrogates = [
            torch.sum(scale.view(-1, *[1] * (value.ndim - 1)) * part * value)
            for part, value in ((push.latents, z), (push.images, decoded))
            if part is not None
        ]
        return sum(surrogates), ratio

    @property
    def _has_proximal_results(self) -> bool:
        return self.hparams.augmented and self.hparams.x_update == "prox"

    def decoder_error(self, measurement: Measurement, images: Tensor, decoded: Tensor) -> DecoderError | None:
        return super().decoder_error(measurement, images, decoded) if self._has_proximal_results else None

    @torch.no_grad()
    def reconstructions(self) -> tuple[Tensor, Tensor]:
        if self._has_proximal_results:
            return super().reconstructions()
        decoded = self.decode(self.z[self.rows])
        x = self.x[self.rows] if self.hparams.augmented else decoded
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
