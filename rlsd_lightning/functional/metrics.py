"""Figures about a set of particles that torchmetrics does not have."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = [
    "diversity",
    "gradient_energy",
    "mode_total_variation",
    "pixel_std",
    "psnr",
    "residual_rms",
]


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    r"""Peak signal-to-noise ratio of images in [-1, 1], one value an image (torchmetrics averages over a batch).

    Args:
        images: With shape :math:`(N, \dots)`; values beyond the range are clipped.
        truth: With shape :math:`(1, \dots)`.

    Returns:
        Decibels, with shape :math:`(N,)`: :math:`10 \log_{10}(4 / \mathrm{mse})`.
    """
    mse = (images.clamp(-1, 1) - truth).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(4 / mse)


def diversity(features: Tensor) -> Tensor:
    r"""One minus the mean cosine similarity of two particles' features, which have shape :math:`(N, D)`.

    It is from 0 (all alike) to 2, and 0 for one particle.

    References:
        | Repulsive Latent Score Distillation for Solving Inverse Problems (Zilberstein et al., 2025)
        | https://arxiv.org/abs/2406.16683
    """
    count = len(features)
    if count == 1:
        return features.new_zeros(())
    unit = normalize(features, dim=1)
    similarity = unit @ unit.T
    return 1 - (similarity.sum() - similarity.trace()) / (count * (count - 1))


def pixel_std(images: Tensor, region: Tensor | None = None) -> float | None:
    r"""Root mean square of the particles' unbiased standard deviation, whose expectation does not depend on their number.

    Args:
        images: With shape :math:`(N, *)`.
        region: Entries that count, a boolean tensor of shape :math:`(*)`; all if left out.

    Returns:
        In units of an image in [-1, 1]; None for one particle, or where nothing counts.
    """
    values = images.flatten(1) if region is None else images[:, region]
    if len(values) < 2 or not values.numel():
        return None
    return values.var(dim=0).mean().sqrt().item()


def gradient_energy(images: Tensor) -> Tensor:
    r"""Mean square of differences of neighbours, down plus across, with shape :math:`(N,)`, for :math:`(N, C, H, W)`."""
    return sum(images.diff(dim=dim).square().flatten(1).mean(dim=1) for dim in (-2, -1))


def residual_rms(measured: Tensor, y: Tensor) -> Tensor:
    r"""Root mean square of :math:`y - A(x)` over all particles and elements, in units of the measurement.

    The noise of complex measurements is that of their real and imaginary parts, so these are elements.
    """
    error = y - measured
    return (torch.view_as_real(error) if error.is_complex() else error).square().mean().sqrt()


def mode_total_variation(assignments: Tensor, weights: Tensor) -> Tensor:
    r"""Total variation between the particles' shares of the modes and the modes' weights.

    Args:
        assignments: Index of each particle's mode, with shape :math:`(N,)`.
        weights: The true weights, with shape :math:`(K,)`, summing to one.

    Returns:
        :math:`\frac{1}{2} \sum_k |\hat w_k - w_k|`, from 0 to 1.
    """
    shares = torch.bincount(assignments, minlength=len(weights)).to(weights) / len(assignments)
    return 0.5 * (shares - weights).abs().sum()
