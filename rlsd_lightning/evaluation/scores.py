"""Figures of one measurement's particles at the end of a run."""

from typing import NamedTuple

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from rlsd_lightning.features import SMALLEST_LPIPS
from rlsd_lightning.functional.metrics import psnr, residual_rms
from rlsd_lightning.functional.precision import full_precision
from rlsd_lightning.functional.sets.coverage import vendi_score
from rlsd_lightning.functional.sets.proper_scores import crps, energy_score
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.operators import NullOperator
from rlsd_lightning.operators.likelihood import data_fit, equivalent_forms, measured

__all__ = [
    "SMALLEST_SSIM",
    "Solved",
    "aligned",
    "proper_scores",
    "pseudo_inverse",
    "score",
    "ssim_each",
]

SMALLEST_SSIM = 11
"""Pixels of the window of SSIM; smaller images have none."""


class Solved(NamedTuple):
    """A measurement and its particles.

    Attributes:
        measurement: Measurement that the particles explain.
        images: Particles in [-1, 1], with shape :math:`(N, C, H, W)`.
        decoded: Decoded latents, with the same shape.
        z: Latents, with shape :math:`(N, ...)`.
    """

    measurement: Measurement
    images: Tensor
    decoded: Tensor
    z: Tensor


@torch.no_grad()
def pseudo_inverse(physics: Physics, y: Tensor) -> Tensor | None:
    r"""The image :math:`A^+ y`, a reconstruction without a prior; None unless the operator is linear."""
    if not isinstance(physics, LinearPhysics) or isinstance(physics, NullOperator):
        return None
    with full_precision(y.device):
        return physics.A_dagger(y)


def aligned(images: Tensor, reference: Tensor, physics: Physics) -> Tensor:
    """Each particle's equivalent form nearest to a reference of shape :math:`(1, C, H, W)`.

    Particles are returned unchanged if the operator has no
    :func:`~rlsd_lightning.operators.likelihood.equivalent_forms`.
    """
    forms = equivalent_forms(physics, images)
    if forms is None:
        return images
    nearest = (forms - reference).square().flatten(2).mean(dim=2).argmin(dim=0)
    return forms[nearest, torch.arange(len(images), device=images.device)]


def ssim_each(images: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of each image to the truth, with shape :math:`(N,)`."""
    value = structural_similarity_index_measure(
        images.clamp(-1, 1), truth.expand_as(images).contiguous(), data_range=(-1.0, 1.0), reduction="none"
    )
    return value.reshape(len(images))


@torch.no_grad()
def score(solved: Solved, features: Tensor, lpips: nn.Module | None) -> dict[str, float | None]:
    """Figures of one measurement's particles; None where the truth, a noise level or weights are missing.

    Args:
        solved: The measurement and its particles.
        features: Features of the particles, with shape :math:`(N, D)`.
        lpips: LPIPS metric, if its weights are available.

    Returns:
        PSNR in decibels (``psnr_*``), ``ssim_mean`` and ``lpips_mean`` of particles aligned with the truth;
        ``residual``, the RMS of :math:`y - A(x)`; the figures of
        :func:`~rlsd_lightning.operators.likelihood.data_fit`; ``vendi``, the effective number of different particles; with a
        truth and two particles or more the proper scores ``crps``, a mean over values, and ``energy_score``, over the
        root of their number, both in units of an image in [-1, 1].
    """
    images, y, physics = solved.images, solved.measurement.y, solved.measurement.physics
    names = ("psnr_mean", "psnr_best", "psnr_of_mean", "psnr_pseudo_inverse", "ssim_mean", "lpips_mean")
    names += ("crps", "energy_score")
    scores: dict[str, float | None] = dict.fromkeys(names)
    scores["residual"] = residual_rms(measured(physics, images), y).item()
    scores |= data_fit(physics, images, y)
    if solved.measurement.truth is not None:
        truth = solved.measurement.truth.to(images)
        scores |= _comparisons(truth, aligned(images, truth, physics), lpips)
        without_prior = pseudo_inverse(physics, y)
        if without_prior is not None:
            scores["psnr_pseudo_inverse"] = psnr(without_prior, truth).item()
    return scores | {"vendi": vendi_score(features).item()}


def proper_scores(images: Tensor, truth: Tensor, region: Tensor | None = None) -> dict[str, Tensor]:
    """``crps`` and ``energy_score`` of a set, over the values of a region with shape :math:`(C, H, W)`, or all."""
    if region is not None:
        images, truth = images[:, region], truth[:, region]
    per_value = truth[0].numel() ** 0.5
    return {"crps": crps(images, truth).mean(), "energy_score": energy_score(images, truth) / per_value}


def _comparisons(truth: Tensor, images: Tensor, lpips: nn.Module | None) -> dict[str, float]:
    """Figures that compare aligned particles with the truth."""
    each = psnr(images, truth)
    figures = {"psnr_mean": each.mean(), "psnr_best": each.max()}
    figures["psnr_of_mean"] = psnr(images.mean(dim=0, keepdim=True), truth)
    if len(images) > 1:
        figures |= proper_scores(images.clamp(-1, 1), truth)
    if min(images.shape[-2:]) >= SMALLEST_SSIM:
        figures["ssim_mean"] = ssim_each(images, truth).mean()
    if lpips is not None and min(images.shape[-2:]) >= SMALLEST_LPIPS:
        in_colour = (each.expand(len(images), 3, -1, -1).contiguous() for each in (images.clamp(-1, 1), truth))
        figures["lpips_mean"] = lpips.to(images.device)(*in_colour)
    return {name: value.item() for name, value in figures.items()}
