"""Noise that depends on what it is for and on nothing else.

A counter-based generator (Philox) is keyed by (seed, measurement) and its counter set to (stream, step, particle):
there is no generator state to save, and a particle gets the same noise on any number of devices, in any batch and
after any restart.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["STREAMS", "keyed_normal", "keyed_uniform", "measurement_key", "particle_noise"]

STREAMS = {
    "z_init": 0,
    "x_init": 1,
    "step": 2,
    "resample": 3,
    "last_z": 4,
    "last_y": 5,
    "langevin": 6,
    "decoder_error": 7,
    "trial_noise": 8,
}
"""What a draw is for: the initial latents, the initial auxiliaries, a step's noise, a choice of ancestors, the last step's
noise on latents and on measurements, Langevin steps within a step, simulated errors of the decoder, noise of
simulated measurements."""


def measurement_key(name: str) -> int:
    """A 64-bit key of a measurement's name, so that its noise does not depend on the order of measurements."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def keyed_normal(
    shape: tuple[int, ...], particles: Iterable[int], *, seed: int, measurement: int, stream: str, step: int = 0
) -> Tensor:
    r"""Standard normal noise for some particles.

    Args:
        shape: Shape of one particle's noise.
        particles: Their indices in the whole set.
        seed: The run's seed, from 0 to :math:`2^{64} - 1`.
        measurement: The measurement's key, from :func:`measurement_key`.
        stream: One of :data:`STREAMS`.
        step: The step :math:`k` it is for.

    Returns:
        Float32 on the CPU, with shape :math:`(n, *\mathrm{shape})`.

    References:
        | Parallel Random Numbers: As Easy as 1, 2, 3 (Salmon et al., 2011)
        | https://doi.org/10.1145/2063384.2063405
    """
    key = np.array([seed, measurement], dtype=np.uint64)
    draws = []
    for particle in particles:
        # the first word counts the blocks of one draw and starts at zero
        counter = np.array([0, STREAMS[stream], step, particle], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
        draws.append(generator.standard_normal(shape, dtype=np.float32))
    return torch.from_numpy(np.stack(draws)) if draws else torch.empty(0, *shape)


def particle_noise(
    shape: tuple[int, ...], particles: Sequence[int], num_particles: int, *, antithetic: bool, **key: Any
) -> Tensor:
    r"""Standard normal noise for some of a measurement's particles, independent or antithetic.

    Antithetic noise of all :math:`N` particles sums to zero: each has the distribution of independent noise, and any two
    have the correlation :math:`-1 / (N - 1)`. Each process draws the whole antithetic set, so no communication is needed.

    Args:
        shape: Shape of one particle's noise.
        particles: Indices of the particles, from 0 to :math:`N - 1`.
        num_particles: The number :math:`N` of the measurement's particles.
        antithetic: Whether all particles' noise sums to zero.
        key: Further arguments of :func:`keyed_normal`.

    Returns:
        Float32 on the CPU, with shape :math:`(n, *\mathrm{shape})`.

    References:
        | Antithetic Noise in Diffusion Models (Jia et al., 2025)
        | https://arxiv.org/abs/2506.06185
    """
    if not antithetic or num_particles == 1:
        return keyed_normal(shape, particles, **key)
    every = keyed_normal(shape, range(num_particles), **key)
    return math.sqrt(num_particles / (num_particles - 1)) * (every - every.mean(dim=0))[list(particles)]


def keyed_uniform(*, seed: int, measurement: int, stream: str, step: int = 0) -> float:
    """One number from [0, 1) that all particles share; arguments as in :func:`keyed_normal`."""
    key = np.array([seed, measurement], dtype=np.uint64)
    counter = np.array([0, STREAMS[stream], step, 0], dtype=np.uint64)
    return float(np.random.Generator(np.random.Philox(key=key, counter=counter)).random())
