r"""The error that all particles share: what the autoencoder can't reconstruct, estimated where the measurement sees it.

Particles are images :math:`x_i` near decoded latents, but the truth is :math:`D(z) + e` with a reconstruction error
:math:`e`. What the measurement does not determine of it no particle has, so that their spread is too small, however well
latents are sampled. What it does determine moves :math:`x_i` away from :math:`D(z_i)`, and so tells the error's variance.
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

__all__ = ["DecoderError", "decoder_error"]

DRAWS = 16
"""Simulated truths."""
SLOW_DRAWS = 4
"""The same where a proximal step has no closed form."""
SLOW_STEPS = 100
"""Inner steps of such a one: for phase retrieval within a tenth of what 200 give."""
KNOWN_NOISE = (GaussianNoise, PoissonNoise, ZeroNoise)
"""Noise that is simulated; Laplace's is not, as its proximal step moves a part of the values only."""
PASSES = 6
"""Simulations with errors at most; a linear operator takes two."""
CLOSE = 0.02
"""Relative difference of what errors do in a simulation and in the run that ends them."""
LARGEST = 1.0
"""Errors of this variance are as large as images."""
DETAIL = 5
"""Pixels a side of what counts as an image's detail."""
FLAT_SHARE = 0.02
"""Variance of errors where an image has no detail, relative to its mean. Found with :data:`DETAIL` on errors of the embedded
autoencoder on 48 tuning faces: their mean log likelihood rises by 0.49 a value against errors that are equal everywhere."""


class DecoderError(NamedTuple):
    r"""How far decoded latents are from images.

    Attributes:
        std: The root mean square :math:`\sqrt v` of the reconstruction error, in units of an image in [-1, 1].
        variance: The shared error's variance :math:`V` of every value, with shape :math:`(C, H, W)`; comes on top of the
            particles' own.
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
) -> DecoderError | None:
    r"""Estimates the reconstruction error from the particles of one measurement, and what of it stays in the images.

    Truths are simulated about the decoded latents, measured, and solved for by the same proximal step,

    .. math::
        u = D(z_i) + \sqrt{v \, s} \, e, \qquad y' = A(u) + n, \qquad x' = \mathrm{prox}(D(z_i), y')

    with standard normal :math:`e` (for linear operators its sign), where :math:`s` is the energy of details around a value of
    the decoded image, over its mean. The variance :math:`v` is the one for which :math:`\overline{(x' - D)^2}` is what the
    particles have, :math:`\overline{(x - D)^2}`, and :math:`V = \overline{(u - x')^2}`.

    For a linear operator and Gaussian noise :math:`v` is unbiased, but for the draws, if errors are as simulated and latents
    are draws from their posterior. Latents that are optimised follow :math:`e` and the noise, which makes it too small;
    latents that are badly sampled make it too large. The larger the noise beside the errors that are seen, the more :math:`v`
    scatters; where noise alone explains the distance it is zero.

    Args:
        measurement: What the particles explain.
        images: The particles :math:`x`, proximal steps from the decoded latents, with shape :math:`(N, C, H, W)`.
        decoded: The decoded latents :math:`D(z)`, with the same shape.
        image_var: The first :math:`v`.
        weight: The proximal steps' weight :math:`\mu`.
        seed: The run's seed.
        key: The measurement's key, of :func:`~rlsd_lightning.functional.noise.keyed_normal`.
        at_once: Simulations that are solved side by side; all if left out.

    Returns:
        The estimate, for operators that can't tell forms of an image apart a mean over forms; None where it can't be made:
        nothing is measured, the noise is of a kind that is not simulated, or the measurement is complex.
    """
    physics = measurement.physics
    if not isinstance(physics.noise_model, KNOWN_NOISE) or measurement.y.is_complex():
        return None
    images, decoded = at_least_float32(images), at_least_float32(decoded)
    simulate = _Simulation(measurement, decoded, weight, seed, key, at_once)
    by_noise, left_by_noise = simulate(0.0)
    by_errors, following = _mean((images - decoded).square()).item() - by_noise, image_var
    for _ in range(PASSES):
        variance = following
        answered, left = simulate(variance)
        if answered <= by_noise:
            return None
        ratio = by_errors / (answered - by_noise)
        if ratio <= 0:
            variance, left = 0.0, left_by_noise
            break
        if abs(ratio - 1) < CLOSE:
            break
        following = min(variance * ratio, LARGEST)
    forms = equivalent_forms(physics, left[None])
    if forms is not None:
        left = forms.mean(dim=0)[0]
    return DecoderError(variance**0.5, left)


class _Simulation:
    """Simulated truths about the decoded latents, measured and solved for; arguments as in :func:`decoder_error`."""

    def __init__(
        self, measurement: Measurement, decoded: Tensor, weight: float, seed: int, key: int, at_once: int | None
    ) -> None:
        self.physics, self.y, self.decoded, self.weight = measurement.physics, measurement.y, decoded, weight
        self.seed, self.key = seed, key
        self.noise, self.detail = noise_std(self.physics.noise_model, self.y), _detail(decoded)
        self.numbers = torch.arange(DRAWS if has_own_step(self.physics) else SLOW_DRAWS)
        self.at_once = at_once or len(self.numbers)

    def __call__(self, variance: float) -> tuple[float, Tensor]:
        """The mean square of x' - D(z) for errors of a variance, and the mean square of u - x' for every value."""
        answered, left = torch.zeros_like(self.decoded[0]), torch.zeros_like(self.decoded[0])
        for numbers in self.numbers.split(self.at_once):
            particles = numbers.to(self.decoded.device) % len(self.decoded)
            starts = self.decoded[particles]
            errors = self._draw(self.decoded, numbers, "decoder_error")
            if isinstance(self.physics, LinearPhysics):
                errors = errors.sign()  # only their variance counts, and signs have no scatter in it
            truths = (starts + (variance * self.detail[particles]).sqrt() * errors).clamp(-1, 1)
            ys = measured(self.physics, truths) + self.noise * self._draw(self.y, numbers, "trial_noise")
            solved = proximal_step(self.physics, ys, starts, self.weight, inner_steps=SLOW_STEPS)
            answered += (solved - starts).square().sum(dim=0) / len(self.numbers)
            left += (truths - solved).square().sum(dim=0) / len(self.numbers)
        return _mean(answered).item(), left

    def _draw(self, like: Tensor, numbers: Tensor, stream: str) -> Tensor:
        shape, key = tuple(like.shape[1:]), {"seed": self.seed, "measurement": self.key}
        return keyed_normal(shape, numbers.tolist(), stream=stream, **key).to(like)


def _detail(images: Tensor) -> Tensor:
    """Where images have details: the energy of what a local mean takes away, each image's over its mean."""

    def smooth(values: Tensor) -> Tensor:
        return avg_pool2d(values, DETAIL, stride=1, padding=DETAIL // 2, count_include_pad=False)

    energy = smooth((images - smooth(images)).square())
    mean = _mean(energy, dim=(1, 2, 3), keepdim=True).to(energy)
    return torch.where(mean > 0, (energy / mean + FLAT_SHARE) / (1 + FLAT_SHARE), 1.0)


def _mean(values: Tensor, **dims: Any) -> Tensor:
    """With the same bits whatever the number of threads; on the CPU, as Apple's GPUs have no double precision."""
    return values.cpu().double().mean(**dims)
