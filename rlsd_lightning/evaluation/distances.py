"""Distances between two sets of images in the features of a network whose name is part of the figure's."""

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

__all__ = ["SetNetwork", "frechet_distance", "kernel_distance", "load_inception", "vit_network"]

SUBSETS, SUBSET_SIZE = 20, 1000
"""Of the kernel distance, which is a mean over subsets; one subset if both sets are no larger than it."""
BATCH = 256


class SetNetwork(NamedTuple):
    """What sets of images are compared in.

    Attributes:
        name: Names the figures, ``fid_<name>`` and ``kid_<name>``.
        feature: What torchmetrics takes as its network: one that is called with images in [-1, 1], or the number of
            Inception's features.
    """

    name: str
    feature: nn.Module | int


class _ClassToken(nn.Module):
    """A vision transformer in the form that torchmetrics calls."""

    def __init__(self, features: nn.Module, width: int) -> None:
        super().__init__()
        self.features = features
        self.num_features = width

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images)


def vit_network(name: str, features: nn.Module, width: int) -> SetNetwork:
    """A network that turns images in [-1, 1] into vectors of a width."""
    return SetNetwork(name, _ClassToken(features, width))


def load_inception() -> SetNetwork | None:
    """The network of the usual FID, if torch-fidelity and its weights are here; never reaches for the network."""
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    if find_spec("torch_fidelity") is None or not list(cache.glob("weights-inception-2015-12-05-*.pth")):
        return None
    return SetNetwork("inception", 2048)


def _updated(metric: nn.Module, network: SetNetwork, a: Tensor, b: Tensor) -> nn.Module:
    for images, real in ((a, True), (b, False)):
        for batch in images.clamp(-1, 1).split(BATCH):
            # Inception is called with numbers from 0 to 1, as its metrics are told
            metric.update(batch / 2 + 0.5 if isinstance(network.feature, int) else batch, real=real)
    return metric


@torch.no_grad()
def frechet_distance(network: SetNetwork, a: Tensor, b: Tensor) -> float:
    r"""The distance :math:`|\mu_a - \mu_b|^2 + \mathrm{tr}(C_a + C_b - 2 \sqrt{C_a C_b})` of means and covariances.

    Args:
        network: What images are compared in.
        a: Images in [-1, 1], with shape :math:`(n, 3, H, W)`, at least two.
        b: Others.

    References:
        | GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et al., 2017)
        | https://arxiv.org/abs/1706.08500
    """
    metric = FrechetInceptionDistance(feature=network.feature, normalize=isinstance(network.feature, int))
    return _updated(metric, network, a, b).compute().item()


@torch.no_grad()
def kernel_distance(network: SetNetwork, a: Tensor, b: Tensor) -> float:
    r"""The squared maximum mean discrepancy under :math:`k(f, g) = (f \cdot g / D + 1)^3`, without bias.

    An unbiased estimate scatters around zero for two sets of one distribution, so it can be negative.

    Args:
        network: What images are compared in.
        a: Images in [-1, 1], with shape :math:`(n, 3, H, W)`, at least two.
        b: Others.

    References:
        | Demystifying MMD GANs (Binkowski et al., 2018)
        | https://arxiv.org/abs/1801.01401
    """
    size = min(len(a), len(b), SUBSET_SIZE)
    subsets = 1 if size == len(a) == len(b) else SUBSETS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it keeps all features: they are few
        metric = KernelInceptionDistance(
            feature=network.feature, subsets=subsets, subset_size=size, normalize=isinstance(network.feature, int)
        )
    _updated(metric, network, a, b)
    with torch.random.fork_rng(devices=[]):  # the subsets are drawn from torch's own generator
        torch.manual_seed(0)
        return metric.compute()[0].item()
