"""The ways in which particles go wrong, as figures while a run goes and as sentences with advice at its end."""

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor

from rlsd_lightning.functional.losses import at_least_float32
from rlsd_lightning.functional.metrics import diversity, gradient_energy, pixel_std
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.operators.likelihood import data_fit, has_square_misfit, noise_std

__all__ = ["Signs", "advice", "left_open", "means", "signs"]

LEAST_DIVERSITY = 0.01
"""Healthy half-face runs have 0.16 to 0.43 in the embedded vision transformer; below 0.01 four particles look the same."""
SHARE_OF_PRIOR = 0.05
"""The same for a prior whose own diversity is known: a twentieth of it."""
LEAST_OPEN = 0.1
"""Share of the image's energy that an operator must leave open before a lack of diversity is held against anyone:
0.002 in denoising, 0.02 in Gaussian deblurring, 0.03 in colourisation, 0.13 in super-resolution, 0.25 for half a face."""
LEAST_USED = 0.1
"""Particles that use a tenth of what is open and more are not collapsed, whatever a feature network makes of them: 0.17
in super-resolution without repulsion, 0.64 for half a face."""
MOST_SIGMAS = 3.0
"""A root mean square over thousands of values is 1 for the truth, and 3 is beyond all chance."""
MOST_SHARPNESS = 1.5
"""The embedded autoencoder alone leaves 0.88 of a face's gradient energy and more; x of finished runs has 1.00 to 1.06
times that of D(z)."""
LEAST_SHARPNESS = 0.5
"""Of the truth's gradient energy; finished runs keep 0.81 in Gaussian deblurring and 0.88 in super-resolution."""
LATENT_NORM = (0.8, 1.25)
"""White latents of d elements have the norm sqrt(d) but for a share 1 / sqrt(2 d); encoded faces are within 0.92 to
1.07 of it, finished runs within 0.96 to 1.10, and with twice as much repulsion as score above 40."""
MOST_REPULSION = 1.0
"""Beyond it the particles follow each other more than the measurement or the prior; the default's is 0.2 at most, and in
half-faces 1 has more smudges."""
DECODER_STD = 0.08
"""Typical distance of D(z) from an image, where the method has no setting of its own."""
MOST_COUPLING = 2.0
"""x that is twice as far from D(z) is explained by the prior no more; finished runs are at 0.2 to 0.6, and with twice as
much repulsion as score at 4."""


class Signs(NamedTuple):
    r"""What there is to see of one measurement's particles; None where something is not known or does not apply.

    Attributes:
        diversity: One minus the mean cosine of two particles' features.
        left_open: Share of the mean image's energy about its mean colour that the operator does not see above its noise.
        used: The particles' deviation there over the mean image's.
        residual_sigmas: Root mean square of :math:`y - A(x)` in units of the noise.
        sharpness_to_decoded: Gradient energy of :math:`x` over that of :math:`D(z)`.
        sharpness_to_truth: The same over that of the truth.
        latent_norm: :math:`\lVert z \rVert / \sqrt d`, a mean over particles; None if the prior's latents are not white.
        repulsion_ratio: Norm of the repulsion over that of the pull, or of the score where particles are distilled,
            while it acted.
        coupling: Root mean square of :math:`x - D(z)` over the decoder's typical error.
    """

    diversity: float | None = None
    left_open: float | None = None
    used: float | None = None
    residual_sigmas: float | None = None
    sharpness_to_decoded: float | None = None
    sharpness_to_truth: float | None = None
    latent_norm: float | None = None
    repulsion_ratio: float | None = None
    coupling: float | None = None


def left_open(physics: Physics, images: Tensor, y: Tensor) -> tuple[float, float | None] | None:
    r"""How much a linear operator leaves to the prior, and how much of that the particles use.

    What an operator does not see of an image :math:`v` is :math:`B v = v - \arg\min_u \lVert A u - A v \rVert^2 / s^2 +
    \lVert u \rVert^2`: its part in the null space, and in directions that are drowned in noise of deviation :math:`s`.
    That is next to nothing for denoising, and the hidden pixels for a mask.

    Args:
        physics: The operator and its noise.
        images: The particles, with shape :math:`(N, C, H, W)`.
        y: The measurement, whose noise counts.

    Returns:
        :math:`\lVert B c \rVert^2 / \lVert c \rVert^2` for the particles' mean image without its mean colour
        :math:`c`, and the deviation of the particles' :math:`B x` over the root mean square of :math:`B c`, which is
        None for one particle; None where the operator is not linear or the noise not Gaussian, as nothing is known there.
    """
    if not (isinstance(physics, LinearPhysics) and has_square_misfit(physics.noise_model)):
        return None
    images = at_least_float32(images).clamp(-1, 1)
    std = max(noise_std(physics.noise_model, y), 1e-3)  # closed forms multiply rounding errors by its inverse square
    mean = images.mean(dim=0, keepdim=True)
    shape = torch.cat([mean - mean.mean(dim=(-2, -1), keepdim=True), images - mean])
    with torch.autocast(images.device.type, enabled=False):
        blind = shape - physics.prox_l2(torch.zeros_like(shape), physics.A(shape), std**-2)
    energy = shape[0].square().mean().item()
    room = blind[0].square().mean().item()
    spread = pixel_std(blind[1:])
    return (room / energy if energy else 0.0), (None if spread is None or not room else spread / room**0.5)


@torch.no_grad()
def signs(
    measurement: Measurement,
    images: Tensor,
    decoded: Tensor,
    z: Tensor,
    features: Tensor,
    white_latents: bool = False,
    repulsion_ratio: float | None = None,
    decoder_std: float = DECODER_STD,
) -> Signs:
    """What there is to see of one measurement's particles.

    Args:
        measurement: What they explain.
        images: The particles, with shape :math:`(N, C, H, W)`.
        decoded: Their decoded latents, with the same shape.
        z: Their latents, with shape :math:`(N, ...)`.
        features: Their features, with shape :math:`(N, D)`.
        white_latents: Whether the prior's latents have variance 1.
        repulsion_ratio: Ratio of norms, if it is known.
        decoder_std: The decoder's typical error; 0 where there is no decoder.
    """
    physics, truth, several = measurement.physics, measurement.truth, len(images) > 1
    images, decoded = at_least_float32(images), at_least_float32(decoded)
    openness, used = left_open(physics, images, measurement.y) or (None, None)
    gaussian = has_square_misfit(physics.noise_model)
    sharpness = gradient_energy(images.clamp(-1, 1)).mean()
    of_decoded = gradient_energy(decoded.clamp(-1, 1)).mean()
    of_truth = None if truth is None else gradient_energy(truth.to(images)).mean()
    return Signs(
        diversity=diversity(features).item() if several else None,
        left_open=openness,
        used=used,
        residual_sigmas=data_fit(physics, images, measurement.y)["residual_sigmas"] if gaussian else None,
        sharpness_to_decoded=(sharpness / of_decoded).item() if of_decoded else None,
        sharpness_to_truth=(sharpness / of_truth).item() if of_truth is not None and of_truth > 0 else None,
        latent_norm=z.float().square().flatten(1).mean(dim=1).sqrt().mean().item() if white_latents else None,
        repulsion_ratio=repulsion_ratio,
        coupling=(images - decoded).square().mean().sqrt().item() / decoder_std if decoder_std else None,
    )


def advice(seen: Signs, prior_diversity: float | None = None, settings: Collection[str] | None = None) -> list[str]:
    """One sentence for each thing that has gone wrong; none for a healthy run.

    Particles are held to be collapsed only where three things come together: they are alike in their features, a linear
    operator leaves a tenth of the image or more open, and they use less than a tenth of that. Where the measurement
    determines the image, as in denoising, particles that are alike are right; of nonlinear operators it is not known
    what they leave open, so nothing is said. Where a hidden region is determined by what surrounds it, the sentence
    may be wrong, and says so.

    Args:
        seen: What there is to see.
        prior_diversity: Diversity of the prior's own samples in the same features, if it is known.
        settings: The names of the method's settings, for advice that is about no other; any if left out.
    """
    least = max(LEAST_DIVERSITY, SHARE_OF_PRIOR * (prior_diversity or 0.0))
    follow = ("take more num_steps", "raise method.lr_z", "lower method.distillation_weight")
    found: list[tuple[str, tuple[str, ...]]] = []
    if (
        _below(seen.diversity, least)
        and _above(seen.left_open, LEAST_OPEN)
        and (seen.used is None or seen.used < LEAST_USED)
    ):
        alike = (
            f"the particles are nearly alike (diversity {seen.diversity:.2g}) although the measurement leaves "
            f"{seen.left_open:.0%} of the image open, unless what surrounds it determines it"
        )
        found.append(
            (alike, ("raise method.gamma", "let the kernel of method.gamma compare another thing (features=pixels)"))
        )
    if _above(seen.residual_sigmas, MOST_SIGMAS):
        far = f"the reconstructions are {seen.residual_sigmas:.3g} standard deviations of the noise away from the measurement"
        found.append((far, ("check physics.sigma", "take more num_steps", "lower method.gamma", "lower method.min_mu")))
    if _above(seen.sharpness_to_decoded, MOST_SHARPNESS):
        ratio = f"{seen.sharpness_to_decoded:.3g} times the gradient energy of the blurred D(z)"
        found.append((f"x has {ratio}: the latents do not follow it", follow))
    if _below(seen.sharpness_to_truth, LEAST_SHARPNESS):
        share = f"a share {seen.sharpness_to_truth:.2g} of the truth's gradient energy"
        found.append((f"the reconstructions are blurred ({share})", follow))
    if seen.latent_norm is not None and not LATENT_NORM[0] <= seen.latent_norm <= LATENT_NORM[1]:
        norm = f"their norm is {seen.latent_norm:.3g} times that of its samples"
        remedies = ("lower method.lr_z", "lower method.gamma", "raise method.distillation_weight")
        found.append((f"the latents have left the prior's shell ({norm})", remedies))
    found += _repulsion(seen)
    return [_sentence(problem, remedies, settings) for problem, remedies in found]


def _repulsion(seen: Signs) -> list[tuple[str, tuple[str, ...]]]:
    ratio = seen.repulsion_ratio
    if not ratio:
        return []
    if ratio > MOST_REPULSION:
        return [
            (f"the repulsion is {ratio:.3g} times as strong as what else moves the particles", ("lower method.gamma",))
        ]
    if not _above(seen.coupling, MOST_COUPLING):
        return []
    far = f"x is {seen.coupling:.3g} times as far from D(z) as the decoder's error"
    remedies = ("take more num_steps", "lower method.gamma", "lower method.sigma_break")
    return [(f"the repulsion costs quality, or the steps are few: {far}", remedies)]


def _sentence(problem: str, remedies: Sequence[str], settings: Collection[str] | None) -> str:
    """What has gone wrong, and those remedies that the method has the settings for."""
    known = [
        remedy for remedy in remedies if settings is None or set(re.findall(r"method\.(\w+)", remedy)) <= set(settings)
    ]
    return f"{problem}; {', '.join(known[:-1])}{' or ' if len(known) > 1 else ''}{known[-1]}" if known else problem


def _above(value: float | None, limit: float) -> bool:
    return value is not None and value > limit


def _below(value: float | None, limit: float) -> bool:
    return value is not None and value < limit


def means(every: list[Signs]) -> dict[str, float]:
    """Every sign that is known, as a mean over measurements."""
    named = {
        name: [value for value in values if value is not None]
        for name, *values in zip(Signs._fields, *every, strict=True)
    }
    return {name: sum(values) / len(values) for name, values in named.items() if values}
