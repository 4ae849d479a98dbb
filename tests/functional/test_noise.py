"""Keyed noise depends on what it is for and on nothing else."""

import pytest
import torch
from torch import Tensor

from rlsd_lightning.functional.noise import STREAMS, ParticleNoise, keyed_normal, measurement_key

SHAPE = (4, 8, 8)


def draw(particles=range(5), shape=SHAPE, **changed) -> Tensor:
    return keyed_normal(shape, particles, **{"seed": 3, "measurement": 11, "stream": "step", "step": 7, **changed})


@pytest.mark.parametrize("particles", [[0], [4], [1, 3], [3, 1], [4, 3, 2, 1, 0], range(2, 5)])
def test_a_particle_gets_its_noise_in_any_subset_and_order(particles):
    assert torch.equal(draw(particles), draw()[list(particles)])


def test_noise_is_the_same_when_asked_again_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first = draw()
    torch.randn(3)
    second = draw()
    torch.set_rng_state(state)
    third = draw()
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 4},
        {"seed": 3 + 2**32},  # torch's CPU generator would use the low 32 bits only
        {"measurement": 12},
        {"measurement": 11 + 2**63},
        {"stream": "z_init"},
        {"stream": "x_init"},
        {"step": 8},
        {"step": 0},
    ],
)
def test_noise_differs_by_everything_it_is_keyed_with(changed: dict):
    # two independent draws of 1280 floats share a value here and there at most
    assert (draw(**changed) == draw()).float().mean() < 0.01


def test_no_two_particles_steps_or_streams_share_noise():
    draws = torch.cat([draw(range(4), stream=stream, step=step) for stream in STREAMS for step in range(4)]).flatten(1)
    correlation = torch.corrcoef(draws) - torch.eye(len(draws))
    # 256 elements: standard deviation 1/16, and 2016 pairs reach about 3.6 of them
    assert correlation.abs().max() < 6 / 16


def test_moments_are_those_of_a_standard_normal():
    values = draw(range(4), shape=(4, 64, 64)).double()
    n = values.numel()
    assert abs(values.mean()) < 4 / n**0.5
    assert abs(values.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs(values.pow(4).mean() - 3) < 4 * (96 / n) ** 0.5


def test_no_particles_give_an_empty_tensor_of_the_right_shape():
    assert draw([]).shape == (0, *SHAPE)


def test_noise_is_float32():
    assert draw().dtype == draw([]).dtype == torch.float32


def test_largest_seed_and_key_are_accepted():
    assert torch.isfinite(draw(seed=2**64 - 1, measurement=2**64 - 1)).all()


def test_measurement_key_is_the_same_in_every_process_and_version():
    # the first eight bytes, little-endian, of `printf face-01 | sha256sum`
    assert measurement_key("face-01") == int.from_bytes(bytes.fromhex("37d935eab4ab288d"), "little")


def test_measurement_key_tells_names_apart():
    assert len({measurement_key(f"face-{i}") for i in range(1000)}) == 1000


def test_independent_noise_of_particles_is_the_keyed_noise():
    noise = ParticleNoise([11, 12], 5, seed=3, antithetic=False)
    assert torch.equal(noise(SHAPE, slice(1, 4), "step", 7), draw([1, 2, 3]))
    both = torch.cat([draw([3, 4]), draw([0, 1], measurement=12)])
    assert torch.equal(noise(SHAPE, slice(3, 7), "step", 7), both)
    assert noise(SHAPE, slice(3, 3), "step", 7).shape == (0, *SHAPE)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_antithetic_noise_sums_to_zero_whoever_draws_which_part(count: int):
    noise = ParticleNoise([11, 12], count, seed=3, antithetic=True)
    every = noise(SHAPE, slice(0, 2 * count), "step", 7)
    assert every.unflatten(0, (2, count)).sum(dim=1).abs().max() < 1e-5
    assert not torch.allclose(every[:count], every[count:])
    for cut in range(2 * count + 1):
        parts = [noise(SHAPE, rows, "step", 7) for rows in (slice(0, cut), slice(cut, 2 * count))]
        assert torch.equal(torch.cat(parts), every)
    assert every.var().item() == pytest.approx(1, abs=4 * (2 / 256) ** 0.5)


def test_a_lone_particles_antithetic_noise_is_its_own():
    assert torch.equal(ParticleNoise([11], 1, seed=3, antithetic=True)(SHAPE, slice(0, 1), "step", 7), draw([0]))
