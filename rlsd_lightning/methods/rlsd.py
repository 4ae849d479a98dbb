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
    \tfrac{1 + \mu}{2} \, \mathrm{mean}((x - D(z))^2) + \lambda w(t) \, \mathrm{mean}(\mathrm{sg}[\hat\epsilon - n] \, z),

the published objective less its repulsion, with fresh noise and with :math:`x` from :math:`D(z)`. It brings each particle closer to
the measurement.

**The tiny decoder.** If the prior has a tiny decoder :math:`\tilde D`, then :math:`\tilde D(z) + c` replaces :math:`D(z)` above, and
gradients go through :math:`\tilde D`. A look, every tenth of the second half of the run and where the loop ends, sets
:math:`c = \mathrm{sg}[D(z) - \tilde D(z)]` for each particle; :math:`c = 0` before. The results come from :math:`D`.

**Few steps.** Below 20 steps with a tiny decoder, :math:`z \leftarrow z - \ell \, \nabla_z \tfrac{1}{2} \|\mathrm{sg}[x] - D(z)\|^2` follows each
step with :math:`G`. Here :math:`x` is solved from :math:`D(z)`, and the length :math:`\ell` minimises the norm on this line.

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
from deepinv.physics import LinearPhysics
from torch import Tensor
from torch.autograd import grad
from torch.optim import SGD, Adam, Optimizer

from rlsd_lightning.errors import require_at_least_zero, require_one_of, require_positive, require_share
from rlsd_lightning.features import Features
from rlsd_lightning.functional.losses import norms, square_norms
from rlsd_lightning.functional.schedules import PRIOR_WEIGHTS, add_noise, cosine_decay, fresh_noise_share
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.methods.covering import Candidates
from rlsd_lightning.methods.sampling import (
    away_from_images,
    coupling_term,
    descend,
    distillation_term,
    fidelity_term,
    image_variances,
    noisy_start,
    pull_factor,
    score_residual,
    solving_shift,
    through_decoder,
)
from rlsd_lightning.operators.likelihood import measured
from rlsd_lightning.priors import Prior
from rlsd_lightning.repulsion import Repulsion

__all__ = ["RLSD"]

LOOKS = 10
"""Looks at the own decoder in a whole run, of which the first half are left out; runs below twice as many steps have one."""
TERMS = ("denoising", "coupling", "repulsion", "refine_denoising", "refine_coupling")


class RLSD(ParticleModule):
    r"""N interacting particles that explain a measurement under a latent diffusion prior.

    Args:
        gamma: Strength of the repulsion, at least 0. In relative mode the ratio of its norm to the coupling gradient's, for each
            particle, times the features' ``gamma_scale``; where nothing is measured that gradient counts as :math:`\zeta`.
        gamma_mode: ``relative``, or ``absolute``: :math:`\gamma_i = \zeta \gamma \sigma_t`.
        repulsion_until: Share of all steps, from the first, that have repulsion, in [0, 1]; the refinement has none.
        guidance_scale: Step size of the coupling on 64x64 RGB images with 4x16x16 latents in 100 steps, at least 0. For latents of
            :math:`d_z` values, images of :math:`d_x` and :math:`K` steps
            :math:`\zeta = \mathrm{guidance\_scale} \cdot (100 / K) \cdot (d_z / 1024) / \sqrt{d_x / 12288}`, so that all steps together
            move latents by the same share of their norm.
        eta: Noise drawn anew in each step of the loop: 0 none (DDIM), 1 the ancestral share (DDPM), infinity all of it (score
            distillation).
        image_std: Standard deviation of the prior's images, above 0; None: the prior's. The error of :math:`D(\hat z)` is taken to have the variance
            :math:`v_t = \mathrm{image\_std}^2 \sigma_t^2 / (\alpha_t^2 + \sigma_t^2) + \mathrm{decoder\_std}^2`, which sets
            :math:`\mu_t` (:class:`~rlsd_lightning.operators.proximal.ProximalSteps`).
        refine_share: Share of all steps, the last, that refine each particle, in [0, 1]. More of them bring particles closer
            to the measurement and make them more alike; 0 runs the loop to the end.
        distillation_weight: Weight :math:`\lambda` of score distillation in the refinement.
        weighting: Its time weight :math:`w(t)`, see :func:`~rlsd_lightning.functional.schedules.prior_weight`.
        lr_z: Step size of Adam in the refinement, times the cosine decay over all steps.
        augmented: Whether the data act through :math:`x`; if not, on :math:`D(\hat z)` itself, by :math:`\|y - A D(\hat z)\|`, and by
            half the misfit in the refinement.
        cover: From sample to cover, in [0, 1]: 0 draws each particle by itself; more spends steps on candidates that particles
            continue (:mod:`~rlsd_lightning.methods.covering`).
        antithetic: See :class:`~rlsd_lightning.methods.base.ParticleModule`.
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
        gamma: float = 0.2,
        gamma_mode: str = "relative",
        repulsion_until: float = 0.5,
        guidance_scale: float = 1.0,
        eta: float = 1.0,
        image_std: float | None = None,
        refine_share: float = 0.2,
        distillation_weight: float = 0.05,
        weighting: str = "log",
        lr_z: float = 0.5,
        augmented: bool = True,
        cover: float = 0.0,
        antithetic: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(prior, measurements, features, antithetic=antithetic, **common)
        require_at_least_zero(guidance_scale=guidance_scale, eta=eta, distillation_weight=distillation_weight)
        image_std = self.hparams.image_std
        require_positive(image_std=image_std, decoder_std=self.decoder_std, lr_z=lr_z)
        require_share(refine_share=refine_share, cover=cover)
        require_one_of(PRIOR_WEIGHTS, weighting=weighting)
        self.has_proximal_results = augmented
        self.automatic_optimization = False  # SGD in the loop, Adam in the refinement
        self.repulsion = Repulsion(self, gamma, gamma_mode, repulsion_until)
        self.zeta = 100 * guidance_scale / self.num_steps * pull_factor(self.z[0].numel(), self.x[0].numel())
        # a warm start skips the first of all steps
        self.refine_from = max(0, round((1 - refine_share) * self.num_steps) - self.first_step)
        self.candidates_of = Candidates(self, cover, self.refine_from)
        t = self.timesteps[0]
        alpha, sigma = prior.alpha(t).cpu(), prior.sigma(t).cpu()
        self.image_variances = image_variances(prior, image_std, self.decoder_std)
        # JPEG and phase retrieval lose by it
        self.has_tiny = prior.has_tiny_decoder and all(isinstance(m.physics, LinearPhysics) for m in self.measurements)
        if self.has_tiny:
            self.register_buffer("correction", torch.zeros_like(self.x))
        self.solves = self.has_tiny and augmented and self.num_steps < 2 * LOOKS
        self.register_buffer("e", (noisy_start(self) - alpha * self.z.detach()) / sigma)

    def training_step(self, batch: tuple[int, int], batch_idx: int) -> Tensor:
        """Follow the SDS denoising loss, the data fidelity (through x) and the kernel repulsion from t to s."""
        step, t, s = self.begin(batch, batch_idx)
        s = None if self.candidates_of.end_with(step) else s
        if step >= self.refine_from:
            return self.refine(step, t)
        zeta, pulls = self.zeta * self.candidates_of.stretch(step), s is not None and step + 1 != self.refine_from
        z, e = self.z[self.rows], self.e[self.rows]
        z_t = add_noise(z, e, self.prior.alpha(t), self.prior.sigma(t)).detach().requires_grad_(pulls)
        z_hat, eps_hat = self.denoise(z_t, t)
        decoded = self.images(z_hat, step)  # D(z_hat)

        denoising = 0.5 * (z - z_hat.detach()).square().sum()  # SDS: its gradient is z - z_hat
        coupling = self.coupling(decoded, t, zeta)  # zeta |x - D(z_hat)|, after the proximal step that sets x
        gradient, repulsion = self.guidance(step, t, zeta, z_t, z_hat, decoded, coupling)  # G, gamma log sum k
        shift = self.over_alpha(gradient, step, s, z_hat.detach(), decoded)
        surrogate = torch.sum(shift * z)  # its gradient is G / alpha_s

        terms = {"repulsion": repulsion.sum()} if pulls else {}
        self.log_all(step, denoising=denoising, coupling=coupling.sum(), **terms)
        moved = descend(self, self.optimizers()[0], denoising + surrogate)  # z <- z_hat - G / alpha_s
        if self.candidates_of.end_with(step):
            self.start_again(step, self.x[self.rows] if self.hparams.augmented else decoded)
        elif s is not None:
            self.renew_noise(step, t, s, eps_hat, moved)
        return denoising + surrogate

    def images(self, z: Tensor, step: int) -> Tensor:
        r"""Images :math:`\tilde D(z) + c` of the tiny decoder, corrected; :math:`D(z)` if it is not used."""
        decoded = self.decode(z, tiny=self.has_tiny)
        if self.has_tiny and self.looks(step):
            with torch.no_grad():
                self.correction[self.rows] = self.decode(z) - decoded
        return decoded + self.correction[self.rows] if self.has_tiny else decoded

    def looks(self, step: int) -> bool:
        """Whether a step decodes with the own decoder too: the loop's last, and from 20 steps on the end of every later tenth."""
        done = self.first_step + self.candidates_of.usual(step) + 1
        is_late = self.num_steps <= 2 * done < 2 * self.num_steps and self.num_steps >= 2 * LOOKS
        return (is_late and done % (self.num_steps // LOOKS) == 0) or step + 1 == self.refine_from

    @torch.no_grad()
    def start_again(self, step: int, images: Tensor) -> None:
        """Set the noise, and after the last of the short runs the latents, for what follows on a short run of candidates."""
        self.e[self.rows] = self.candidates_of.follow(step, images).to(self.e)
        if self.has_tiny:
            z, ends = self.z[self.rows], step + 1 == self.candidates_of.steps
            self.correction[self.rows] = self.decode(z) - self.decode(z, tiny=True) if ends else 0

    def coupling(self, decoded: Tensor, t: int, zeta: float) -> Tensor:
        r"""Distances :math:`\zeta \|x - D(\hat z)\|` with shape (n,), after the proximal step that sets :math:`x`.

        Without the auxiliary variable they are :math:`\zeta \|y - A D(\hat z)\|`.
        """
        if not self.hparams.augmented:
            self.show(decoded, decoded)
            residuals = [norms(each.y - measured(each.physics, images)) for each, images in self.each_here(decoded)]
            return zeta * torch.cat(residuals) if residuals else decoded.new_zeros(0)
        x = self.proximal_step(decoded, self.image_variances[t])
        self.x.data[self.rows] = x
        self.show(x, decoded)
        return zeta * norms(x - decoded)

    def guidance(
        self, step: int, t: int, zeta: float, z_t: Tensor, z_hat: Tensor, decoded: Tensor, coupling: Tensor
    ) -> tuple[Tensor, Tensor]:
        r"""The gradient :math:`G` in :math:`z_t`, and the repulsion's values with shape (n,); zero in steps without gradient.

        By the chain rule, from the image to the clean to the noisy latent; the repulsion's gradient is added at the image, or
        at :math:`\hat z` if its features are those of latents.
        """
        if not z_t.requires_grad:
            return torch.zeros_like(z_t), coupling.new_zeros(len(z_t))
        repels = self.repulsion.acts(self.candidates_of.usual(step))
        # a collective call: processes without particles make it too
        density = self.repulsion.gradient(z_hat, decoded) if repels else None
        gradient, value, of_latents = torch.zeros_like(z_t), coupling.new_zeros(len(z_t)), self.features.of_latents
        if len(z_t):
            (gradient,) = grad(coupling.sum(), decoded)
            if density is not None and not of_latents:
                gradient, value = self.repulsion.added(gradient, density, t, zeta)
            (gradient,) = grad(decoded, z_hat, gradient)
            if density is not None and of_latents:
                gradient, value = self.repulsion.added(gradient, density, t, zeta)
            (gradient,) = grad(z_hat, z_t, gradient)
        elif density is not None:
            self.repulsion_ratios.append(value.sum())
        return gradient, value

    def over_alpha(self, gradient: Tensor, step: int, s: int | None, z_hat: Tensor, decoded: Tensor) -> Tensor:
        r""":math:`G / \alpha_s`; zero in the last of all steps, and before a timestep without signal.

        Before the refinement :math:`E(D(\hat z)) - E(x)`, as gradients of low noise overshoot; with few steps the solving step is added.
        """
        if s is not None and step + 1 == self.refine_from and self.hparams.augmented:
            return away_from_images(self, decoded.detach())
        if s is None:
            return gradient
        alpha = self.prior.alpha(s)
        shift = torch.where(alpha > 0, gradient / alpha, 0.0)
        return shift + solving_shift(self, z_hat - shift, self.correction[self.rows]) if self.solves else shift

    @torch.no_grad()
    def renew_noise(self, step: int, t: int, s: int, eps_hat: Tensor, moved: Tensor) -> None:
        r"""Set :math:`e` to :math:`\sqrt{1 - \eta_t^2} \, \hat\epsilon + \eta_t n` if the latents have moved."""
        prior = self.prior
        eta = fresh_noise_share(prior.alpha(t), prior.sigma(t), prior.alpha(s), prior.sigma(s), self.hparams.eta)
        renewed = (1 - eta.square()).sqrt() * eps_hat + eta * self.noise(step)
        self.e[self.rows] = torch.where(moved, renewed.to(self.e), self.e[self.rows])

    def refine(self, step: int, t: int) -> Tensor:
        """One step of the refinement: Adam on score distillation and coupling at D(z)."""
        z = self.z[self.rows]
        denoising = distillation_term(self, z, score_residual(self, z, self.noise(step), t), t)
        decoded = self.images(z, step)
        coupling = coupling_term(self, decoded) if self.hparams.augmented else fidelity_term(self, decoded)
        loss = denoising + through_decoder(coupling, z, self)
        self.log_all(step, refine_denoising=denoising, refine_coupling=coupling)
        adam = self.optimizers()[1]
        adam.param_groups[0]["lr"] = self.hparams.lr_z * cosine_decay(self.first_step + step, self.num_steps)
        descend(self, adam, loss)
        return loss

    def log_all(self, step: int, **terms: Tensor) -> None:
        """Log the values of all terms, zero where they don't act, and the decoders' distance from the first look on."""
        zero = self.z.new_zeros(())
        repels = self.repulsion.acts(self.candidates_of.usual(step)) and "repulsion" in terms
        figures = {"repulsion_ratio": self.repulsion_ratios[-1] if repels else zero}
        if self.has_tiny and any(map(self.looks, range(step + 1))):
            distances = square_norms(self.correction[self.rows]).div(self.x[0].numel()).sqrt()
            figures["tiny_decoder_distance"] = distances.sum() / self.num_particles
        self.log_terms({name: terms.get(name, zero) for name in TERMS}, step, **figures)

    def configure_optimizers(self) -> list[Optimizer]:
        return [SGD([self.z], lr=1.0), Adam([self.z], lr=self.hparams.lr_z, betas=(0.9, 0.99))]
