"""The repulsion as an object: when it acts, how strong it is, and rows that are cut anywhere."""

from types import SimpleNamespace

import pytest
import torch
from support.problems import make
from support.processes import as_process
from torch import Tensor

from rlsd_lightning import InputError, LatentFeatures, PixelFeatures, StableDiffusionPrior
from rlsd_lightning.functional import kernels
from rlsd_lightning.functional.kernels import log_density, median_bandwidth
from rlsd_lightning.repulsion import Repulsion, density_gradient, repulsive_steps

F64 = torch.float64


def numbers(num_particles: int = 2, num_steps: int = 20, first_step: int = 0) -> SimpleNamespace:
    """As much of a method as the strength asks for."""
    return SimpleNamespace(num_particles=num_particles, num_steps=num_steps, first_step=first_step)


def features(measurements: int, count: int, size: int = 5) -> Tensor:
    return torch.randn(measurements * count, size, dtype=F64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("until", "num_steps", "count"),
    [
        (0.5, 20, 10),
        (0.999, 10, 9),
        (0.999, 999, 998),
        (0.6, 10, 6),
        (0.3, 10, 3),
        (1.0, 20, 19),
        (1.0, 1, 0),
        (0, 9, 0),
    ],
)
def test_repulsion_acts_in_its_share_of_the_steps_and_never_in_the_last(until: float, num_steps: int, count: int):
    assert repulsive_steps(until, num_steps) == count
    repulsion = Repulsion(numbers(num_steps=num_steps), 0.5, repulsion_until=until)
    assert [repulsion.acts(step) for step in range(num_steps)] == [k < count for k in range(num_steps)]
    warm = Repulsion(numbers(num_steps=num_steps, first_step=num_steps // 2), 0.5, repulsion_until=until)
    assert [warm.acts(step - num_steps // 2) for step in range(num_steps)] == [k < count for k in range(num_steps)]


def test_a_lone_particle_and_a_strength_of_zero_have_none():
    assert not Repulsion(numbers(num_particles=1), 0.5).acts(0)
    assert not Repulsion(numbers(), 0.0).acts(0)
    assert Repulsion(numbers(), 0.5).acts(0)


def test_relative_strength_makes_the_norm_a_share_of_what_is_beside_it():
    norms, beside = torch.tensor([2.0, 0.5, 0.0]), torch.tensor([3.0, 4.0, 5.0])
    gamma = Repulsion(numbers(), 0.3).strength(norms, beside, torch.tensor(0.7), 0.1)
    assert (gamma * norms / beside).tolist() == pytest.approx([0.03, 0.03, 0.0])
    assert gamma[2] == 0  # two particles in one place have no direction to go


def test_absolute_strength_is_gamma_times_the_noise_level():
    gamma = Repulsion(numbers(), 0.3, "absolute").strength(*torch.ones(2, 4), torch.tensor(0.7), 0.1)
    assert gamma.tolist() == pytest.approx([0.21] * 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": -0.1}, "^gamma must be at least 0, got -0.1"),
        ({"gamma": 1.0, "repulsion_until": 2.0}, "^repulsion_until must be from 0 to 1, got 2"),
        ({"gamma": 1.0, "gamma_mode": "wild"}, "^gamma_mode must be one of relative, absolute, got 'wild'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str):
    with pytest.raises(InputError, match=message):
        Repulsion(numbers(), **settings)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_measurement_has_a_kernel_of_its_own(count: int):
    every = features(3, count)
    values, gradients = density_gradient(every, every, slice(0, len(every)), count)
    for part, value, gradient in zip(every.split(count), values.split(count), gradients.split(count), strict=True):
        leaf = part.clone().requires_grad_()
        expected = log_density(leaf, part, median_bandwidth(part))
        torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), leaf)[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("at_once", [1, 10**6])
def test_rows_that_cut_measurements_anywhere_have_what_all_have_together(at_once: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels, "MOST_DIFFERENCES", at_once)
    every, count = features(3, 4), 4
    values, gradients = density_gradient(every, every, slice(0, 12), count)
    for start in range(12):
        for stop in range(start + 1, 13):
            rows = slice(start, stop)
            value, gradient = density_gradient(every[rows], every, rows, count)
            torch.testing.assert_close(value, values[rows], rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(gradient, gradients[rows], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", [LatentFeatures, PixelFeatures])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_gradient_of_a_processs_particles_is_that_of_one_process(
    size: int, kind: type, prior: StableDiffusionPrior, monkeypatch: pytest.MonkeyPatch
):
    module = make(prior, kind(), num_particles=3)
    z = module.z.detach().clone()
    with torch.no_grad():
        decoded = prior.decode(z)
        every = kind()(z, decoded)
    whole = module.repulsion.gradient(z, decoded)
    assert whole.gradient.shape == (z if module.features.of_latents else decoded).shape
    monkeypatch.setattr(module, "gather", lambda mine: every)  # as the other processes would send theirs
    for position in range(size):  # of five processes, some have no particle
        rows = as_process(module, position, size).rows
        found = module.repulsion.gradient(z[rows], decoded[rows])
        assert found.value.shape == (rows.stop - rows.start,)
        torch.testing.assert_close(found.value, whole.value[rows], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.gradient, whole.gradient[rows], rtol=1e-9, atol=1e-12)
