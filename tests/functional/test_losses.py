"""Means over one particle, sums over particles."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlsd_lightning.functional.losses import (
    absolute_misfit,
    coupling,
    distillation,
    gradients_of_mean,
    half_mean_square,
    photon_misfit,
    square_misfit,
)


def values(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LOSSES = {
    "half_mean_square": lambda leaf, fixed: half_mean_square(leaf - fixed),
    "square_misfit": lambda leaf, fixed: square_misfit(leaf, fixed[:1]).sum(),
    "absolute_misfit": lambda leaf, fixed: absolute_misfit(leaf, fixed[:1], 0.3).sum(),
    "photon_misfit": lambda leaf, fixed: photon_misfit(leaf, fixed[:1]).sum(),
    "coupling_in_x": lambda leaf, fixed: coupling(leaf, fixed),
    "coupling_in_decoded": lambda leaf, fixed: coupling(fixed, leaf),
    "distillation": lambda leaf, fixed: distillation(fixed, leaf),
}


def gradient(loss: Callable, leaf: Tensor, fixed: Tensor) -> Tensor:
    leaf = leaf.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf, fixed), leaf)[0]


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_a_particles_gradient_does_not_depend_on_how_many_there_are(loss: Callable):
    leaf, fixed = values(4), values(4, seed=1)
    alone = gradient(loss, leaf[:1], fixed[:1])
    torch.testing.assert_close(gradient(loss, leaf, fixed)[:1], alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_a_loss_of_equal_particles_is_their_number_times_that_of_one(loss: Callable):
    leaf, fixed = values(1), values(1, seed=1)
    many = loss(leaf.expand(4, -1, -1, -1), fixed.expand(4, -1, -1, -1))
    torch.testing.assert_close(many, 4 * loss(leaf, fixed), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["half_mean_square", "coupling_in_x"])
def test_gradient_of_a_squared_error_is_the_error_by_the_elements(name: str):
    leaf, fixed = values(1), values(1, seed=1)
    torch.testing.assert_close(gradient(LOSSES[name], leaf, fixed), (leaf - fixed) / 60, rtol=1e-12, atol=1e-15)


def test_half_mean_square_of_two_known_particles():
    error = torch.tensor([[1.0, 3.0], [2.0, 0.0]])
    assert half_mean_square(error).item() == 0.5 * (5 + 2)


def test_gradient_of_distillation_is_the_residual_by_the_elements():
    residual, z = values(3), values(3, seed=1)
    torch.testing.assert_close(gradient(distillation_of(residual), z, z), residual / 60, rtol=1e-12, atol=0)


def distillation_of(residual: Tensor) -> Callable:
    return lambda leaf, _: distillation(residual, leaf)


def test_no_gradient_flows_through_the_residual():
    residual, z = values(2).requires_grad_(), values(2, seed=1).requires_grad_()
    distillation(residual * 2, z).backward()
    assert residual.grad is None
    assert z.grad is not None


def test_gradients_of_a_mean_survive_half_precision() -> None:
    count = 2**20
    error = torch.linspace(-1, 1, count, dtype=torch.float64)

    def mean(value: torch.Tensor) -> torch.Tensor:
        return (
            value.half().float() * error
        ).mean()  # what comes back passes half precision, as in a network held in it

    value = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    (plain,) = torch.autograd.grad(mean(value), value)
    assert (plain / (error / count) - 1).abs().mean() > 0.01
    (found,) = gradients_of_mean(mean(value), [value], count)
    torch.testing.assert_close(found, error / count, rtol=1e-3, atol=1e-4 / count)


def test_misfits_are_the_negative_log_likelihoods_of_torch():
    """Up to a constant, in units of twice the noise's variance over the number of values."""
    generator = torch.Generator().manual_seed(0)
    one, other = (1.6 * torch.rand(1, 50, generator=generator, dtype=torch.float64) - 0.8 for _ in range(2))
    std, gain = 0.3, 0.02
    y = 2 * gain * torch.poisson((one + 1) / 2 / gain, generator=generator) - 1
    counts, scale = ((y + 1) / 2 / gain).round(), std / 2**0.5
    cases = [
        (square_misfit, lambda x: torch.distributions.Normal(x, std).log_prob(y), std**2),
        (lambda x, y: absolute_misfit(x, y, std), lambda x: torch.distributions.Laplace(x, scale).log_prob(y), std**2),
        (
            photon_misfit,
            lambda x: torch.distributions.Poisson((x + 1) / 2 / gain).log_prob(counts),
            4 * gain * ((y + 1) / 2).mean(),
        ),
    ]
    for misfit, log_prob, variance in cases:
        difference = misfit(one, y) - misfit(other, y)
        expected = -2 * variance * (log_prob(one) - log_prob(other)).mean()
        torch.testing.assert_close(difference, expected[None], rtol=1e-10, atol=1e-12)


def test_photon_misfit_is_zero_at_the_counts_and_leads_back_from_negative_light():
    y = torch.tensor([[-1.0, 0.5, 0.0]], dtype=torch.float64)
    assert photon_misfit(y.clamp_min(-1 + 2e-4), y).item() < 1e-3
    dark = torch.full_like(y, -1.5).requires_grad_()
    (slope,) = torch.autograd.grad(photon_misfit(dark, y).sum(), dark)
    assert (slope < 0).all()


def test_a_measurement_without_photons_holds_back_light():
    dark = torch.full((1, 1, 4), -1.0)
    light = torch.tensor([-1.0, 0.0, 1.0])[:, None, None].expand(3, 1, 4)
    errors = photon_misfit(light, dark)
    assert errors[0] < errors[1] < errors[2]
