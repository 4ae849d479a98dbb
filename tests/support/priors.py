"""Priors whose network is a formula."""

import torch
from torch import Tensor

from rlsd_lightning import Prior

SHAPE = (2, 3)


class FormulaPrior(Prior):
    """A network that shrinks and bends its input, in float64; the latent is the image.

    Args:
        alphas: Signal levels, with shape (T,).
        prediction_type: What the network is said to predict.
    """

    def __init__(self, alphas: Tensor, prediction_type: str) -> None:
        sigmas = 1 - alphas if prediction_type == "flow" else (1 - alphas.square()).sqrt()
        super().__init__(alphas, sigmas, SHAPE, SHAPE, prediction_type, timestep_offset=0)
        self.freeze()

    def network(self, z_t: Tensor, t: int) -> Tensor:
        return 0.7 * torch.tanh(z_t) - 0.01 * t * torch.ones_like(z_t)
