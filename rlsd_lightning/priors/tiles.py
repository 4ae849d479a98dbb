r"""Overlapping tiles, for images that networks do not take in one piece.

All tiles of an image share one latent. A network's outputs for the tiles are averaged where tiles overlap,

.. math:: F(z) = \sum_k w_k \odot f(z_k), \qquad \textstyle\sum_k w_k = 1,

with tiles :math:`z_k` and weights :math:`w_k` that fall to zero before a tile's inner borders. A denoiser is averaged in every
step, so that the tiles agree on one image. The gradient of a tile's output is computed from the tile once more in the backward
pass, so one tile's activations are in memory at a time.

Group normalisations see the mean and the variance of the whole image, or a tile of plain sky would get another contrast than
its neighbours. Passes over all tiles without gradients find them: after :math:`k` passes those of the first :math:`k` layers
are right, and the others nearly so.

References:
    | MultiDiffusion: Fusing Diffusion Paths for Controlled Image Generation (Bar-Tal et al., 2023)
    | https://arxiv.org/abs/2302.08113
"""

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["LEAST_TILE", "in_tiles"]

OVERLAP = 4
"""Two tiles overlap by at least their length over this number."""
MARGIN = 3 / 32
"""Width of the strip along a tile's inner borders that has weight zero, over the tile's length: a network lacks context there."""
GRID = 8
"""Tiles start at multiples of their length over this number, as the outputs of strided convolutions depend on the shift."""
PASSES = 2
"""Passes that find the mean and variance of the normalisations, each with the cost of the network without a gradient."""
LEAST_TILE = 16
"""Least length of a tile in latents: margins and ramps of weights need some."""


def in_tiles(
    function: Callable[[Tensor], Tensor],
    values: Tensor,
    tile: int,
    zoom: int | Fraction = 1,
    network: nn.Module | None = None,
) -> Tensor:
    """A network's output, averaged over overlapping tiles; in one piece if the values fit into one tile.

    Args:
        function: The network, which multiplies heights and widths by ``zoom``.
        values: Its input, with shape :math:`(N, C, H, W)`.
        tile: Height and width of a tile.
        zoom: Length of the output over that of the input.
        network: The module whose group normalisations all tiles share; each tile has its own if left out.
    """
    height, width = values.shape[-2:]
    if max(height, width) <= tile:
        return function(values)
    rows, columns = (_weighted_places(length, tile, zoom) for length in (height, width))
    places = list(itertools.product(rows, columns))
    parts = [values[..., top : top + tile, left : left + tile] for (top, _), (left, _) in places]
    if network is not None:
        function = _sharing_norms(function, parts, network)
    total = None
    for ((top, row_weights), (left, column_weights)), part in zip(places, parts, strict=True):
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


def _sharing_norms(
    function: Callable[[Tensor], Tensor], parts: Sequence[Tensor], network: nn.Module
) -> Callable[[Tensor], Tensor]:
    """The same function, in which group normalisations have the mean and variance over all tiles."""
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    shared: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def sharing(part: Tensor, found: dict[nn.Module, list[tuple[Tensor, Tensor]]] | None = None) -> Tensor:
        def normalise(norm: nn.GroupNorm, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            if found is not None:
                groups = inputs[0].float().unflatten(1, (norm.num_groups, -1)).flatten(2)
                found.setdefault(norm, []).append(torch.var_mean(groups, dim=2, correction=0))
            return _normalised(norm, inputs[0], *shared[norm]).to(output) if norm in shared else output

        handles = [norm.register_forward_hook(normalise) for norm in norms]
        try:
            return function(part)
        finally:
            for handle in handles:
                handle.remove()

    for _ in range(PASSES if norms else 0):
        found: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
        with torch.no_grad():
            for part in parts:
                sharing(part.detach(), found)
        for norm, every in found.items():
            variances, means = map(torch.stack, zip(*every, strict=True))
            shared[norm] = variances.mean(dim=0) + means.var(dim=0, correction=0), means.mean(dim=0)
    return sharing


def _normalised(norm: nn.GroupNorm, values: Tensor, variance: Tensor, mean: Tensor) -> Tensor:
    """Group normalisation with given variances and means, each with shape :math:`(N, G)`."""
    size = norm.num_channels // norm.num_groups
    scale = (variance + norm.eps).rsqrt().repeat_interleave(size, dim=1) * norm.weight
    shift = norm.bias - mean.repeat_interleave(size, dim=1) * scale
    shape = (*scale.shape, *[1] * (values.ndim - 2))
    return values * scale.view(shape) + shift.view(shape)


def _weighted_places(length: int, tile: int, zoom: int | Fraction) -> list[tuple[int, Tensor]]:
    """Where tiles start along an axis, and their weights at the output's pixels; at every pixel weights sum to one."""
    starts, size = _starts(length, tile, Fraction(zoom).denominator), int(min(tile, length) * zoom)
    overlaps = [int((start + tile - following) * zoom) for start, following in itertools.pairwise(starts)]
    weights = [torch.ones(size, dtype=torch.float64) for _ in starts]
    for (before, after), overlap in zip(itertools.pairwise(weights), overlaps, strict=True):
        rise = _rise(overlap, size)
        after[:overlap] *= rise
        before[size - overlap :] *= 1 - rise
    total = torch.zeros(int(length * zoom), dtype=torch.float64)  # one, except where three tiles overlap
    places = [slice(int(start * zoom), int(start * zoom) + size) for start in starts]
    for place, weight in zip(places, weights, strict=True):
        total[place] += weight
    return [(start, weight / total[place]) for start, place, weight in zip(starts, places, weights, strict=True)]


def _starts(length: int, tile: int, unit: int) -> list[int]:
    """Evenly spread starts of tiles that cover a length and overlap by at least a quarter; multiples of a unit, as both are."""
    if length <= tile:
        return [0]
    grid = max(unit, tile // GRID // unit * unit)
    steps = math.ceil((length - tile) / (tile - tile // OVERLAP - grid))
    return [(length - tile) * step // steps // grid * grid for step in range(steps)] + [length - tile]


def _rise(overlap: int, size: int) -> Tensor:
    """Weights of a tile over its overlap with the one before: zero near the border, then a rise, and one."""
    margin = MARGIN * size
    return ((torch.arange(overlap, dtype=torch.float64) + 0.5 - margin) / (overlap - 2 * margin)).clamp(0, 1)
