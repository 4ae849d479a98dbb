r"""Repulsive latent score distillation: one loop, three terms.

Timesteps go down, :math:`t \to s`. Particle :math:`i` has a clean latent :math:`z`, an image :math:`x` (the auxiliary
variable) and its noise :math:`e`. With encoder, decoder :math:`D` and denoiser of a latent diffusion prior, and the features
:math:`\phi` of :math:`D(\hat z)`, a step is

.. math::
    z_t &= \alpha_t z + \sigma_t e, \qquad (\hat z, \hat\epsilon) = \mathrm{denoise}(z_t, t) \\
    x &= \arg\min_x \mathrm{misfit}(A(x), y) + \mu_t \, \mathrm{mean}(x - D(\hat z))^2 \\
    G &= \nabla_{z_t} \big[ \zeta \|x - D(\hat z)\| + \gamma_i \log \textstyle\sum_j k(\phi_i, \phi_j) \big] \\
    J &= \tfrac{1}{2} \|z - \mathrm{sg}[\hat z]\|^2 + \langle \mathrm{sg}[G / \alpha_s], z \rangle, \qquad z \leftarrow z - \nabla_z J \\
    e &\leftarrow \sqrt{1 - \eta_t^2} \, \hat\epsilon + \eta_t n, \qquad n \sim \mathcal{N}(0, I)

The first term of :math:`J` is the score-distillation (SDS) denoising loss, as
:math:`z - \hat z = (\sigma_t / \alpha_t)(\hat\epsilon - e)`; the second couples the latents to the data through :math:`x`; the
third is the kernel repulsion. :math:`\eta_t` says how much of the noise is drawn anew. With all of it the loop is score
distillation; with none and without :math:`G` it is DDIM; the default is the ancestral share, with which :math:`z_s` has the mean
and variance of the DDPM posterior.

**The end.** In the last fifth of the steps the particles are refined: Adam follows the published objective, score
distillation and coupling at :math:`D(z)`, without repulsion. It brings each particle closer to the measurement.

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
from torch import Tensor
from torch.autograd import grad
from torch.optim import SGD, Adam, Optimizer

from rlsd_lightning.checks import require_at_least_zero, require_one_of, require_positive, require_share
from rlsd_lightning.features import Features
from rlsd_lightning.functional.losses import norms, square_norms
from rlsd_lightning.functional.schedules import PRIOR_WEIGHTS, add_noise, cosine_decay, fresh_noise_share
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.methods.sampling import (
    coupling_term,
    descend,
    distillation_term,
    fidelity_term,
    noisy_start,
    score_residual,
    through_decoder,
)
from rlsd_lightning.operators.likelihood import measured
from rlsd_lightning.priors import Prior
from rlsd_lightning.repulsion import DensityGradient, Repulsion

__all__ = ["RLSD"]

TERMS = ("denoising", "coupling", "repulsion", "refine_denoising", "refine_coupling")


class RLSD(ParticleModule):
    r"""N interacting particles that explain a measurement under a latent diffusion prior.

    Args:
        prior: The latent diffusion prior.
        measurements: One measurement, or several that are solved side by side.
        features: The features :math:`\phi` that the kernel compares.
        gamma: Strength of the repulsion; 0 switches it off. In relative mode the ratio of its norm to the coupling's, times
            the features' ``gamma_scale``.
        gamma_mode: ``relative`` or ``absolute``, see :class:`~rlsd_lightning.repulsion.Repulsion`.
        repulsion_until: Share of the steps, from the first, that have repulsion, in [0, 1].
        guidance_scale: Step size of the coupling in a run of 100 steps, at least 0; in :math:`K` steps
            :math:`\zeta = 100 \cdot \mathrm{guidance\_scale} / K`, so that all steps together pull alike.
        eta: Noise drawn anew in each step: 0 none (DDIM), 1 the ancestral share (DDPM), infinity all of it (score
            distillation).
        image_std: Standard deviation of the prior's images, above 0. It sets :math:`\mu_t`: the decoded :math:`\hat z` has the
            variance :math:`\mathrm{image\_std}^2 \sigma_t^2 / (\alpha_t^2 + \sigma_t^2) + \mathrm{decoder\_std}^2`.
        refine_share: Share of the steps, the last, that refine each particle, in [0, 1]. More of them bring particles closer
            to the measurement and make them more alike; 0 runs the loop to the end.
        distillation_weight: Weight :math:`\lambda` of score distillation while refining.
        weighting: Its course :math:`w(t)`, see :func:`~rlsd_lightning.functional.schedules.prior_weight`.
        lr_z: Step size of Adam while refining, times the cosine decay over all steps.
        augmented: Whether the data act through :math:`x`; if not, on :math:`D(\hat z)` itself, by :math:`\|y - A D(\hat z)\|`.
        antithetic: See :class:`~rlsd_lightning.methods.base.ParticleModule`.
        common: Further arguments of :class:`~rlsd_lightning.methods.base.ParticleModule`.

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
        image_std: float = 0.5,
        refine_share: float = 0.2,
        distillation_weight: float = 0.05,
        weighting: str = "log",
        lr_z: float = 0.5,
        augmented: bool = True,
        antithetic: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(prior, measurements, features, antithetic=antithetic, **common)
        require_at_least_zero(guidance_scale=guidance_scale, eta=eta, distillation_weight=distillation_weight)
        require_positive(image_std=image_std, decoder_std=self.decoder_std, lr_z=lr_z)
        require_share(refine_share=refine_share)
        require_one_of(PRIOR_WEIGHTS, weighting=weighting)
        self.automatic_optimization = False  # two optimizers, one after the other
        self.repulsion = Repulsion(features, gamma, gamma_mode, repulsion_until)
        self.zeta = 100 * guidance_scale / self.num_steps
        # a start with less noise has some of the steps behind it
        self.refine_from = max(0, round((1 - refine_share) * self.num_steps) - self.first_step)
        t = self.timesteps[0]
        alpha, sigma = prior.alpha(t).cpu(), prior.sigma(t).cpu()
        shares = (prior.sigmas.square() / (prior.alphas.square() + prior.sigmas.square())).tolist()
        self.image_variances = [image_std**2 * share + self.decoder_std**2 for share in shares]
        self.register_buffer("e", (noisy_start(self) - alpha * self.z.detach()) / sigma)

    def training_step(self, batch: tuple[int, int], batch_idx: int) -> Tensor:
        """Follows the SDS denoising loss, the data fidelity (through x) and the kernel repulsion from t to s."""
        step, t, s = self.begin(batch, batch_idx)
        if step >= self.refine_from:
            return self.refine(step, t)
        z, e = self.z[self.rows], self.e[self.rows]
        z_t = add_noise(z, e, self.prior.alpha(t), self.prior.sigma(t)).detach().requires_grad_()
        z_hat, eps_hat = self.denoise(z_t, t)
        decoded = self.decode(z_hat)  # D(z_hat)

        denoising = 0.5 * (z - z_hat.detach()).square().sum()  # SDS: its gradient is z - z_hat
        coupling = self.coupling(decoded, t)  # zeta |x - D(z_hat)|, after the proximal step that sets x
        gradient, repulsion = self.guidance(step, t, z_t, z_hat, decoded, coupling)  # G, gamma log sum k
        pull = torch.sum(self.over_alpha(gradient, step, s) * z)  # a surrogate: its gradient is G / alpha_s

        self.log_all(step, denoising=denoising, coupling=coupling.sum(), repulsion=repulsion.sum())
        moved = self.descend(denoising + pull)  # z <- z_hat - G / alpha_s
        if s is not None:
            self.renew_noise(step, t, s, eps_hat, moved)
        return denoising + pull

    def coupling(self, decoded: Tensor, t: int) -> Tensor:
        r"""Distances :math:`\zeta \|x - D(\hat z)\|` with shape (n,), after the proximal step that sets :math:`x`.

        Without the auxiliary variable they are :math:`\zeta \|y - A D(\hat z)\|`.
        """
        if not self.hparams.augmented:
            self.show(decoded, decoded)
            residuals = [norms(each.y - measured(each.physics, images)) for each, images in self.each_here(decoded)]
            return self.zeta * torch.cat(residuals) if residuals else decoded.new_zeros(0)
        x = self.proximal_step(decoded, self.image_variances[t])
        self.x.data[self.rows] = x
        self.show(x, decoded)
        return self.zeta * norms(x - decoded)

    def guidance(
        self, step: int, t: int, z_t: Tensor, z_hat: Tensor, decoded: Tensor, coupling: Tensor
    ) -> tuple[Tensor, Tensor]:
        r"""The gradient :math:`G` in :math:`z_t`, and the repulsion's values with shape (n,).

        By the chain rule, from the image to the clean to the noisy latent; the repulsion joins where its features are.
        """
        repels = self.repulsion.acts(self.first_step + step, self.num_steps, self.num_particles)
        density = self.repulsion.gradient(self, z_hat, decoded) if repels else None  # all processes exchange features
        value = coupling.new_zeros(len(z_t))
        if not len(z_t):
            return torch.zeros_like(z_t), value
        (gradient,) = grad(coupling.sum(), decoded)
        if density is not None and not self.features.of_latents:
            gradient, value = self.repelled(gradient, density, t)
        (gradient,) = grad(decoded, z_hat, gradient)
        if density is not None and self.features.of_latents:
            gradient, value = self.repelled(gradient, density, t)
        (gradient,) = grad(z_hat, z_t, gradient)
        return gradient, value

    def repelled(self, gradient: Tensor, density: DensityGradient, t: int) -> tuple[Tensor, Tensor]:
        r"""The data gradient with :math:`\gamma_i \nabla \log q(\phi_i)` added, and the values :math:`\gamma_i \log q(\phi_i)`."""
        beside, norm = square_norms(gradient).sqrt(), square_norms(density.gradient).sqrt()
        beside = torch.where(beside > 0, beside, self.zeta)  # where nothing is measured, the data have no gradient
        gamma = self.repulsion.strength(norm, beside, self.prior.sigma(t), self.features.gamma_scale)
        if not self.repulsion.relative:
            gamma = self.zeta * gamma  # a relative one has the step size from the data gradient
        ratio = torch.where(beside > 0, gamma * norm / beside, 0.0)
        self.repulsion_ratios.append(ratio.sum().detach() / self.num_particles)
        return gradient + gamma.view(-1, *[1] * (gradient.ndim - 1)) * density.gradient, gamma * density.value

    def over_alpha(self, gradient: Tensor, step: int, s: int | None) -> Tensor:
        r""":math:`G / \alpha_s`; zero where nothing is left of the signal, and in the loop's last step, which ends at :math:`\hat z`."""
        if s is None or step + 1 == self.refine_from:
            return torch.zeros_like(gradient)
        alpha = self.prior.alpha(s)
        return torch.where(alpha > 0, gradient / alpha, 0.0)

    @torch.no_grad()
    def renew_noise(self, step: int, t: int, s: int, eps_hat: Tensor, moved: Tensor) -> None:
        r"""Sets :math:`e` to :math:`\sqrt{1 - \eta_t^2} \, \hat\epsilon + \eta_t n` if the latents have moved."""
        prior = self.prior
        eta = fresh_noise_share(prior.alpha(t), prior.sigma(t), prior.alpha(s), prior.sigma(s), self.hparams.eta)
        renewed = (1 - eta.square()).sqrt() * eps_hat + eta * self.noise(step)
        self.e[self.rows] = torch.where(moved, renewed.to(self.e), self.e[self.rows])

    def descend(self, loss: Tensor) -> Tensor:
        """One step down the gradient; says whether it was taken, as mixed precision skips it where gradients overflow."""
        before = self.z.detach().clone()
        descend(self, self.optimizers()[0], loss)
        return (self.z.detach() != before).any()

    def refine(self, step: int, t: int) -> Tensor:
        """One step of the end: Adam on score distillation and coupling at D(z)."""
        z = self.z[self.rows]
        denoising = distillation_term(self, z, score_residual(self, z, self.noise(step), t), t)
        decoded = self.decode(z)
        coupling = coupling_term(self, decoded) if self.hparams.augmented else fidelity_term(self, decoded)
        loss = denoising + through_decoder(coupling, z, self)
        self.log_all(step, refine_denoising=denoising, refine_coupling=coupling)
        adam = self.optimizers()[1]
        adam.param_groups[0]["lr"] = self.hparams.lr_z * cosine_decay(self.first_step + step, self.num_steps)
        descend(self, adam, loss)
        return loss

    def log_all(self, step: int, **terms: Tensor) -> None:
        """Logs all terms of the loop and of the end, zero where they don't act."""
        self.log_terms({name: terms.get(name, self.z.new_zeros(())) for name in TERMS}, step)

    @property
    def has_proximal_results(self) -> bool:
        return self.hparams.augmented

    def configure_optimizers(self) -> list[Optimizer]:
        return [SGD([self.z], lr=1.0), Adam([self.z], lr=self.hparams.lr_z, betas=(0.9, 0.99))]
