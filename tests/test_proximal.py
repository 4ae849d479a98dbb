"""The proximal step's optimality, and the operators' laws."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor

from rlsd_lightning.errors import InputError
from rlsd_lightning.operators import blur, inpainting, load_kernel, super_resolution
from rlsd_lightning.proximal import proximal_step

SHAPE = (3, 32, 32)


@pytest.fixture
def kernel(tmp_path: Path) -> str:
    """A lopsided blur kernel, so that a flip or a shift shows."""
    file = tmp_path / "kernel.npy"
    np.save(file, np.array([[1.0, 2.0, 0.0], [0.0, 6.0, 3.0], [0.5, 0.0, 0.0]]))
    return str(file)


MAKE: dict[str, Callable[[str], LinearPhysics]] = {
    "inpainting": lambda kernel: inpainting(SHAPE, mask="random"),
    "super_resolution_bicubic": lambda kernel: super_resolution(SHAPE),
    "super_resolution_gaussian": lambda kernel: super_resolution(SHAPE, factor=2, filter="gaussian"),
    "blur": lambda kernel: blur(SHAPE, kernel),
}
OPERATORS = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())


def images(count: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed)) - 1


def objective(physics: Physics, y: Tensor, x: Tensor, decoded: Tensor, mu: float) -> Tensor:
    """mean(y - Ax)^2 + mu mean(x - d)^2 of every particle."""
    return (y - physics.A(x)).square().flatten(1).mean(1) + mu * (x - decoded).square().flatten(1).mean(1)


def gradient(physics: Physics, y: Tensor, x: Tensor, decoded: Tensor, mu: float) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(objective(physics, y, leaf, decoded, mu).sum(), leaf)[0]


@pytest.mark.parametrize("mu", [1e-3, 0.1, 1.0])
@OPERATORS
def test_gradient_vanishes_at_the_proximal_step(make: Callable, mu: float, kernel: str):
    physics, decoded = make(kernel), images(3)
    y = physics.A(images(1, seed=1))
    before = gradient(physics, y, decoded, decoded, mu)
    after = gradient(physics, y, proximal_step(physics, y, decoded, mu), decoded, mu)
    # float32, and deepinv multiplies by up to 16 / mu
    assert after.norm() < 1e-3 * before.norm()


@OPERATORS
def test_a_particles_proximal_step_does_not_depend_on_the_others(make: Callable, kernel: str):
    physics, decoded = make(kernel), images(3)
    y = physics.A(images(1, seed=1))
    together, alone = proximal_step(physics, y, decoded, 0.1), proximal_step(physics, y, decoded[1:2], 0.1)
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-4)


def test_inpainting_keeps_what_is_hidden_and_averages_what_is_seen():
    physics, decoded, mu = inpainting(SHAPE, mask="half"), images(2), 0.25
    y = physics.A(images(1, seed=1))
    x = proximal_step(physics, y, decoded, mu)
    torch.testing.assert_close(x[:, :, 16:], decoded[:, :, 16:])
    torch.testing.assert_close(x[:, :, :16], (y[:, :, :16] + mu * decoded[:, :, :16]) / (1 + mu))


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


@OPERATORS
def test_adjoint_is_the_transpose(make: Callable, kernel: str):
    torch.manual_seed(0)
    assert make(kernel).adjointness_test(u=images(1), num_samples=4) < 1e-5


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("inpainting", SHAPE),
        ("super_resolution_bicubic", (3, 8, 8)),
        ("super_resolution_gaussian", (3, 16, 16)),
        ("blur", SHAPE),
    ],
)
def test_measurement_has_the_operators_shape(name: str, shape: tuple, kernel: str):
    physics = MAKE[name](kernel)
    y = physics(images(2))
    assert y.shape == (2, *shape)
    assert physics.A_adjoint(y).shape == (2, *SHAPE)


@pytest.mark.parametrize("name", ["super_resolution_bicubic", "super_resolution_gaussian", "blur"])
def test_an_even_grey_stays_as_it_is(name: str, kernel: str):
    # filters sum to one and borders wrap around
    y = MAKE[name](kernel).A(torch.full((1, *SHAPE), 0.3))
    torch.testing.assert_close(y, torch.full_like(y, 0.3))


def test_noise_has_the_given_level():
    physics, x = inpainting(SHAPE, mask="half", sigma=0.2), images(20)
    torch.manual_seed(0)
    noise = (physics(x) - physics.A(x))[:, :, :16]  # a missing pixel has no noise
    assert noise.std().item() == pytest.approx(0.2, rel=5 / (2 * noise.numel()) ** 0.5)  # five standard errors


def test_kernel_is_normalised(kernel: str):
    weights = load_kernel(kernel)
    assert weights.shape == (1, 1, 3, 3)
    assert weights.sum().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((3, 3)), "sum 0"),
        (np.ones(3), r"shape \(3,\)"),
        (np.full((3, 3), np.nan), "finite"),
        (np.ones((33, 3)), "3x33"),
    ],
)
def test_kernel_that_can_not_blur_is_refused(values: np.ndarray, message: str, tmp_path: Path):
    np.save(tmp_path / "bad.npy", values)
    with pytest.raises(InputError, match=message):
        blur(SHAPE, str(tmp_path / "bad.npy"))


def test_missing_kernel_is_refused_with_its_path():
    with pytest.raises(InputError, match=r"nowhere\.npy"):
        load_kernel("nowhere.npy")


@pytest.mark.parametrize(("size", "factor"), [(32, 5), (32, 0), (32, 16), (30, None)])
def test_factor_that_does_not_fit_the_image_is_refused(size: int, factor: int | None):
    with pytest.raises(InputError, match=f"{size}x{size}"):
        super_resolution((3, size, size), factor=factor)


def test_default_factor_grows_with_the_image():
    assert super_resolution(SHAPE).factor == 4
    assert super_resolution((3, 256, 256)).factor == 8


@pytest.mark.parametrize(
    "make", [lambda: inpainting(SHAPE, "half", sigma=-1), lambda: super_resolution(SHAPE, sigma=-1)]
)
def test_negative_noise_is_refused(make: Callable):
    with pytest.raises(InputError, match="-1"):
        make()
