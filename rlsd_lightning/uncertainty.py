r"""What all particles lack alike: the decoder's error, estimated where the measurement sees it.

Particles are images :math:`x_i` near decoded latents. A decoder can't make every image: the truth is :math:`D(z) + e`, and what of
:math:`e` the measurement does not see, no particle has, so that their spread is too small. Its variance :math:`v` is
known from what it does see, the distance of :math:`x_i` to :math:`D(z_i)`. Where an image has details, errors are larger.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from rlsd_lightning.functional.losses import at_least_float32
from rlsd_lightning.functional.noise import keyed_normal
from rlsd_lightning.likelihood import measured, noise_std
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.proximal import has_own_step, proximal_step

__all__ = ["DecoderError", "decoder_error"]

DRAWS = 16
"""Trial errors, and as much trial noise, that proximal steps answer to."""
SLOW_DRAWS = 8
"""The same where a step has no closed form."""
SLOW_STEPS = 100
"""Inner steps of such a one: for phase retrieval within a tenth of what 200 give, and a sixth of a run's time."""
DETAIL = 5
"""Pixels a side of what counts as an image's detail."""
FLAT_SHARE = 0.02
"""Variance of errors where an image has no detail, relative to its mean. Found with :data:`DETAIL` on errors of the embedded
autoencoder on 48 tuning faces: their mean log likelihood rises by 0.49 a value against errors that are equal everywhere."""


class DecoderError(NamedTuple):
    r"""How far decoded latents are from images.

    Attributes:
        std: The root mean square :math:`\sqrt v` of the decoder's error, in units of an image in [-1, 1].
        variance: What it and the measurement's noise leave open in every value of an image, with shape
            :math:`(C, H, W)`; comes on top of the particles' variance.
    """

    std: float
    variance: Tensor


@torch.no_grad()
def decoder_error(
    measurement: Measurement, images: Tensor, decoded: Tensor, image_var: float, weight: float, *, seed: int, key: int
) -> DecoderError:
    r"""Estimates the decoder's error from the particles of one measurement, and what of it stays in the images.

    With the answers :math:`r_e` and :math:`r_n` of the proximal step to an error :math:`e \sim \mathcal{N}(0, v_0 \,
    \mathrm{diag}(s))` of the decoder, where :math:`s` is the energy of the decoded images' details around a value over its
    mean, and to noise :math:`n` of the measurement

    .. math::
        v = v_0 \frac{[\overline{(x - D)^2} - \overline{r_n^2}]_+}{\overline{r_e^2}}, \qquad
        V = \frac{v}{v_0} \overline{(e - r_e)^2} + \overline{r_n^2}

    with means over draws, in :math:`v` over values and particles too. It is exact but for the draws where the operator is
    linear; others are taken as linear near the first particle. Where noise is larger than the decoder's error :math:`v` may come out as
    zero, and :math:`V` is that of the noise alone.

    Args:
        measurement: What the particles explain.
        images: The particles :math:`x`, proximal steps from the decoded latents, with shape :math:`(N, C, H, W)`.
        decoded: The decoded latents :math:`D(z)`, with the same shape.
        image_var: The variance :math:`v_0` of the trial errors.
        weight: The proximal steps' weight :math:`\mu`.
        seed: The run's seed.
        key: The measurement's key, of :func:`~rlsd_lightning.functional.noise.keyed_normal`.
    """
    physics, y = measurement.physics, measurement.y
    images, decoded = at_least_float32(images), at_least_float32(decoded)
    first = images[:1]
    noiseless, deviation = measured(physics, first), (image_var * _detail(decoded)).sqrt()
    noise = noise_std(physics.noise_model, y)

    def draw(like: Tensor, indices: list[int], stream: str) -> Tensor:
        return keyed_normal(tuple(like.shape[1:]), indices, seed=seed, measurement=key, stream=stream).to(like)

    def answers(ys: Tensor) -> Tensor:
        starts = first.expand(len(ys), *first.shape[1:])
        return proximal_step(physics, ys, starts, weight, inner_steps=SLOW_STEPS) - starts

    count = DRAWS if has_own_step(physics) else SLOW_DRAWS
    answered, left, from_noise = (torch.zeros_like(first[0]) for _ in range(3))
    for indices in torch.arange(count).split(len(images)):  # no more memory than the particles took
        errors = deviation * draw(first, indices.tolist(), "decoder_error")
        to_errors = answers(measured(physics, first + errors))
        to_noise = answers(noiseless + noise * draw(y, indices.tolist(), "noise"))
        answered += to_errors.square().sum(dim=0) / count
        left += (errors - to_errors).square().sum(dim=0) / count
        from_noise += to_noise.square().sum(dim=0) / count
    seen = (images - decoded).square().mean() - from_noise.mean()
    ratio = torch.where(answered.mean() > 0, seen.clamp_min(0) / answered.mean(), 0.0)
    return DecoderError((ratio * image_var).sqrt().item(), ratio * left + from_noise)


def _detail(images: Tensor) -> Tensor:
    """Where images have details: the energy of what a local mean takes away, a mean of one, with shape (C, H, W)."""

    def smooth(values: Tensor) -> Tensor:
        return avg_pool2d(values, DETAIL, stride=1, padding=DETAIL // 2, count_include_pad=False)

    energy = smooth((images - smooth(images)).square()).mean(dim=0)
    energy = energy + FLAT_SHARE * energy.mean()
    return torch.where(energy > 0, energy / energy.mean(), 1.0)
