r"""Repulsive latent score distillation: a loop with three terms, then a refinement.

Timesteps go down, :math:`t \to s`. Each particle has a clean latent :math:`z`, an image :math:`x` (the auxiliary variable) and
its noise :math:`e`, with :math:`z_t = \alpha_t z + \sigma_t e`. The prior has a denoiser and a decoder :math:`D`; features
:math:`\phi` are those of :math:`D(\hat z)`, or of :math:`\hat z` itself. A step is

.. math::
    (\hat z, \hat\epsilon) &= \mathrm{denoise}(\alpha_t z + \sigma_t e, \, t) \\
    x &= \mathrm{sg} \big[ \arg\min_x \mathrm{misfit}(A(x), y) + \mu_t \, \mathrm{mean}((x - D(\hat z))^2) \big] \\
    G &= \nabla_{z_t} \big[ \zeta \|x - D(\hat z)\| + \gamma_i \log \textstyle\sum_j k(\phi_i, \mathrm{sg}[\phi_j]) \big] \\
    J &= \tfrac{1}{2} \|z - \mathrm{sg}[\hat z]\|^2 + \langle \mathrm{sg}[G / \alpha_s], z \rangle, \qquad z \leftarrow z - \nabla_z J
        = \hat z - G / \alpha_s \\
    e &\leftarrow \sqrt{1 - \eta_t^2} \, \hat\epsilon + \eta_t n, \qquad n \sim \mathcal{N}(0, I)

with the stop-gradient :math:`\mathrm{sg}`, the step size :math:`\zeta` and the strength :math:`\gamma_i`, which is held fixed. The
first term of :math:`J` is the score-distillation (SDS) denoising loss: its gradient is
:math:`z - \hat z = (\sigma_t / \alpha_t)(\hat\epsilon - e)`. The second carries :math:`G`, the gradient of the coupling to the data
through :math:`x` and of the kernel repulsion; :math:`z_s = \alpha_s z + \sigma_s e` moves by :math:`-G`, as in DPS. The last of all
steps leaves :math:`G` out and ends at :math:`\hat z`. Where a refinement follows, the loop's last step has
:math:`E(D(\hat z)) - E(x)` in place of :math:`G / \alpha_s`, with the encoder :math:`E`: the latents go all the way to the data.

The share :math:`\eta_t` of the noise is drawn anew. With :math:`\eta_t = 1` the loop is score distillation, with
:math:`\eta_t = 0` DDIM. The default is the ancestral share: up to :math:`-G`, :math:`z_s` is a draw of the DDPM posterior.

**The refinement.** In the last ``refine_share`` of the steps Adam follows

.. math::
    \tfrac{1}{2} \mathrm{mean}((x - D(z))^2) + \lambda w(t) \, \mathrm{mean}(\mathrm{sg}[\hat\epsilon - n] \, z),

the published objective less its repulsion, with fresh noise and with :math:`x` from :math:`D(z)`. It brings each particle closer to
the measurement.

**The tiny decoder.** Where the prior has one and the operator is linear, it replaces :math:`D` in both
(:mod:`~rlsd_lightning.methods.decoding`), and a solving step follows each step with :math:`G`:

.. math:: z \leftarrow z - \ell \, \nabla_z \tfrac{1}{2} \|\mathrm{sg}[x] - D(z)\|^2,

where :math:`x` is solved from :math:`D(z)`, and the length :math:`\ell` minimises the norm on this line.

**Selection.** Three times in the loop particles far from the data are replaced by others (:mod:`~rlsd_lightning.methods.selection`).

References:
    | Repulsive Latent Score Distillation for Solving Inverse Problems (Zilberstein et al., 2025)
    | https://arxiv.org/abs/2406.16683
    | Score Distillation via Reparametrized DDIM (Lukoianov et al., 2024)
    | https://arxiv.org/abs/2405.15891
    | Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., 2023)
    | https://arxiv.org/abs/2209.14687
"""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.autograd import grad
from torch.optim import SGD, Optimizer

from rlsd_lightning.errors import require, require_at_least_zero, require_fraction, require_positive
from rlsd_lightning.features import Features
from rlsd_lightning.functional.losses import coupling, half_square_distance, norms
from rlsd_lightning.functional.schedules import add_noise, fresh_noise_share, guidance_factor, image_variances
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.decoding import CorrectedDecoder, encoded_difference
from rlsd_lightning.methods.distillation import ScoreDistillation
from rlsd_lightning.methods.selection import Selection
from rlsd_lightning.operators.likelihood import measured, misfit
from rlsd_lightning.priors import Prior
from rlsd_lightning.repulsion import Repulsion

__all__ = ["RLSD"]

TERMS = ("denoising", "coupling", "repulsion", "refine_denoising", "refine_coupling")


class RLSD(ScoreDistillation):
    r"""N interacting particles that explain a measurement under a latent diffusion prior.

    Args:
        gamma: Strength of the repulsion, at least 0. In relative mode ``gamma`` times the features' ``gamma_scale`` is the ratio of its norm to
            the coupling gradient's, for each particle; a coupling gradient of zero counts as :math:`\zeta`.
        gamma_mode: ``relative``, or ``absolute``: :math:`\gamma_i = \zeta \gamma \sigma_t`.
        repulsion_until: Share of all steps, from the first, that have repulsion, in [0, 1]; the refinement has none.
        guidance_scale: Step size of the coupling with the embedded faces in 100 steps, at least 0. In :math:`K` steps
            :math:`\zeta = \mathrm{guidance\_scale} \cdot (100 / K)` times the
            :func:`~rlsd_lightning.functional.schedules.guidance_factor`, so that all steps together move any prior's latents by the same
            share of their norm; with a solving step, which moves details, only the layout by the same share.
        eta: Noise drawn anew in each step of the loop: 0 none (DDIM), 1 the ancestral share (DDPM), infinity all of it (score
            distillation).
        latent_std: Standard deviation of the prior's latents, above 0; None: the prior's.
        image_std: Standard deviation of the prior's images, above 0; None: the prior's. The error of :math:`D(\hat z)` is taken to have the variance
            :math:`v_t = \mathrm{image\_std}^2 \sigma_t^2 / (\alpha_t^2 + \sigma_t^2) + \mathrm{decoder\_std}^2`, which sets
            :math:`\mu_t` (:class:`~rlsd_lightning.operators.proximal.ProximalSteps`).
        refine_share: Share of all steps, at the end, for the refinement, in [0, 1]. More of them bring particles closer to the
            measurement and make them more alike; 0 runs the loop to the end. None: 0.2, or 0 if the latents are the images.
        outlier_ratio: Ratio of a particle's distance :math:`\|x - D(\hat z)\|` to the lower quartile of its measurement's, at least 1,
            above which it is replaced by another particle (:mod:`~rlsd_lightning.methods.selection`); None: never.
        augmented: Whether the data act through :math:`x`; if not, on :math:`D(\hat z)` itself, by :math:`\|y - A D(\hat z)\|`, and by
            half the misfit in the refinement.
        antithetic: See :class:`~rlsd_lightning.methods.base.ParticleModule`.
        common: See :class:`~rlsd_lightning.methods.distillation.ScoreDistillation`, for the refinement, and
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
        gamma: float = 0.2,
        gamma_mode: str = "relative",
        repulsion_until: float = 0.5,
        guidance_scale: float = 1.0,
        eta: float = 1.0,
        latent_std: float | None = None,
        image_std: float | None = None,
        refine_share: float | None = None,
        outlier_ratio: float | None = 1.2,
        augmented: bool = True,
        antithetic: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(prior, measurements, features, antithetic=antithetic, **common)
        require_at_least_zero(guidance_scale=guidance_scale, eta=eta)
        scales = self.hparams.latent_std, self.hparams.image_std
        require_positive(latent_std=scales[0], image_std=scales[1])
        if refine_share is None:  # where D is the identity, particles would only follow the noise
            refine_share = 0.0 if prior.latent_shape == prior.image_shape else 0.2
        require_fraction(refine_share=refine_share)
        require(lambda value: value is None or value >= 1, "at least 1, or None", outlier_ratio=outlier_ratio)
        self.has_proximal_results = augmented
        self.automatic_optimization = False  # SGD in the loop, Adam in the refinement
        self.repulsion = Repulsion(self, gamma, gamma_mode, repulsion_until)
        # a warm start skips the first of all steps
        self.refine_from = max(0, round((1 - refine_share) * self.num_steps) - self.first_step)
        self.decoder = CorrectedDecoder(self, self.refine_from)
        self.selection = Selection(self, self.decoder, outlier_ratio, self.refine_from)
        self.has_solving_step = augmented and self.decoder.has_tiny
        factor = guidance_factor(prior.latent_shape, prior.image_shape, *scales, layout_only=self.has_solving_step)
        self.zeta = 100 * guidance_scale / self.num_steps * factor
        self.image_variances = image_variances(prior.alphas, prior.sigmas, self.hparams.image_std, self.decoder_std)
        t = self.timesteps[0]
        alpha, sigma = prior.alpha(t).cpu(), prior.sigma(t).cpu()
        self.register_buffer("e", (self.noisy_start() - alpha * self.z.detach()) / sigma)

    def training_step(self, batch: tuple[int, int], batch_idx: int) -> Tensor:
        """Take the particles from t to s by SDS denoising loss, data fidelity (through x) and kernel repulsion."""
        step, t, s = self.begin(batch, batch_idx)
        if step >= self.refine_from:
            return self.refine(step, t)
        is_last = s is None or step + 1 == self.refine_from  # of the loop
        z, e = self.z[self.rows], self.e[self.rows]  # of this process
        z_t = add_noise(z, e, self.prior.alpha(t), self.prior.sigma(t)).detach().requires_grad_(not is_last)
        z_hat, eps_hat = self.denoise(z_t, t)
        decoded = self.decoder(z_hat, step)  # D(z_hat)

        # SDS denoising loss: its gradient in z is z - z_hat = (sigma_t / alpha_t) (eps_hat - e)
        denoising = half_square_distance(z, z_hat)
        # data fidelity: x fits y and stays near D(z_hat), which is drawn to x
        if self.hparams.augmented:
            x = self.solve_images(decoded, self.image_variances[t])
            distance = norms(x - decoded)
        else:
            distance = self.residual_norms(decoded)
        fidelity = self.zeta * distance
        terms = {"denoising": denoising, "coupling": fidelity.sum()}
        if is_last:
            shift = self.last_shift(s, decoded)
        else:  # kernel repulsion: gamma_i log sum_j k(phi_i, phi_j), whose gradient is added to the data fidelity's
            gradient, repulsion = self.guidance(step, t, z_t, z_hat, decoded, fidelity)  # G
            terms["repulsion"] = repulsion.sum()
            alpha = self.prior.alpha(s)
            shift = torch.where(alpha > 0, gradient / alpha, 0.0)  # 0 in pure noise
            if self.has_solving_step:
                shift = shift + self.decoder.solving_shift(z_hat - shift)
        loss = denoising + torch.sum(shift * z)  # J

        self.log_step(step, **terms)
        moved = self.descend(self.optimizers()[0], loss)  # z <- z_hat - shift
        if s is not None:
            if step in self.selection.steps:  # copies differ from the next step on
                self.selection(step, distance)
            self.renew_noise(step, t, s, eps_hat, moved)
        return loss

    def residual_norms(self, decoded: Tensor) -> Tensor:
        r"""Distances :math:`\|y - A D(\hat z)\|` with shape (n,), for data that act without the auxiliary variable."""
        self.keep_images(decoded, decoded)
        residuals = [norms(each.y - measured(each.physics, images)) for each, images in self.each_here(decoded)]
        return torch.cat(residuals) if residuals else decoded.new_zeros(0)

    def guidance(
        self, step: int, t: int, z_t: Tensor, z_hat: Tensor, decoded: Tensor, fidelity: Tensor
    ) -> tuple[Tensor, Tensor]:
        r"""The gradient :math:`G` in :math:`z_t`, and the repulsion's values with shape (n,).

        By the chain rule, from the image to the clean to the noisy latent; the repulsion's gradient is added at the image, or
        at :math:`\hat z` if its features are those of latents.
        """
        # a collective call: processes without particles make it too
        density = self.repulsion.gradient(z_hat, decoded) if self.repulsion.acts(step) else None
        value, of_latents = fidelity.new_zeros(len(z_t)), self.features.of_latents
        if not len(z_t):
            if density is not None:
                self.repulsion_ratios.append(value.sum())  # zero, as each process logs one in each step
            return torch.zeros_like(z_t), value
        (in_image,) = grad(fidelity.sum(), decoded)
        if density is not None and not of_latents:
            in_image, value = self.repulsion.add_to(in_image, density, t, self.zeta)
        (in_clean,) = grad(decoded, z_hat, in_image)
        if density is not None and of_latents:
            in_clean, value = self.repulsion.add_to(in_clean, density, t, self.zeta)
        (in_noisy,) = grad(z_hat, z_t, in_clean)
        return in_noisy, value

    @torch.no_grad()
    def last_shift(self, s: int | None, decoded: Tensor) -> Tensor:
        r""":math:`E(D(\hat z)) - E(x)` before the refinement, as gradients of low noise overshoot; zero in the last of all steps."""
        if s is None or not self.hparams.augmented or not len(decoded):
            return torch.zeros_like(self.z[self.rows])
        return encoded_difference(self, decoded, self.x[self.rows])

    @torch.no_grad()
    def renew_noise(self, step: int, t: int, s: int, eps_hat: Tensor, moved: Tensor) -> None:
        r"""Set :math:`e` to :math:`\sqrt{1 - \eta_t^2} \, \hat\epsilon + \eta_t n` if the latents have moved."""
        prior = self.prior
        eta = fresh_noise_share(prior.alpha(t), prior.sigma(t), prior.alpha(s), prior.sigma(s), self.hparams.eta)
        renewed = (1 - eta.square()).sqrt() * eps_hat + eta * self.noise(step)
        self.e[self.rows] = torch.where(moved, renewed.to(self.e), self.e[self.rows])

    def descend(self, optimizer: LightningOptimizer, loss: Tensor) -> Tensor:
        """One step of one of the two optimizers; whether latents moved, as mixed precision skips a step that overflows."""
        before = self.z.detach().clone()
        self.manual_backward(loss)
        optimizer.step()
        optimizer.zero_grad()  # or the other optimizer's backward pass would exchange these gradients again
        return (self.z.detach() != before).any()

    def refine(self, step: int, t: int) -> Tensor:
        """One step of the refinement: Adam on score distillation and coupling at D(z)."""
        z, adam = self.z[self.rows], self.optimizers()[1]
        denoising = self.denoising_term(z, self.score_residual(z, self.noise(step), t), t)
        decoded = self.decoder(z, step)
        if self.hparams.augmented:
            data = coupling(self.solve_images(decoded, self.decoder_std**2), decoded)
        else:
            data = self.misfit_term(decoded)
        loss = denoising + self.through_decoder(data, z)
        self.log_step(step, refine_denoising=denoising, refine_coupling=data)
        adam.param_groups[0]["lr"] = self.hparams.lr_z * self.step_size_decay(step)
        self.descend(adam, loss)
        return loss

    def misfit_term(self, decoded: Tensor) -> Tensor:
        """Half the misfit of decoded latents, summed over particles."""
        self.keep_images(decoded, decoded)
        terms = [
            misfit(each.physics.noise_model, measured(each.physics, images), each.y).sum()
            for each, images in self.each_here(decoded)
        ]
        return 0.5 * sum(terms, decoded.new_zeros(()))

    def log_step(self, step: int, **terms: Tensor) -> None:
        """Log the values of all terms, zero where they don't act, the decoders' distance and the number of replacements."""
        zero = self.z.new_zeros(())
        ratio = self.repulsion_ratios[-1] if "repulsion" in terms and self.repulsion.acts(step) else zero
        every = {name: terms.get(name, zero) for name in TERMS}
        self.log_terms(every, step, repulsion_ratio=ratio, **self.decoder.figures(step), **self.selection.figures())

    def configure_optimizers(self) -> list[Optimizer]:
        return [SGD([self.z], lr=1.0), self.configure_adam()]
