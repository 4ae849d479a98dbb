"""Counter-based noise, independent of devices, batches and restarts.

A Philox generator has the key (seed, measurement) and the counter (stream, step, particle), so there is no state to save.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from rlsd_lightning.functional.kernels import sets_in

__all__ = ["STREAMS", "ParticleNoise", "keyed_normal", "keyed_uniform", "measurement_key"]

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
    "checks": 10,
}
"""Purposes of draws: initial latents and auxiliaries, a step's noise, resampling, the last step's noise on latents and on
measurements, Langevin steps, simulated decoder errors, noise of simulated measurements, draws of the checks."""


def measurement_key(name: str) -> int:
    """A 64-bit key of a measurement's name; its noise is then independent of the order of measurements."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:8], "little")


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
        step: The step :math:`k`.

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


class ParticleNoise:
    r"""Standard normal noise of the particles of several measurements, independent or antithetic.

    Antithetic noise of a measurement's :math:`N` particles sums to zero: each has the distribution of independent noise, and
    any two have the correlation :math:`-1 / (N - 1)`. Each process draws the whole antithetic set, so no communication is
    needed.

    Args:
        keys: The measurements' keys.
        num_particles: The number :math:`N` of particles of each measurement.
        seed: The run's seed.
        antithetic: Whether a measurement's noise sums to zero.

    References:
        | Antithetic Noise in Diffusion Models (Jia et al., 2025)
        | https://arxiv.org/abs/2506.06185
    """

    def __init__(self, keys: Sequence[int], num_particles: int, seed: int, antithetic: bool) -> None:
        self.keys, self.num_particles, self.seed = keys, num_particles, seed
        self.antithetic = antithetic and num_particles > 1

    def __call__(self, shape: tuple[int, ...], rows: slice | None, stream: str, step: int = 0) -> Tensor:
        """The noise of some rows of all measurements' particles, or of all rows, with shape (n, ...), float32 on the CPU."""
        draws, count = [torch.empty(0, *shape)], self.num_particles
        for index, start, stop in sets_in(slice(0, len(self.keys) * count) if rows is None else rows, count):
            key, particles = self.keys[index], range(start - index * count, stop - index * count)
            drawn = range(count) if self.antithetic else particles
            noise = keyed_normal(shape, drawn, seed=self.seed, measurement=key, stream=stream, step=step)
            if self.antithetic:
                noise = math.sqrt(count / (count - 1)) * (noise - noise.mean(dim=0))[list(particles)]
            draws.append(noise)
        return torch.cat(draws)


def keyed_uniform(*, seed: int, measurement: int, stream: str, step: int = 0) -> float:
    """One uniform number in [0, 1), the same for all particles; arguments as in :func:`keyed_normal`."""
    key = np.array([seed, measurement], dtype=np.uint64)
    counter = np.array([0, STREAMS[stream], step, 0], dtype=np.uint64)
    return float(np.random.Generator(np.random.Philox(key=key, counter=counter)).random())
