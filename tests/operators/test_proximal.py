"""The proximal step is optimal, for every operator and kind of noise."""

from collections.abc import Callable

import pytest
import torch
from deepinv.physics import Decolorize, Downsampling, Physics
from support.operator_cases import ITERATED, LINEAR, SHAPE, images
from torch import Tensor

from rlsd_lightning.functional.losses import photon_misfit
from rlsd_lightning.operators import denoising, hdr, inpainting, probe_operator, quantization
from rlsd_lightning.operators.proximal import is_batch_independent, proximal_step

OPERATORS = pytest.mark.parametrize("make", LINEAR.values(), ids=LINEAR.keys())


def objective(physics: Physics, y: Tensor, x: Tensor, decoded: Tensor, mu: float) -> Tensor:
    """mean(y - Ax)^2 + mu mean(x - d)^2 of every particle."""
    return (y - physics.A(x)).square().flatten(1).mean(1) + mu * (x - decoded).square().flatten(1).mean(1)


def gradient(physics: Physics, y: Tensor, x: Tensor, decoded: Tensor, mu: float) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(objective(physics, y, leaf, decoded, mu).sum(), leaf)[0]


@pytest.mark.parametrize("mu", [1e-3, 0.1, 1.0])
@OPERATORS
def test_gradient_vanishes_at_the_proximal_step(make: Callable, mu: float):
    physics, decoded = make(SHAPE), images(3)
    y = physics.A(images(1, seed=1))
    before = gradient(physics, y, decoded, decoded, mu)
    after = gradient(physics, y, proximal_step(physics, y, decoded, mu), decoded, mu)
    # float32, and deepinv multiplies by up to 16 / mu
    assert after.norm() < (0.1 if make in ITERATED else 1e-3) * before.norm()


@OPERATORS
def test_a_particles_proximal_step_does_not_depend_on_the_others(make: Callable):
    physics, decoded = make(SHAPE), images(3)
    y = physics.A(images(1, seed=1))
    together, alone = proximal_step(physics, y, decoded, 0.1), proximal_step(physics, y, decoded[1:2], 0.1)
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-4)


def test_inpainting_keeps_what_is_hidden_and_averages_what_is_seen():
    physics, decoded, mu = inpainting(SHAPE, mask="half"), images(2), 0.25
    y = physics.A(images(1, seed=1))
    x = proximal_step(physics, y, decoded, mu)
    torch.testing.assert_close(x[:, :, 16:], decoded[:, :, 16:])
    torch.testing.assert_close(x[:, :, :16], (y[:, :, :16] + mu * decoded[:, :, :16]) / (1 + mu))


def test_decimation_without_a_filter_averages_what_is_seen():
    physics, decoded, mu = Downsampling((3, 32, 32), filter=None, factor=2, padding="circular"), images(2), 0.25
    y = physics.A(images(1, seed=1))
    x = proximal_step(physics, y, decoded, mu)
    expected = decoded.clone()
    weight = mu / 4  # of a pixel beside a measured value: means are over four times as many pixels
    expected[..., ::2, ::2] = (y + weight * decoded[..., ::2, ::2]) / (1 + weight)
    torch.testing.assert_close(x, expected, atol=1e-4, rtol=1e-4)
    probe_operator(physics, (3, 32, 32))
    assert not is_batch_independent(physics)


class ClippedDouble(Physics):
    """A nonlinear operator: too bright is white."""

    def A(self, x: Tensor, **kwargs) -> Tensor:  # noqa: N802
        return (2 * x).clip(-1, 1)


def test_nonlinear_operators_objective_goes_down_for_every_particle():
    physics, decoded, mu = ClippedDouble(), 0.4 * images(3), 1e-2
    y = physics.A(0.4 * images(1, seed=1))
    before = objective(physics, y, decoded, decoded, mu)
    after = objective(physics, y, proximal_step(physics, y, decoded, mu), decoded, mu)
    # nearly every pixel can be explained within 20 steps of 0.05
    assert (after < 0.1 * before).all()


def test_nonlinear_particles_do_not_depend_on_each_other():
    physics, decoded = ClippedDouble(), 0.4 * images(3)
    y = physics.A(0.4 * images(1, seed=1))
    together, alone = proximal_step(physics, y, decoded, 0.1), proximal_step(physics, y, decoded[1:2], 0.1)
    torch.testing.assert_close(together[1:2], alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("physics", [ClippedDouble(), inpainting(SHAPE, mask="half")], ids=["nonlinear", "linear"])
def test_proximal_step_leaves_its_input_alone_and_carries_no_gradient(physics: Physics):
    decoded = images(2).requires_grad_()
    before = decoded.detach().clone()
    x = proximal_step(physics, physics.A(images(1, seed=1)), decoded, 0.1)
    assert not x.requires_grad
    assert decoded.grad is None
    assert torch.equal(decoded, before)
    assert not torch.equal(x, before)


@pytest.mark.parametrize("noise", ["poisson", "laplace"])
def test_other_noise_is_explained_by_its_own_likelihood(noise: str):
    """A lone pixel's minimum is where a search finds it."""
    physics, mu = denoising(SHAPE, sigma=0.4, noise=noise), 0.5
    y, decoded = torch.full((1, 1, 1, 1), 0.4), torch.zeros(1, 1, 1, 1)
    grid = torch.linspace(-0.9, 0.9, 20_001).view(-1, 1, 1, 1)
    laplace = 2 * 2**0.5 * 0.4 * (grid - y).abs().flatten()
    data = photon_misfit(grid, y) if noise == "poisson" else laplace
    best = grid[(data + mu * grid.flatten() ** 2).argmin()].item()
    found = proximal_step(physics, y, decoded, mu, inner_steps=300).item()
    assert found == pytest.approx(best, abs=5e-3)


def test_photons_of_one_measurement_do_not_weigh_anothers():
    physics = denoising(SHAPE, sigma=0.01, noise="poisson")
    decoded, y = images(2), torch.cat([torch.full((1, *SHAPE), -0.9), torch.full((1, *SHAPE), 0.9)])
    alone = torch.cat([proximal_step(physics, y[i : i + 1], decoded[i : i + 1], 1e-3) for i in range(2)])
    torch.testing.assert_close(proximal_step(physics, y, decoded, 1e-3), alone)


@OPERATORS
def test_half_precision_outside_does_not_reach_the_proximal_step(make: Callable):
    physics, decoded = make(SHAPE), images(2)
    y = physics.A(images(1, seed=1))
    expected = proximal_step(physics, y, decoded, 1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(proximal_step(physics, y, decoded, 1e-3), expected, rtol=0, atol=0)


def test_what_an_operator_of_deepinv_does_not_see_is_kept():
    physics, decoded = Decolorize(srf="rec601"), images(2)
    y = physics.A(decoded)[:1]
    torch.testing.assert_close(proximal_step(physics, y, decoded[:1], 1e-3), decoded[:1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mu", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("sigma", [0.0, 0.1])
@pytest.mark.parametrize("make", [hdr, lambda *a, **k: quantization(*a, levels=3, **k)], ids=["hdr", "quantization"])
def test_no_value_is_better_than_the_closed_form_of_a_step_function(make: Callable, sigma: float, mu: float):
    shape = (1, 8, 8)
    physics, generator = make(shape, sigma=sigma), torch.Generator().manual_seed(0)
    y = physics(2.4 * torch.rand(1, *shape, generator=generator) - 1.2)
    decoded = 2.4 * torch.rand(2, *shape, generator=generator) - 1.2
    x = proximal_step(physics, y, decoded, mu)

    def costs(values: Tensor) -> Tensor:
        return (physics.A(values) - y).square() + mu * (values - decoded).square()

    tried = torch.linspace(-1.5, 1.5, 3001)  # a step of 0.001
    best = torch.stack([costs(torch.full_like(decoded, value)) for value in tried.tolist()]).amin(0)
    assert (costs(x) < best + 2e-3 * mu + 1e-6).all()


def test_a_saturated_value_that_was_measured_below_is_brought_down():
    physics, y = hdr((1, 1, 2)), torch.tensor([[[[0.4, 1.0]]]])
    x = proximal_step(physics, y, torch.tensor([[[[0.9, 0.9]]]]), 1e-3)
    torch.testing.assert_close(x, torch.tensor([[[[0.2, 0.9]]]]), atol=1e-3, rtol=0)
