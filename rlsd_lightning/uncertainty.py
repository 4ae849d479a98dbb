r"""The error that all particles share: what the autoencoder can't reconstruct, estimated where the measurement sees it.

The truth is :math:`D(z) + e` with a reconstruction error :math:`e`. Particles lack the part of it that the measurement
does not determine, so their spread is too small. The determined part moves :math:`x_i` away from :math:`D(z_i)`, and
gives the error's variance.
"""

from typing import Any, NamedTuple

import torch
from deepinv.physics import GaussianNoise, LinearPhysics, ZeroNoise
from torch import Tensor
from torch.nn.functional import avg_pool2d

from rlsd_lightning.functional.losses import at_least_float32
from rlsd_lightning.functional.noise import keyed_normal
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.operators.likelihood import equivalent_forms, measured, noise_std
from rlsd_lightning.operators.noise import PoissonNoise
from rlsd_lightning.operators.proximal import has_own_step, proximal_step

__all__ = ["DecoderError", "decoder_error", "least_variance"]

DRAWS = 16
"""Simulated truths."""
SLOW_DRAWS = 4
"""Simulated truths where a proximal step has no closed form."""
SLOW_STEPS = 100
"""Inner steps of a proximal step without a closed form."""
KNOWN_NOISE = (GaussianNoise, PoissonNoise, ZeroNoise)
"""Noise that is simulated; Laplace noise is not, as its proximal step moves only a part of the values."""
PASSES = 6
"""Most simulations with errors; a linear operator takes two."""
CLOSE = 0.02
"""Relative difference between simulation and run that ends the simulations."""
DETAIL = 5
"""Pixels a side of the local mean whose residual counts as detail."""
FLAT_SHARE = 0.02
"""Error variance where an image has no detail, relative to its mean; errors are never zero."""


class DecoderError(NamedTuple):
    r"""Distance of decoded latents from images.

    Attributes:
        std: Root mean square :math:`\sqrt v` of the reconstruction error, in units of an image in [-1, 1].
        variance: Variance :math:`V` of the shared error, with shape :math:`(C, H, W)`, on top of the particles' own.
    """

    std: float
    variance: Tensor


@torch.no_grad()
def decoder_error(
    measurement: Measurement,
    images: Tensor,
    decoded: Tensor,
    image_var: float,
    weight: float,
    *,
    seed: int,
    key: int,
    at_once: int | None = None,
    least_var: float = 0.0,
    largest_var: float = 1.0,
) -> DecoderError | None:
    r"""Estimate the reconstruction error of one measurement's particles, and the part of it that stays in the images.

    Truths are simulated about the decoded latents, measured, and solved for by the same proximal step,

    .. math::
        u = D(z_i) + \sqrt{v \, s} \, e, \qquad y' = A(u) + n, \qquad x' = \mathrm{prox}(D(z_i), y')

    with standard normal :math:`e` (its sign for linear operators) and the energy :math:`s` of details around a value of
    the decoded image, over its mean. The variance :math:`v` solves
    :math:`\overline{(x' - D)^2} = \overline{(x - D)^2}`, and :math:`V = \overline{(u - x')^2}`.

    For a linear operator and Gaussian noise :math:`v` is unbiased if latents are posterior draws. Optimised latents follow
    :math:`e` and the noise, which makes it too small, down to ``least_var``. Badly sampled latents make it too large, up to
    ``largest_var``.

    Args:
        measurement: Measurement that the particles explain.
        images: Particles :math:`x`, proximal steps from the decoded latents, with shape :math:`(N, C, H, W)`.
        decoded: Decoded latents :math:`D(z)`, with the same shape.
        image_var: First guess of :math:`v`.
        weight: The proximal steps' weight :math:`\mu`.
        seed: The run's seed.
        key: The measurement's key, of :func:`~rlsd_lightning.functional.noise.keyed_normal`.
        at_once: Simulations that are solved side by side; all if left out.
        least_var: Lower bound of :math:`v`, see :func:`least_variance`.
        largest_var: Upper bound of :math:`v`. Latents that do not fit the measurement move :math:`x_i` too, which must not
            count as reconstruction error.

    Returns:
        The estimate, a mean over equivalent forms of an image; None if nothing is measured, the noise is not simulated,
        or the measurement is complex.
    """
    physics = measurement.physics
    if not isinstance(physics.noise_model, KNOWN_NOISE) or measurement.y.is_complex():
        return None
    images, decoded = at_least_float32(images), at_least_float32(decoded)
    simulate = _Simulation(measurement, decoded, weight, seed, key, at_once)
    found = _matching_variance(simulate, _mean((images - decoded).square()).item(), image_var, least_var, largest_var)
    if found is None:
        return None
    variance, remaining = found
    forms = equivalent_forms(physics, remaining[None])
    return DecoderError(variance**0.5, remaining if forms is None else forms.mean(dim=0)[0])


def least_variance(measurement: Measurement, num_latents: int, image_var: float) -> float:
    r"""Reconstruction error's variance that can't be told from noise, at most the prior's own ``image_var``.

    :math:`k` optimised latents follow up to :math:`k / m` of the noise of :math:`m` values. The residual lacks that part,
    which may be more than the reconstruction error.

    Args:
        measurement: The measurement.
        num_latents: Number of latents of a particle, :math:`k`.
        image_var: Variance of the prior's reconstruction error.
    """
    share = min(1.0, num_latents / measurement.y[0].numel())
    return min(image_var, share * noise_std(measurement.physics.noise_model, measurement.y) ** 2)


def _matching_variance(
    simulate: "_Simulation", moved: float, image_var: float, least_var: float, largest_var: float
) -> tuple[float, Tensor] | None:
    r"""The variance :math:`v` whose simulations move images as far from :math:`D(z)` as the run did, and :math:`V`.

    What errors move is proportional to their variance for a linear operator, so that the second guess is right.

    Args:
        simulate: The simulation.
        moved: Mean square :math:`\overline{(x - D)^2}` of the run.
        image_var: First guess of the variance.
        least_var: Least variance.
        largest_var: Largest variance.

    Returns:
        None if errors do not move images.
    """
    noise, following = simulate(0.0), min(image_var, largest_var)
    for _ in range(PASSES):
        variance = following
        errors = simulate(variance)
        if errors.moved <= noise.moved:
            return None
        ratio = (moved - noise.moved) / (errors.moved - noise.moved)
        following = min(max(variance * ratio, least_var), largest_var)
        if following <= 0:  # the noise alone moves images further than the run did
            return 0.0, noise.remaining
        if abs(ratio - 1) < CLOSE or following == variance:
            break
    return variance, errors.remaining


class _Simulated(NamedTuple):
    """What simulated truths :math:`u` and their solutions :math:`x'` show.

    Attributes:
        moved: Mean square of :math:`x' - D(z)`.
        remaining: Mean square of :math:`u - x'` over the truths, with shape :math:`(C, H, W)`.
    """

    moved: float
    remaining: Tensor


class _Simulation:
    """Simulated truths about decoded latents, measured and solved for; arguments as in :func:`decoder_error`."""

    def __init__(
        self, measurement: Measurement, decoded: Tensor, weight: float, seed: int, key: int, at_once: int | None
    ) -> None:
        self.physics, self.y, self.decoded, self.weight = measurement.physics, measurement.y, decoded, weight
        self.seed, self.key = seed, key
        self.noise, self.detail = noise_std(self.physics.noise_model, self.y), _detail(decoded)
        self.numbers = torch.arange(DRAWS if has_own_step(self.physics) else SLOW_DRAWS)
        self.at_once = at_once or len(self.numbers)

    def __call__(self, variance: float) -> _Simulated:
        """Simulate with reconstruction errors of a variance."""
        moved, remaining = torch.zeros_like(self.decoded[0]), torch.zeros_like(self.decoded[0])
        for numbers in self.numbers.split(self.at_once):
            particles = numbers.to(self.decoded.device) % len(self.decoded)
            starts = self.decoded[particles]
            errors = self._draw(self.decoded, numbers, "decoder_error")
            if isinstance(self.physics, LinearPhysics):
                errors = errors.sign()  # only their variance counts, and that of signs has no scatter
            truths = (starts + (variance * self.detail[particles]).sqrt() * errors).clamp(-1, 1)
            ys = measured(self.physics, truths) + self.noise * self._draw(self.y, numbers, "trial_noise")
            solved = proximal_step(self.physics, ys, starts, self.weight, inner_steps=SLOW_STEPS)
            moved += (solved - starts).square().sum(dim=0) / len(self.numbers)
            remaining += (truths - solved).square().sum(dim=0) / len(self.numbers)
        return _Simulated(_mean(moved).item(), remaining)

    def _draw(self, like: Tensor, numbers: Tensor, stream: str) -> Tensor:
        shape, key = tuple(like.shape[1:]), {"seed": self.seed, "measurement": self.key}
        return keyed_normal(shape, numbers.tolist(), stream=stream, **key).to(like)


def _detail(images: Tensor) -> Tensor:
    """Energy of each image's details, which a local mean takes away, over its mean."""

    def smooth(values: Tensor) -> Tensor:
        return avg_pool2d(values, DETAIL, stride=1, padding=DETAIL // 2, count_include_pad=False)

    energy = smooth((images - smooth(images)).square())
    mean = _mean(energy, dim=(1, 2, 3), keepdim=True).to(energy)
    return torch.where(mean > 0, (energy / mean + FLAT_SHARE) / (1 + FLAT_SHARE), 1.0)


def _mean(values: Tensor, **dims: Any) -> Tensor:
    """Mean that does not depend on the number of threads; on the CPU, as Apple's GPUs have no double precision."""
    return values.cpu().double().mean(**dims)
