"""The published loop as its description reads, to be measured beside ours.

Zilberstein et al., 2025, Algorithm 1, in the version of the published runs: the weights of the decoder ask for gradients
as they do when a pipeline is loaded, z and x have an optimiser each, and the image is decoded for z, again for x, and for
the features of the kernel.
"""

import copy
from collections.abc import Callable

import torch
from problems import Problem

__all__ = ["published_step"]

LR_Z, LR_X, RHO, DISTILLATION_WEIGHT = 0.8, 0.4, 0.07, 0.15


def published_step(problem: Problem, gamma: float) -> Callable[[int], None]:
    """A function that takes one step at a timestep."""
    prior, features, physics, y, count = problem
    # as loaded: the weights ask for gradients
    prior = copy.deepcopy(prior).requires_grad_(True)
    z = torch.randn(count, *prior.latent_shape, device=y.device).requires_grad_()
    x = torch.randn(count, *prior.image_shape, device=y.device).requires_grad_()
    optimizer_z = torch.optim.Adam([z], lr=LR_Z, betas=(0.9, 0.99))
    optimizer_x = torch.optim.Adam([x], lr=LR_X, betas=(0.9, 0.99))
    rows, columns = ((~torch.eye(count, dtype=torch.bool)).nonzero().to(y.device)).T

    def step(t: int) -> None:
        alpha, sigma = prior.alpha(t), prior.sigma(t)
        eps = torch.randn_like(z)
        with torch.no_grad():
            residual = prior.denoise(alpha * z + sigma * eps, t)[1] - eps
        if gamma:
            f = features(z, prior.decode(z))
            difference = (f[:, None] - f[None])[rows, columns].view(count, count - 1, -1)
            distance = difference.norm(dim=-1, keepdim=True)
            h = distance.median(dim=1, keepdim=True).values ** 2 / torch.log(torch.tensor(count - 1.0, device=f.device))
            k = torch.exp(-(distance**2) / h)
            push = (2 * k * difference / h).sum(dim=1) / k.sum(dim=1)
            (pulled,) = torch.autograd.grad(torch.sum(f * push.detach()), z)
            residual = residual - gamma * sigma * pulled
        decoded = prior.decode(z)
        loss = 0.5 * (x.detach() - decoded).square().mean()
        loss = loss + DISTILLATION_WEIGHT * sigma / alpha * (residual * z).mean()
        optimizer_z.zero_grad()
        loss.backward()
        optimizer_z.step()
        decoded = prior.decode(z).detach()
        loss = 0.5 * (y - physics.A(x)).square().mean() + RHO * 0.5 * (x - decoded).square().mean()
        optimizer_x.zero_grad()
        loss.backward()
        optimizer_x.step()

    return step
