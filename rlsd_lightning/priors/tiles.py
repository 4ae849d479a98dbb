r"""Overlapping tiles, for images that networks do not take in one piece.

All tiles of an image share one latent. A network's outputs for the tiles are averaged where tiles overlap,

.. math:: F(z) = \sum_k w_k \odot f(z_k), \qquad \textstyle\sum_k w_k = 1,

with tiles :math:`z_k` and weights :math:`w_k` that fall to zero before a tile's inner borders. A denoiser is averaged in every
step, so that the tiles agree on one image. The gradient of a tile's output is computed from the tile once more in the backward
pass, so one tile's activations are in memory at a time.

References:
    | MultiDiffusion: Fusing Diffusion Paths for Controlled Image Generation (Bar-Tal et al., 2023)
    | https://arxiv.org/abs/2302.08113
"""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["LEAST_TILE", "in_tiles"]

OVERLAP = 4
"""A tile's length over the least overlap of two tiles."""
GRID = 8
"""A tile's length over the distance of places where tiles start, as strided convolutions see shifted tiles differently."""
LEAST_TILE = 16
"""Least length of a tile in latents: margins and ramps of weights need some."""


def in_tiles(function: Callable[[Tensor], Tensor], values: Tensor, tile: int, zoom: int | Fraction = 1) -> Tensor:
    """A network's output, averaged over overlapping tiles; in one piece if the values fit into one tile.

    Args:
        function: The network, which multiplies heights and widths by ``zoom``.
        values: Its input, with shape :math:`(N, C, H, W)`.
        tile: Height and width of a tile.
        zoom: Length of the output over that of the input.
    """
    height, width = values.shape[-2:]
    if max(height, width) <= tile:
        return function(values)
    rows, columns = (_weighted_places(length, tile, zoom) for length in (height, width))
    total = None
    for (top, row_weights), (left, column_weights) in itertools.product(rows, columns):
        part = values[..., top : top + tile, left : left + tile]
        seen = _recomputed(function, part)
        if total is None:
            total = seen.new_zeros(*seen.shape[:2], int(height * zoom), int(width * zoom))
        weights = (row_weights[:, None] * column_weights).to(seen)
        first, start = int(top * zoom), int(left * zoom)
        total[..., first : first + seen.shape[-2], start : start + seen.shape[-1]] += weights * seen
    return total


def _recomputed(function: Callable[[Tensor], Tensor], part: Tensor) -> Tensor:
    """A network's output, whose activations are computed again in the backward pass."""
    if not (torch.is_grad_enabled() and part.requires_grad):
        return function(part)
    return checkpoint(function, part, use_reentrant=False, preserve_rng_state=False)


def _weighted_places(length: int, tile: int, zoom: int | Fraction) -> list[tuple[int, Tensor]]:
    """Where tiles start along an axis, and their weights at the output's pixels; at every pixel weights sum to one."""
    starts, size = _starts(length, tile), int(min(tile, length) * zoom)
    weights = [_ramps(size, first=start == 0, last=start == starts[-1]) for start in starts]
    total = torch.zeros(int(length * zoom), dtype=torch.float64)
    for start, weight in zip(starts, weights, strict=True):
        total[int(start * zoom) :][:size] += weight
    places = zip(starts, weights, strict=True)
    return [(start, weight / total[int(start * zoom) :][:size]) for start, weight in places]


def _starts(length: int, tile: int) -> list[int]:
    """Evenly spread starts of tiles that cover a length and overlap by at least a quarter of their own."""
    if length <= tile:
        return [0]
    grid = max(1, tile // GRID)
    steps = math.ceil((length - tile) / (tile - tile // OVERLAP - grid))
    return [(length - tile) * step // steps // grid * grid for step in range(steps)] + [length - tile]


def _ramps(size: int, first: bool, last: bool) -> Tensor:
    """Weights of a tile: 1 inside; at inner borders 0 over a quarter of the overlap, then a rise over half of it."""
    overlap = size / OVERLAP
    from_border = torch.arange(size, dtype=torch.float64) + 0.5
    rise = ((from_border - overlap / 4) / (overlap / 2)).clamp(0, 1)
    weights = torch.ones(size, dtype=torch.float64)
    if not first:
        weights = weights * rise
    return weights if last else weights * rise.flip(0)
