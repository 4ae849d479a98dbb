r"""Principal uncertainty directions: along which images the particles differ most.

They are the eigenvectors of the particles' covariance over all values of an image. :math:`N` particles have at most
:math:`N - 1` of them.

References:
    | Principal Uncertainty Quantification with Spatial Correlation for Image Restoration Problems (Belhasin et al., 2023)
    | https://arxiv.org/abs/2305.10124
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Directions", "principal_directions"]

MOST = 3
"""Directions that are kept."""


class Directions(NamedTuple):
    """Principal directions of particles, the most important first.

    Attributes:
        deviations: One standard deviation along each direction, with shape (k, C, H, W).
        shares: Share of the particles' variance along each direction, in [0, 1], with shape (k,).
    """

    deviations: Tensor
    shares: Tensor


def principal_directions(images: Tensor) -> Directions | None:
    """Principal directions of images with shape (N, C, H, W); None for one image or equal images.

    The sign of a direction is arbitrary; its largest value is positive here.
    """
    points = images.flatten(1).cpu().double()
    centred = points - points.mean(dim=0)
    variances, vectors = torch.linalg.eigh(centred @ centred.T)  # of shape (N, N), with the same eigenvalues
    total = variances.clamp_min(0).sum()
    if len(images) < 2 or total <= torch.finfo(images.dtype).eps * points.square().sum():
        return None
    count = min(MOST, len(images) - 1)
    vectors = vectors.flip(1)[:, :count]
    deviations = vectors.T @ centred / (len(images) - 1) ** 0.5  # norms are the roots of the variances
    largest = deviations.gather(1, deviations.abs().argmax(dim=1, keepdim=True))
    deviations = deviations * torch.where(largest < 0, -1.0, 1.0)
    shares = variances.flip(0)[:count].clamp_min(0) / total
    return Directions(deviations.view(count, *images.shape[1:]).to(images), shares.to(images))
