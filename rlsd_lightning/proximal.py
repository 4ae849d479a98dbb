r"""The proximal step of the auxiliary variable: the image nearest to D(z) that explains the measurement."""

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor

__all__ = ["proximal_step"]


@torch.no_grad()
def proximal_step(
    physics: Physics, y: Tensor, decoded: Tensor, weight: float, inner_steps: int = 20, inner_lr: float = 0.05
) -> Tensor:
    r"""Solves :math:`\arg\min_x \mathrm{mean}(y - A(x))^2 + \mu \, \mathrm{mean}(x - D(z))^2` for every particle.

    Linear operators use their ``prox_l2``: closed form where the operator has one, else conjugate gradients. Others
    take a few Adam steps from :math:`D(z)`; no network is involved, so they cost little beside a decode.

    Args:
        physics: The operator :math:`A`.
        y: The measurement, with shape :math:`(1, \dots)`.
        decoded: The decoded latents :math:`D(z)`, with shape :math:`(N, *\mathrm{image\_shape})`.
        weight: The weight :math:`\mu > 0` of staying near :math:`D(z)`.
        inner_steps: Adam steps for a nonlinear operator.
        inner_lr: Their step size, in units of an image in [-1, 1].

    Returns:
        The auxiliaries :math:`x`, with the shape of ``decoded``.
    """
    decoded = decoded.detach()
    y = y.expand(len(decoded), *y.shape[1:])
    if isinstance(physics, LinearPhysics):
        # deepinv minimises gamma / 2 |Ax - y|^2 + 1/2 |x - z|^2 with sums where we have means
        gamma = decoded[0].numel() / (y[0].numel() * weight)
        return physics.prox_l2(decoded, y, gamma)
    x = decoded.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=inner_lr, betas=(0.9, 0.99))
    with torch.enable_grad():
        for _ in range(inner_steps):
            error = (y - physics.A(x)).square().flatten(1).mean(1) + weight * (x - decoded).square().flatten(1).mean(1)
            (x.grad,) = torch.autograd.grad(error.sum(), x)
            optimizer.step()
    return x.detach()
