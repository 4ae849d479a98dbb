"""Reconstructions of photographs without a trained prior: bicubic interpolation and total variation."""

from collections.abc import Sequence
from functools import cache

import torch
from deepinv.optim import ADMM, L2
from deepinv.optim.prior import TVPrior
from deepinv.physics import Downsampling, LinearPhysics, Physics
from torch import Tensor

from rlsd_lightning.evaluation.scores import pseudo_inverse
from rlsd_lightning.functional.metrics import psnr

__all__ = ["TV_WEIGHTS", "best_weight", "bicubic", "total_variation"]

TV_WEIGHTS = tuple(10 ** (exponent / 2) for exponent in range(-10, 0))
"""Weights of total variation that are tried, from 1e-5 to 0.3."""
THRESHOLD = 0.1
"""Differences of neighbours, in units of an image in [-1, 1], that a step of total variation takes away."""
STEPS, INNER_STEPS, LONE_STEPS = 150, 10, 500
"""Steps of ADMM, those of total variation in each, and those where it is used alone."""


def bicubic(physics: Physics, y: Tensor, image_shape: tuple[int, ...]) -> Tensor:
    """Bicubic interpolation for super-resolution; else the pseudo-inverse, or the measurement itself.

    The interpolation takes each measured value to the place that it was measured at, which a ramp tells.

    Args:
        physics: The operator.
        y: The measurement, with shape (1, ...).
        image_shape: Shape of an image.

    References:
        | Cubic Convolution Interpolation for Digital Image Processing (Keys, 1981)
        | https://doi.org/10.1109/TASSP.1981.1163711
    """
    if not isinstance(physics, Downsampling):
        found = pseudo_inverse(physics, y)
        return y if found is None else found
    rows, columns = (_weights(physics, y, image_shape, dim) for dim in (-2, -1))
    return rows @ y @ columns.T


def _weights(physics: Downsampling, y: Tensor, image_shape: tuple[int, ...], dim: int) -> Tensor:
    """Weights of the measured values along an axis for each pixel, by Keys' kernel, which keeps slopes."""
    size, count = image_shape[dim], y.shape[dim]
    pixels = torch.arange(size, device=y.device, dtype=y.dtype)
    ramp = (pixels if dim == -1 else pixels[:, None]).expand(1, *image_shape).contiguous()
    places = physics.A(ramp)[0, 0].movedim(dim, 0)
    middle = places.shape[0] // 2, places.shape[1] // 2  # far from where the circular filter mixes both ends
    nearest = (pixels - places[middle]) / (size / count) + middle[0]
    first = nearest.floor()
    weights = torch.zeros(size, count, device=y.device, dtype=y.dtype)
    for neighbour in (first - 1, first, first + 1, first + 2):
        away = (nearest - neighbour).abs()
        near, far = 1.5 * away**3 - 2.5 * away**2 + 1, -0.5 * away**3 + 2.5 * away**2 - 4 * away + 2
        index = neighbour.clamp(0, count - 1).long()[:, None]
        weights.scatter_add_(1, index, torch.where(away <= 1, near, far)[:, None])
    return weights


@torch.no_grad()
def total_variation(physics: Physics, y: Tensor, weight: float) -> Tensor:
    r"""Solves :math:`\arg\min_x \frac{1}{2} \|A(x) - y\|^2 + \lambda \, \mathrm{TV}(x)` by deepinv's ADMM.

    For an operator that is not linear the measurement is smoothed as if it were an image with noise.

    References:
        | Nonlinear Total Variation Based Noise Removal Algorithms (Rudin et al., 1992)
        | https://doi.org/10.1016/0167-2789(92)90242-F
    """
    if not isinstance(physics, LinearPhysics):
        return TVPrior(n_it_max=LONE_STEPS).prox(y, gamma=weight)
    solver = ADMM(
        data_fidelity=L2(),
        prior=TVPrior(n_it_max=INNER_STEPS),
        lambda_reg=weight,
        stepsize=THRESHOLD / weight,
        max_iter=STEPS,
    )
    return solver(y, physics)


def best_weight(physics: Physics, truths: Sequence[Tensor], weights: Sequence[float] = TV_WEIGHTS) -> float:
    """The weight of total variation with the highest mean PSNR on images of one shape, each (1, C, H, W).

    PSNR rises and falls once over the weights, so the search climbs from the middle one.

    Args:
        physics: The operator.
        truths: Images that the weight is chosen on.
        weights: Candidates, in rising order.
    """
    torch.manual_seed(0)
    pairs = [(physics(truth), truth) for truth in truths]

    @cache
    def mean_psnr(index: int) -> float:
        return sum(psnr(total_variation(physics, y, weights[index]), truth).item() for y, truth in pairs)

    at = len(weights) // 2
    while (best := max(range(max(at - 1, 0), min(at + 2, len(weights))), key=mean_psnr)) != at:
        at = best
    return weights[at]
