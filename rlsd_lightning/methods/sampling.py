"""Steps that several methods share."""

import math

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.autograd import grad
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from rlsd_lightning.functional.losses import coupling, distillation, gradients_of_mean, norms
from rlsd_lightning.functional.schedules import add_noise, cosine_decay, prior_weight, reverse_step
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.operators.likelihood import measured, misfit
from rlsd_lightning.priors import Prior

__all__ = [
    "adam_with_decay",
    "ancestral_step",
    "away_from_images",
    "coupling_term",
    "descend",
    "distillation_term",
    "distillation_weight",
    "fidelity_term",
    "image_variances",
    "noisy_start",
    "pull_factor",
    "score_residual",
    "solving_shift",
    "through_decoder",
    "towards",
]

LATENT_SIZE, IMAGE_SIZE = 4 * 16 * 16, 3 * 64 * 64
"""Values of the latents and of the images for which the step size is ``guidance_scale``."""

TRIAL = 0.1
"""Root mean square of the latents' move over which a decoder is taken to be linear, in units of their deviation."""


def towards(z: Tensor, target: Tensor) -> Tensor:
    r"""The loss :math:`\frac{1}{2} \|z - \mathrm{sg}[z^*]\|^2`; a step of size 1 down its gradient puts the latents at :math:`z^*`."""
    return 0.5 * (z - target.detach()).square().sum()


def noisy_start(module: ParticleModule) -> Tensor:
    r"""Noisy latents :math:`z_T` of all particles: standard normal, or the measurements' starts with noise."""
    z = module.z.detach().clone()
    if module.measurements[0].start is None:
        return z
    t = module.timesteps[0]
    noise = module.first_noise("z_init", module.prior.latent_shape)
    return add_noise(z, noise, module.prior.alpha(t).cpu(), module.prior.sigma(t).cpu())


def image_variances(prior: Prior, image_std: float, decoder_std: float) -> list[float]:
    r"""Variance :math:`v_t = \mathrm{image\_std}^2 \sigma_t^2 / (\alpha_t^2 + \sigma_t^2) + \mathrm{decoder\_std}^2` of :math:`D(\hat z)` at each timestep."""
    shares = prior.sigmas.square() / (prior.alphas.square() + prior.sigmas.square())
    return [image_std**2 * share + decoder_std**2 for share in shares.tolist()]


def pull_factor(latent_size: int, image_size: int) -> float:
    r"""Step size of the coupling that moves latents by the same share of their norm, whatever the size.

    With a decoder that takes unit noise to images of deviation :math:`s`, the gradient of a distance has about the norm
    :math:`s \sqrt{d_x / d_z}`, and latents have the norm :math:`\sqrt{d_z}`.
    """
    return latent_size / LATENT_SIZE / math.sqrt(image_size / IMAGE_SIZE)


def ancestral_step(module: ParticleModule, step: int, t: int, s: int, z_t: Tensor, z_hat: Tensor) -> Tensor:
    r"""A draw of the next timestep's noisy latents :math:`z_s` given :math:`z_t` and the clean ones."""
    prior = module.prior
    from_noisy, from_clean, variance = reverse_step(prior.alpha(t), prior.sigma(t), prior.alpha(s), prior.sigma(s))
    return from_noisy * z_t + from_clean * z_hat + variance.sqrt() * module.noise(step)


@torch.no_grad()
def away_from_images(module: ParticleModule, decoded: Tensor) -> Tensor:
    r"""The latents :math:`E(D(\hat z)) - E(x)`; encoded as a difference, as the autoencoder's error is in both."""
    if not len(decoded):
        return module.z[module.rows]
    return module.chunked(module.prior.encode, decoded) - module.chunked(module.prior.encode, module.x[module.rows])


def solving_shift(module: ParticleModule, z: Tensor, correction: Tensor) -> Tensor:
    r"""The shift :math:`\ell \nabla \frac{1}{2} \|D(z) - \mathrm{sg}[x]\|^2` whose length minimises :math:`\|D - x\|` along it.

    With :math:`x` solved from :math:`D(z)` and a linear operator, :math:`r = D - x` is linear in :math:`D`. A trial shift by
    :math:`h` gives :math:`r_h`, and :math:`\ell = h \langle r, r - r_h \rangle / \|r - r_h\|^2`, at least 0.

    Args:
        module: The method; its operators are linear.
        z: This process's latents.
        correction: Added to the tiny decoder's images, which makes them :math:`D(z)`.
    """
    if not len(z):
        return z
    variance = module.decoder_std**2
    z = z.detach().requires_grad_()
    decoded = module.decode(z, tiny=True) + correction
    residual = decoded.detach() - module.proximal_step(decoded, variance)
    (gradient,) = grad(decoded, z, residual)
    with torch.no_grad():
        trial = TRIAL * math.sqrt(z[0].numel()) / norms(gradient).clamp_min(torch.finfo(z.dtype).tiny)
        shifted = module.decode(z - _each(trial, z) * gradient, tiny=True) + correction
        change = residual - shifted + module.proximal_step(shifted, variance)
        gain = (residual * change).flatten(1).sum(1) / change.square().flatten(1).sum(1).clamp_min(
            torch.finfo(z.dtype).tiny
        )
    return _each(trial * gain.clamp_min(0), z) * gradient


def _each(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


@torch.no_grad()
def score_residual(module: ParticleModule, z: Tensor, eps: Tensor, t: int) -> Tensor:
    r"""The score distillation residual :math:`\hat\epsilon(\alpha_t z + \sigma_t \epsilon, t) - \epsilon`."""
    z_t = add_noise(z, eps, module.prior.alpha(t), module.prior.sigma(t))
    return module.denoise(z_t, t)[1] - eps


def distillation_term(module: ParticleModule, z: Tensor, residual: Tensor, t: int) -> Tensor:
    r"""The term :math:`\lambda w(t) \, \mathrm{mean}(\mathrm{sg}[r_i] z_i)`, summed over particles."""
    return distillation_weight(module, t) * distillation(residual, z)


def distillation_weight(module: ParticleModule, t: int) -> Tensor:
    r"""The weight :math:`\lambda w(t)`."""
    weight = prior_weight(module.prior.alpha(t), module.prior.sigma(t), module.hparams.weighting)
    return module.hparams.distillation_weight * weight


def coupling_term(module: ParticleModule, decoded: Tensor) -> Tensor:
    r"""The term :math:`\frac{1 + \mu}{2} \mathrm{mean}(x - D(z))^2`, summed over particles, with :math:`x` set by its proximal step.

    The images go a share :math:`1 / (1 + \mu)` of the way to the measurement; the factor makes up for it, so that
    latents follow alike at any noise level.
    """
    variance = module.decoder_std**2
    module.x.data[module.rows] = x = module.proximal_step(decoded, variance)
    module.show(x, decoded)
    terms = [
        (1 + module.proximal.mu(measurement, variance)) * coupling(image, of_latent)
        for measurement, image, of_latent in module.each_here(x, decoded)
    ]
    return sum(terms, decoded.new_zeros(()))


def fidelity_term(module: ParticleModule, decoded: Tensor) -> Tensor:
    """Half the misfit of decoded latents, summed over particles."""
    module.show(decoded, decoded)
    terms = [
        misfit(each.physics.noise_model, measured(each.physics, images), each.y).sum()
        for each, images in module.each_here(decoded)
    ]
    return 0.5 * sum(terms, decoded.new_zeros(()))


def adam_with_decay(module: ParticleModule) -> dict:
    """Adam on the latents, whose step size falls along half a cosine from ``lr_z`` to zero."""
    optimizer = Adam([module.z], lr=module.hparams.lr_z, betas=(0.9, 0.99))
    schedule = LambdaLR(optimizer, lambda step: cosine_decay(module.first_step + step, module.num_steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def descend(module: ParticleModule, optimizer: LightningOptimizer, loss: Tensor) -> Tensor:
    """One step of one of several optimizers; says whether it was taken, as mixed precision skips it where gradients overflow."""
    before = module.z.detach().clone()
    module.manual_backward(loss)
    optimizer.step()
    optimizer.zero_grad()  # or the next optimizer's backward pass would exchange these gradients again
    return (module.z.detach() != before).any()


def through_decoder(loss: Tensor, z: Tensor, module: ParticleModule) -> Tensor:
    """A loss with the gradient in the latents of a mean over pixels, taken back through the decoder in full precision."""
    if not len(z):
        return z.sum()
    (gradient,) = gradients_of_mean(loss, [z], module.x[0].numel())
    return torch.sum(gradient * z)
