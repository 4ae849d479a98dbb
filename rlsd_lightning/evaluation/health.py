"""Health metrics of particles, logged during a run, and warnings with remedies at its end."""

from collections.abc import Collection
from typing import NamedTuple

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor

from rlsd_lightning.evaluation.scores import Solved
from rlsd_lightning.functional.losses import at_least_float32
from rlsd_lightning.functional.metrics import diversity, gradient_energy, pixel_std
from rlsd_lightning.functional.precision import full_precision
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.operators.likelihood import data_fit, has_square_misfit, noise_std
from rlsd_lightning.priors import Prior
from rlsd_lightning.priors.measured import reconstruction_error

__all__ = ["HealthMetrics", "has_collapsed", "health_metrics", "health_warnings", "null_space", "problems"]

MIN_DIVERSITY = 0.01
"""Diversity of collapsed particles is below it: they look the same."""
MIN_SHARE_OF_PRIOR = 0.05
"""The same limit as a share of the prior's diversity, which depends on the feature network."""
MIN_NULL_SPACE_ENERGY = 0.1
"""Operators with less determine the image, so particles may agree."""
MIN_NULL_SPACE_SPREAD = 0.1
"""Particles that vary more than this in the null space have not collapsed, whatever a feature network sees."""
MAX_RESIDUAL_SIGMAS = 3.0
"""The truth has 1; over thousands of values, 3 is beyond chance."""
MAX_SHARPNESS_TO_DECODED = 1.5
"""Above it the latents do not follow the images."""
MIN_SHARPNESS_TO_TRUTH = 0.5
"""Reconstructions with less than half of the truth's gradient energy look blurred."""
LATENT_NORM = (0.8, 1.25)
"""Range of ``latent_norm`` for latents of the prior's distribution."""
MAX_REPULSION = 1.0
"""Above it the particles follow each other more than the data or the prior."""
MAX_COUPLING = 2.0
"""Images twice as far from D(z) as the decoder's error are not explained by the prior."""


class HealthMetrics(NamedTuple):
    r"""Health metrics of one measurement's particles; None where a metric is unknown or does not apply.

    Attributes:
        diversity: One minus the mean cosine of two particles' features.
        null_space_energy: Share of the mean image's energy, without its mean colour, in the operator's effective null
            space: the directions that it does not see above its noise.
        null_space_spread: Particles' deviation in the null space over the mean image's RMS there.
        residual_sigmas: RMS of :math:`y - A(x)` in units of the noise.
        sharpness_to_decoded: Gradient energy of :math:`x` over that of :math:`D(z)`, without the share that the
            autoencoder loses of the first particle, if it knows such pictures.
        sharpness_to_truth: Gradient energy of :math:`x` over that of the truth.
        latent_norm: Root mean square of :math:`z`, a mean over particles, over that of pictures that the prior knows: 1
            within the range of these; None where the latent is the image.
        repulsion_ratio: Ratio of the repulsion's norm to the data gradient's, or to the score's in distillation; a mean
            over the steps with repulsion.
        coupling: RMS of :math:`x - D(z)` over the decoder's typical error; None without a decoder.
    """

    diversity: float | None = None
    null_space_energy: float | None = None
    null_space_spread: float | None = None
    residual_sigmas: float | None = None
    sharpness_to_decoded: float | None = None
    sharpness_to_truth: float | None = None
    latent_norm: float | None = None
    repulsion_ratio: float | None = None
    coupling: float | None = None


def null_space(physics: Physics, images: Tensor, y: Tensor) -> tuple[float, float | None] | None:
    r"""Energy and spread of particles in a linear operator's effective null space.

    The projection of an image :math:`v` is :math:`B v = v - \arg\min_u \lVert A u - A v \rVert^2 / s^2 + \lVert u \rVert^2`:
    its part in the null space, and in directions below the noise's standard deviation :math:`s`.

    Returns:
        :math:`\lVert B c \rVert^2 / \lVert c \rVert^2` in [0, 1] for the mean image :math:`c` without its mean colour; and
        the deviation of :math:`B x` over the RMS of :math:`B c`, None for one particle. None unless the operator is
        linear and its noise Gaussian.
    """
    if not (isinstance(physics, LinearPhysics) and has_square_misfit(physics.noise_model)):
        return None
    images = at_least_float32(images).clamp(-1, 1)
    std = max(noise_std(physics.noise_model, y), 1e-3)  # closed forms multiply rounding errors by its inverse square
    mean = images.mean(dim=0, keepdim=True)
    shape = torch.cat([mean - mean.mean(dim=(-2, -1), keepdim=True), images - mean])
    with full_precision(images.device):
        blind = shape - physics.prox_l2(torch.zeros_like(shape), physics.A(shape), std**-2)
    total, hidden = shape[0].square().mean().item(), blind[0].square().mean().item()
    spread = pixel_std(blind[1:])
    return (hidden / total if total else 0.0), (None if spread is None or not hidden else spread / hidden**0.5)


@torch.no_grad()
def health_metrics(
    module: ParticleModule, solved: Solved, features: Tensor, repulsion_ratio: float | None = None
) -> HealthMetrics:
    """Health metrics of one measurement's particles.

    Args:
        module: Method, which knows the decoder's error and the prior's latents.
        solved: The measurement and its particles.
        features: Features of the particles, with shape :math:`(N, D)`.
        repulsion_ratio: See :class:`HealthMetrics`.
    """
    measurement, images, decoded, z = solved
    physics, truth = measurement.physics, measurement.truth
    images, decoded = at_least_float32(images), at_least_float32(decoded)
    energy, spread = null_space(physics, images, measurement.y) or (None, None)
    gaussian = has_square_misfit(physics.noise_model)
    return HealthMetrics(
        diversity=diversity(features).item() if len(images) > 1 else None,
        null_space_energy=energy,
        null_space_spread=spread,
        residual_sigmas=data_fit(physics, images, measurement.y)["residual_sigmas"] if gaussian else None,
        sharpness_to_decoded=_sharpness_to_decoded(module.prior, images, decoded),
        sharpness_to_truth=None if truth is None else _sharpness(images, truth.to(images)),
        latent_norm=None
        if module.prior.latent_shape == module.prior.image_shape
        else _latent_norm_ratio(module.prior, z),
        repulsion_ratio=repulsion_ratio,
        coupling=(images - decoded).square().mean().sqrt().item() / module.decoder_std if module.decoder_std else None,
    )


def _latent_norm_ratio(prior: Prior, z: Tensor) -> float:
    """Ratio of the latents' root mean square to the nearest of pictures that the prior knows; 1 within their range."""
    norm, (low, high) = z.float().square().flatten(1).mean(dim=1).sqrt().mean().item(), prior.calibration.latent_rms
    return norm / min(max(norm, low), high)


def _sharpness_to_decoded(prior: Prior, images: Tensor, decoded: Tensor) -> float | None:
    """Ratio of gradient energies; an autoencoder may lose fine detail of a picture that it knows."""
    ratio, first = _sharpness(images, decoded), images[:1]
    error, reconstructed = reconstruction_error(prior, first.to(prior.alphas))
    lost = _sharpness(first, at_least_float32(reconstructed))
    is_known = error.item() <= prior.calibration.largest_error
    return ratio / max(lost, 1.0) if ratio and lost and is_known else ratio


def _sharpness(images: Tensor, reference: Tensor) -> float | None:
    """Ratio of gradient energies; None for a constant reference."""
    energy, of_reference = (gradient_energy(each.clamp(-1, 1)).mean() for each in (images, reference))
    return (energy / of_reference).item() if of_reference else None


Problem = tuple[str, dict[str, str]]
"""A sentence, and remedies by the argument that they change."""


def health_warnings(
    metrics: HealthMetrics,
    prior_diversity: float | None = None,
    settings: Collection[str] | None = None,
    with_remedies: bool = True,
) -> list[str]:
    """One sentence for each problem, with remedies; empty for a healthy run.

    Args:
        metrics: Metrics at the end of the run.
        prior_diversity: Diversity of the prior's samples in the same features, if known.
        settings: Names of the method's settings, to leave out remedies that change others; None: all remedies.
        with_remedies: Whether to name remedies; False if the cause is known to be elsewhere.
    """
    known = None if settings is None else {*settings, "num_steps", "sigma", "features"}
    found = problems(metrics, prior_diversity)
    return [_sentence(problem, remedies if with_remedies else {}, known) for problem, remedies in found]


def problems(metrics: HealthMetrics, prior_diversity: float | None = None) -> list[Problem]:
    """All problems with all their remedies; arguments as in :func:`health_warnings`."""
    return [*_collapse(metrics, prior_diversity), *_poor_fit(metrics), *_repulsion(metrics)]


def has_collapsed(metrics: HealthMetrics, prior_diversity: float | None = None) -> bool:
    """Whether particles are alike although a linear operator leaves them room that they do not use."""
    limit = max(MIN_DIVERSITY, MIN_SHARE_OF_PRIOR * (prior_diversity or 0.0))
    alike = _below(metrics.diversity, limit) and _above(metrics.null_space_energy, MIN_NULL_SPACE_ENERGY)
    return alike and not _above(metrics.null_space_spread, MIN_NULL_SPACE_SPREAD)


def _collapse(metrics: HealthMetrics, prior_diversity: float | None) -> list[Problem]:
    if not has_collapsed(metrics, prior_diversity):
        return []
    problem = (
        f"the particles have collapsed (diversity {metrics.diversity:.2g}), although {metrics.null_space_energy:.0%} of "
        "the image's energy is in the operator's null space; right only if the visible part determines the rest"
    )
    return [(problem, {"gamma": "raise gamma", "features": "compare other features (features=pixels)"})]


def _poor_fit(metrics: HealthMetrics) -> list[Problem]:
    """Images that do not fit the measurement, the latents or the truth, and latents that do not fit the prior."""
    found: list[Problem] = []
    steps = {"num_steps": "take more num_steps"}
    follow = steps | {"lr_z": "raise lr_z", "distillation_weight": "lower distillation_weight"}
    if _above(metrics.residual_sigmas, MAX_RESIDUAL_SIGMAS):
        remedies = {"sigma": "check sigma"} | steps | {"gamma": "lower gamma", "min_mu": "lower min_mu"}
        found.append((f"the residual is {metrics.residual_sigmas:.3g} standard deviations of the noise", remedies))
    if _above(metrics.sharpness_to_decoded, MAX_SHARPNESS_TO_DECODED):
        ratio = f"x has {metrics.sharpness_to_decoded:.3g} times the gradient energy of D(z)"
        found.append((f"the latents do not follow the images ({ratio})", follow))
    if _below(metrics.sharpness_to_truth, MIN_SHARPNESS_TO_TRUTH):
        ratio = f"{metrics.sharpness_to_truth:.2g} of the truth's gradient energy"
        found.append((f"the reconstructions are blurred ({ratio})", follow))
    if metrics.latent_norm is not None and not LATENT_NORM[0] <= metrics.latent_norm <= LATENT_NORM[1]:
        ratio = f"{metrics.latent_norm:.3g} times the norm of the prior's samples"
        remedies = {"lr_z": "lower lr_z", "gamma": "lower gamma", "distillation_weight": "raise distillation_weight"}
        found.append((f"the latents have left the prior's distribution ({ratio})", remedies))
    return found


def _repulsion(metrics: HealthMetrics) -> list[Problem]:
    """Repulsion that is stronger than the data gradient, or that draws images away from the prior."""
    ratio, lower = metrics.repulsion_ratio, {"gamma": "lower gamma"}
    if not ratio:
        return []
    if ratio > MAX_REPULSION:
        return [(f"the repulsion is {ratio:.3g} times as strong as the data gradient or score", lower)]
    if not _above(metrics.coupling, MAX_COUPLING):
        return []
    problem = (
        f"the repulsion is too strong or the steps too few: RMS(x - D(z)) is {metrics.coupling:.3g} decoder errors"
    )
    return [(problem, {"num_steps": "take more num_steps"} | lower | {"repulsion_until": "lower repulsion_until"})]


def _sentence(problem: str, remedies: dict[str, str], known: Collection[str] | None) -> str:
    """The problem, and the remedies among the known settings."""
    *others, last = [text for name, text in remedies.items() if known is None or name in known] or [""]
    return f"{problem}; {', '.join(others)}{' or ' if others else ''}{last}" if last else problem


def _above(value: float | None, limit: float) -> bool:
    return value is not None and value > limit


def _below(value: float | None, limit: float) -> bool:
    return value is not None and value < limit
