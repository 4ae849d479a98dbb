r"""Stein's check of a set: whether its spread and its place agree with the posterior's score, without a truth.

For draws :math:`z_i` of a posterior of dimension :math:`d` with the score :math:`s`, Stein's identity gives

.. math:: \mathrm{E} \, s(z_i) = 0, \qquad \mathrm{E} \, (s(z_i) - s(z_j))^\top (z_i - z_j) = -2 d,

the first for translations and the second for dilations. Each is a mean over the :math:`d` dimensions, so a few particles
suffice. The discrepancy is the kernel Stein discrepancy with a matrix-valued kernel of these functions,

.. math::
    D^2 = (1 - \tau)^2 + \max \Big( 0, \overline{s_i^\top s_j} \, / \, \overline{|\tilde s|^2} \Big), \qquad
    \tau = -\overline{(s_i - s_j)^\top (z_i - z_j)} \, / \, 2 d,

with means over pairs, and the score :math:`\tilde s` for a simulated measurement of each particle.

The particles are compared with the posterior of slightly noisy latents :math:`z_t = \alpha_t z + \sigma_t n`, where the
network knows the score. The likelihood goes through the denoised and decoded latents, whose error in an image has the
variance :math:`v`:

.. math:: s(z_t) = -\hat\epsilon / \sigma_t - \nabla_{z_t} |x - D(\hat z(z_t))|^2 / 2 v, \qquad
    x = \arg\min_x \mathrm{misfit}(A(x), y) + \mu \, \mathrm{mean}((x - D)^2).

By the envelope theorem the second part is the gradient of the likelihood with :math:`x` integrated out, for linear
operators and Gaussian noise, if the denoised latents are exact. Copies of one right particle have about the discrepancy of
a right set: scores near particles do not know of modes that no particle is in.

References:
    | A Kernelized Stein Discrepancy for Goodness-of-fit Tests (Liu et al., 2016)
    | https://arxiv.org/abs/1602.03253
    | Stein Variational Gradient Descent with Matrix-Valued Kernels (Wang et al., 2019)
    | https://arxiv.org/abs/1910.12794
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rlsd_lightning.evaluation.checks.draws import Draws
from rlsd_lightning.evaluation.scores import Solved
from rlsd_lightning.functional.losses import square_norms
from rlsd_lightning.functional.schedules import add_noise
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.operators import NullOperator
from rlsd_lightning.operators.likelihood import has_square_misfit, measured, noise_std, observed_values
from rlsd_lightning.operators.proximal import proximal_step
from rlsd_lightning.priors import Prior

__all__ = ["Scores", "SteinCheck", "posterior_scores", "stein_check", "stein_discrepancy", "stein_spread"]

NOISE_TO_SIGNAL = 0.04
"""Least ratio of noise and signal of the noisy latents: small, and a level that networks are trained on."""
FIRST_DRAW = 2
"""Number of the first draw; those of simulated measurements come before."""


class Scores(NamedTuple):
    """Noisy latents and their scores, each with shape (N, ...).

    Attributes:
        z_t: Noisy latents.
        score: Score of their posterior.
        simulated: Score for measurements that the particles themselves predict.
    """

    z_t: Tensor
    score: Tensor
    simulated: Tensor


class SteinCheck(NamedTuple):
    r"""Stein's check of one measurement's particles.

    Attributes:
        discrepancy: The discrepancy :math:`D`; about 0 for draws of the posterior.
        spread: The mean :math:`\tau` of dilations: 1 for draws of the posterior, more for particles too far apart.
        reference: The discrepancy of independent prior noise in place of the particles.
    """

    discrepancy: float
    spread: float
    reference: float


def stein_spread(z: Tensor, score: Tensor) -> float:
    r"""The mean :math:`\tau = -\overline{(s_i - s_j)^\top (z_i - z_j)} / 2 d` over pairs; 1 for draws of the score's density.

    Args:
        z: Points, with shape :math:`(N, \dots)`, :math:`N \ge 2`.
        score: Scores at these points.
    """
    z, score = z.flatten(1).cpu().double(), score.flatten(1).cpu().double()
    count, size = z.shape
    # over all pairs, the sum of products of differences is N times that of deviations from the mean
    products = ((score - score.mean(dim=0)) * (z - z.mean(dim=0))).sum()
    return (-products / ((count - 1) * size)).item()


def stein_discrepancy(scores: Scores) -> float:
    """The discrepancy :math:`D` of two particles or more."""
    score = scores.score.flatten(1).cpu().double()
    count = len(score)
    shift = (score.sum(dim=0).square().sum() - score.square().sum()) / (count * (count - 1))
    energy = square_norms(scores.simulated.cpu().double()).mean()
    spread = stein_spread(scores.z_t, scores.score)
    return math.sqrt((1 - spread) ** 2 + max(0.0, (shift / energy).item()))


def posterior_scores(module: ParticleModule, measurement: Measurement, z: Tensor, noise: Tensor) -> Scores | None:
    r"""Scores of noisy latents under the posterior; None if no noise of the measurement is known.

    Args:
        module: Method, with its prior, the variance :math:`v` and the weight :math:`\mu`.
        measurement: The measurement.
        z: Latents, with shape :math:`(N, \dots)`.
        noise: Standard normal noise of the latents, with the same shape.
    """
    prior, physics, y = module.prior, measurement.physics, measurement.y
    is_free = isinstance(physics, NullOperator)
    std = noise_std(physics.noise_model, y)
    if not (std or is_free) or not (module.decoder_std or has_square_misfit(physics.noise_model)):
        return None
    t = _least_noise(prior)
    sigma = prior.sigma(t)
    z_t = add_noise(z, noise, prior.alpha(t), sigma).detach().requires_grad_()
    with torch.enable_grad():
        z_hat, eps_hat = module.denoise(z_t, t)
        of_prior = (-eps_hat / sigma).detach()
        if is_free:
            return Scores(z_t.detach(), of_prior, of_prior)
        decoded = module.decode(z_hat)
    simulated = _simulated(module, measurement, decoded.detach(), std)
    likelihoods = [_moves(module, measurement, ys, decoded.detach(), std) for ys in (y, simulated)]
    of_data, of_simulated = (
        torch.autograd.grad(decoded, z_t, move.to(decoded), retain_graph=index == 0)[0]
        for index, move in enumerate(likelihoods)
    )
    return Scores(z_t.detach(), of_prior + of_data, of_prior + of_simulated)


def _least_noise(prior: Prior) -> int:
    """The first timestep with enough noise."""
    enough = (prior.sigmas >= NOISE_TO_SIGNAL * prior.alphas).nonzero()
    return max(prior.timestep_offset, int(enough[0]))


def _moves(module: ParticleModule, measurement: Measurement, y: Tensor, decoded: Tensor, std: float) -> Tensor:
    r"""Gradient of the log likelihood in the decoded images, :math:`(x - D) / v`; :math:`A^\top (y - A(D)) / s^2` if v is 0."""
    physics, variance = measurement.physics, module.decoder_std**2
    if variance:
        weight = module.proximal.mu(measurement, variance)
        return (proximal_step(physics, y, decoded, weight) - decoded) / variance
    image = decoded.clone().requires_grad_()
    with torch.enable_grad():
        misfit = 0.5 * (y - measured(physics, image)).abs().square().sum() / std**2
    return -torch.autograd.grad(misfit, image)[0]


def _simulated(module: ParticleModule, measurement: Measurement, decoded: Tensor, std: float) -> Tensor:
    """A measurement that each particle predicts, with an error of its decoder."""
    physics, draws = measurement.physics, Draws(module, measurement, len(decoded))
    y = measured(physics, decoded + module.decoder_std * draws(decoded))
    return y + std * draws(y) * observed_values(physics, measurement.y)


@torch.no_grad()
def stein_check(module: ParticleModule, solved: Solved) -> SteinCheck | None:
    """Stein's check; None for one particle, or if no noise of the measurement is known.

    It costs two evaluations of the networks a particle, forward and backward, one of them for the reference.
    """
    measurement, z = solved.measurement, solved.z.detach()
    if len(z) < 2:
        return None
    draws = Draws(module, measurement, len(z), first=FIRST_DRAW)
    found = posterior_scores(module, measurement, z, draws(z))
    reference = posterior_scores(module, measurement, draws(z), draws(z))
    if found is None or reference is None:
        return None
    return SteinCheck(stein_discrepancy(found), stein_spread(found.z_t, found.score), stein_discrepancy(reference))
