"""Distances between two sets of images in a network's features."""

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

__all__ = ["SetNetwork", "frechet_distance", "kernel_distance", "load_inception", "vit_network"]

SUBSETS, SUBSET_SIZE = 20, 1000
"""Subsets that the kernel distance averages over, and their size; small sets are one subset."""
BATCH = 256
"""Images a forward pass."""


class SetNetwork(NamedTuple):
    """Feature network for sets of images.

    Attributes:
        name: Suffix of the figures ``fid_<name>`` and ``kid_<name>``.
        feature: The ``feature`` argument of torchmetrics: a network, or Inception's number of features.
        lowest: Least value of the images that the network takes, -1 or 0; the highest is 1.
    """

    name: str
    feature: nn.Module | int
    lowest: int = -1


class _Network(nn.Module):
    """A function as torchmetrics wants it: a module that knows its number of features."""

    def __init__(self, features: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.features, self.num_features = features, width

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images)


def vit_network(name: str, features: Callable[[Tensor], Tensor], width: int) -> SetNetwork:
    """Feature network from a function of images in [-1, 1] to vectors of a width."""
    return SetNetwork(name, _Network(features, width))


def load_inception() -> SetNetwork | None:
    """Inception, if torch-fidelity and its weights are installed; nothing is downloaded."""
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    if find_spec("torch_fidelity") is None or not list(cache.glob("weights-inception-2015-12-05-*.pth")):
        return None
    return SetNetwork("inception", 2048, lowest=0)


def _updated(metric: nn.Module, network: SetNetwork, a: Tensor, b: Tensor) -> nn.Module:
    for images, real in ((a, True), (b, False)):
        for batch in images.clamp(-1, 1).expand(-1, 3, -1, -1).split(BATCH):
            metric.update(batch if network.lowest else batch / 2 + 0.5, real=real)
    return metric


@torch.no_grad()
def frechet_distance(network: SetNetwork, a: Tensor, b: Tensor) -> float:
    r"""Frechet distance :math:`|\mu_a - \mu_b|^2 + \mathrm{tr}(C_a + C_b - 2 \sqrt{C_a C_b})` of feature means and covariances.

    Args:
        network: Feature network.
        a: Images in [-1, 1], with shape :math:`(n, 3, H, W)` or :math:`(n, 1, H, W)`, :math:`n \ge 2`.
        b: Images of the other set.

    References:
        | GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et al., 2017)
        | https://arxiv.org/abs/1706.08500
    """
    metric = FrechetInceptionDistance(feature=network.feature, normalize=network.lowest == 0)
    return _updated(metric, network, a, b).compute().item()


@torch.no_grad()
def kernel_distance(network: SetNetwork, a: Tensor, b: Tensor) -> float:
    r"""Unbiased squared maximum mean discrepancy with :math:`k(f, g) = (f \cdot g / D + 1)^3`; it can be negative.

    Arguments are those of :func:`frechet_distance`.

    References:
        | Demystifying MMD GANs (Binkowski et al., 2018)
        | https://arxiv.org/abs/1801.01401
    """
    size = min(len(a), len(b), SUBSET_SIZE)
    sizes = {"subsets": 1 if size == len(a) == len(b) else SUBSETS, "subset_size": size}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about its memory
        metric = KernelInceptionDistance(feature=network.feature, normalize=network.lowest == 0, **sizes)
    _updated(metric, network, a, b)
    with torch.random.fork_rng(devices=[]):  # draws the subsets
        torch.manual_seed(0)
        return metric.compute()[0].item()
