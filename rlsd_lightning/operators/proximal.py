r"""Proximal step of the auxiliary image x: data fidelity and distance to D(z)."""

from collections.abc import Iterable
from functools import partial
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

import torch
from deepinv.physics import DecomposablePhysics, Downsampling, LinearPhysics, Physics
from torch import Tensor

from rlsd_lightning.functional.losses import at_least_float32, square_misfit
from rlsd_lightning.functional.precision import full_precision
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.operators.likelihood import has_square_misfit, misfit, noise_std
from rlsd_lightning.operators.medical import RealMRI
from rlsd_lightning.operators.pixels import NullOperator

__all__ = ["RESULT_STEPS", "ProximalSteps", "has_own_step", "is_batch_independent", "noise_share", "proximal_step"]

RESULT_STEPS = 200
"""Inner steps of the final images' proximal step where it has no closed form."""


@runtime_checkable
class HasProx(Protocol):
    """An operator with a proximal step of its own."""

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float) -> Tensor:
        r"""Solves :math:`\arg\min_x \tfrac{\gamma}{2} \|A(x) - y\|^2 + \tfrac{1}{2} \|x - z\|^2`."""


def noise_share(measurement: Measurement, num_values: int) -> float:
    r"""Noise variance in units of the misfit's mean, :math:`n / m \cdot s^2`; divided by a variance, a proximal weight.

    The measurement has :math:`m` values and noise of standard deviation :math:`s`; images have :math:`n` values.
    """
    return num_values / measurement.y[0].numel() * noise_std(measurement.physics.noise_model, measurement.y) ** 2


def has_own_step(physics: Physics) -> bool:
    """Whether operator and noise have a proximal step of their own; Adam iterates if not."""
    return isinstance(physics, HasProx) and has_square_misfit(physics.noise_model)


def is_batch_independent(physics: Physics) -> bool:
    """Whether the solution is independent of the batch.

    Closed forms and Adam are independent. Conjugate gradients stop for all images of a batch at once.
    """
    if not has_own_step(physics) or not isinstance(physics, LinearPhysics):
        return True
    if isinstance(physics, Downsampling):
        return physics.padding == "circular" and physics.filter is not None
    return isinstance(physics, DecomposablePhysics | RealMRI | NullOperator)


@torch.no_grad()
def proximal_step(
    physics: Physics, y: Tensor, decoded: Tensor, weight: float, inner_steps: int = 20, inner_lr: float = 0.05
) -> Tensor:
    r"""Solves :math:`\arg\min_x \mathrm{misfit}(A(x), y) + \mu \, \mathrm{mean}((x - D(z))^2)` for every particle.

    The misfit is :func:`~rlsd_lightning.operators.likelihood.misfit`. For a squared error the operator's ``prox_l2`` is
    used if it has one (closed form or conjugate gradients). Otherwise Adam starts from :math:`D(z)`.

    Args:
        physics: The operator :math:`A` with its noise.
        y: The measurement, with shape :math:`(1, \dots)`, or one for every particle.
        decoded: The decoded latents :math:`D(z)`, with shape :math:`(N, *\mathrm{image\_shape})`.
        weight: The weight :math:`\mu > 0` of the distance to :math:`D(z)`.
        inner_steps: Adam steps where there is no closed form.
        inner_lr: Adam's initial step size, in units of an image in [-1, 1]; it decays linearly to zero.

    Returns:
        The auxiliaries :math:`x`, with the shape of ``decoded``.
    """
    # full precision: closed forms multiply rounding errors by 1 / mu
    with full_precision(decoded.device):
        decoded = at_least_float32(decoded.detach())
        if has_own_step(physics):
            # deepinv minimises gamma / 2 |Ax - y|^2 + 1/2 |x - z|^2 with sums where we have means
            gamma = decoded[0].numel() / (y[0].numel() * weight)
            if not isinstance(physics, LinearPhysics):
                return physics.prox_l2(decoded, y, gamma)
            # deepinv's closed form needs a filter; without one conjugate gradients end after two steps
            has_none = isinstance(physics, Downsampling) and physics.filter is None
            solve = partial(LinearPhysics.prox_l2, physics) if has_none else physics.prox_l2
            # start at zero: some closed forms drop the null space of z
            return decoded + solve(torch.zeros_like(decoded), y - physics.A(decoded), gamma)
        return _descend(physics, y, decoded, weight, inner_steps, inner_lr)


class ProximalSteps:
    r"""Proximal steps of several measurements' particles.

    Args:
        measurements: The measurements.
        num_values: Number of values of an image.
        min_mu: Smallest weight :math:`\mu`, above 0.
        together: Solve neighbours with one operator and one weight in one call, which is faster on a GPU and needs more
            memory.
    """

    def __init__(
        self, measurements: Iterable[Measurement], num_values: int, min_mu: float, together: bool = True
    ) -> None:
        # computed once, as reading from a device waits for it
        self._noise_shares = {each.name: noise_share(each, num_values) for each in measurements}
        self._min_mu, self._together = min_mu, together

    def mu(self, measurement: Measurement, image_var: float) -> float:
        r"""The weight :math:`\max(n / m \cdot s^2 / v, \mathrm{min\_mu})` of images with variance :math:`v`."""
        return max(self._noise_shares[measurement.name] / image_var, self._min_mu)

    def __call__(self, pairs: Iterable[tuple[Measurement, Tensor]], image_var: float, **settings: Any) -> Tensor:
        """Solves for the images of all pairs, in their order; see :func:`proximal_step`.

        Args:
            pairs: Measurements, and their particles' decoded latents with shape (n, ...).
            image_var: Variance of the decoded latents about the images.
        """

        def kind(pair: tuple[Measurement, Tensor]) -> tuple:
            measurement = pair[0]
            alike = (id(measurement.physics), self.mu(measurement, image_var), measurement.y.shape)
            return alike if self._together and is_batch_independent(measurement.physics) else (measurement.name,)

        solved = []
        for _, group in groupby(pairs, kind):
            measurements, parts = zip(*group, strict=True)
            first = measurements[0]
            ys = [each.y.expand(len(part), *each.y.shape[1:]) for each, part in zip(measurements, parts, strict=True)]
            y = torch.cat(ys) if len(parts) > 1 else first.y
            solved.append(proximal_step(first.physics, y, torch.cat(parts), self.mu(first, image_var), **settings))
        return torch.cat(solved)


def _descend(physics: Physics, y: Tensor, decoded: Tensor, weight: float, inner_steps: int, inner_lr: float) -> Tensor:
    """Adam steps from D(z)."""
    x = decoded.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=inner_lr, betas=(0.9, 0.99))
    with torch.enable_grad():
        for step in range(inner_steps):
            optimizer.param_groups[0]["lr"] = inner_lr * (1 - step / inner_steps)
            error = misfit(physics.noise_model, physics.A(x), y) + weight * square_misfit(x, decoded)
            (x.grad,) = torch.autograd.grad(error.sum(), x)
            optimizer.step()
    return x.detach()
