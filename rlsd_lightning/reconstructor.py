"""The prior as a reconstruction model of deepinv."""

import copy
import hashlib
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import deepinv
import torch
from deepinv.physics import GaussianNoise, LaplaceNoise, LinearPhysics, NoiseModel, Physics
from torch import Tensor

from rlsd_lightning.errors import InputError
from rlsd_lightning.features import Features
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.methods.rlsd import RLSD
from rlsd_lightning.operators import PoissonNoise, as_physics
from rlsd_lightning.priors import Prior
from rlsd_lightning.results.result import Result
from rlsd_lightning.signatures import typed
from rlsd_lightning.solving import copied, solve_together

__all__ = ["Reconstructor"]

log = logging.getLogger(__name__)

SAME = 1e-3
"""Largest difference of a measurement alone and in a batch, relative to the largest value."""
ENOUGH = 32
"""Measured values of which one is below grey in all but the brightest images."""


class Reconstructor(deepinv.models.Reconstructor):
    r"""A prior as a ``deepinv.models.Reconstructor``: ``model(y, physics)`` is the mean of the particles.

    It takes the place of any model in ``deepinv.test`` and ``deepinv.Trainer.test``. Measurements of a batch are solved
    side by side; particles depend on their measurement and the seed, not on the other measurements.

    Args:
        prior: The latent diffusion prior.
        image_range: Values of black and white in the images that the operators take; (0, 1) is deepinv's habit. With
            another range than (-1, 1), measurement and noise are rescaled.
        num_particles: The number :math:`N` of particles of each measurement.
        num_steps: The number of timesteps.
        seed: Seed of all noise.
        features: What the kernel compares; the latents if left out.
        method: The particle method.
        trainer: Arguments of the ``lightning.Trainer``, such as ``precision``. By default it is quiet and uses the
            measurement's device.
        settings: Arguments of the method, such as ``gamma``.

    Raises:
        InputError: If ``image_range`` is not two rising numbers. In a call: if the operator does not fit the prior.
    """

    @typed
    def __init__(
        self,
        prior: Prior,
        image_range: tuple[float, float] = (-1, 1),
        *,
        num_particles: int = 4,
        num_steps: int = 50,
        seed: int = 0,
        features: Features | None = None,
        method: Callable[..., ParticleModule] = RLSD,
        trainer: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if not -math.inf < image_range[0] < image_range[1] < math.inf:
            raise InputError(f"image_range must be the values of black and white, such as (0, 1), got {image_range}")
        self.prior, self.features, self.image_range = prior, features, tuple(image_range)
        self._method, self._trainer = method, dict(trainer or {})
        self._settings = {"num_particles": num_particles, "num_steps": num_steps, "seed": seed, **settings}
        self.train(self.training)

    def train(self, mode: bool = True) -> "Reconstructor":
        """Set the mode; prior and features are frozen and stay in evaluation mode."""
        super().train(mode)
        for frozen in (self.prior, self.features):
            if frozen is not None:
                frozen.eval()
        return self

    def forward(
        self, y: Tensor, physics: Physics | Callable[[Tensor], Tensor], particles: bool = False, **kwargs: Any
    ) -> Tensor:
        r"""Reconstruct images from measurements.

        Args:
            y: Measurements, with shape :math:`(B, \dots)`.
            physics: The operator with its noise; parameters may differ between the measurements of the batch.
            particles: Whether to return all particles in place of their mean.
            kwargs: Ignored, as deepinv passes every model the same arguments.

        Returns:
            Means with shape :math:`(B, C, H, W)`, or particles with shape :math:`(B, N, C, H, W)`, in ``image_range``.
        """
        results = self.results(y, physics)
        images = torch.stack([result.particles if particles else result.mean for result in results])
        low, high = self.image_range
        return ((images + 1) * ((high - low) / 2) + low).to(y.device)

    @typed
    def results(self, y: Tensor, physics: Physics | Callable[[Tensor], Tensor]) -> list[Result]:
        """Results with uncertainty, metrics and warnings, one for each measurement; arguments are those of :meth:`forward`.

        Images of a result are in [-1, 1], whatever ``image_range`` is.
        """
        with torch.inference_mode(False), _quiet():  # a model is called without gradients, and so are operators here
            place = {"accelerator": y.device.type, "devices": [y.device.index or 0] if y.is_cuda else 1}
            trainer = {"enable_progress_bar": False, **place, **self._trainer}
            measurements = self._measurements(y.detach(), as_physics(physics))
            return solve_together(
                measurements, self.prior, self.features, self._method, (), trainer, dict(self._settings)
            )

    @torch.no_grad()
    def _measurements(self, y: Tensor, physics: Physics) -> list[Measurement]:
        """The measurements of a batch, for images in [-1, 1]."""
        rescaled: dict[int, Callable[[Tensor], tuple[Tensor, Physics]]] = {}
        measurements = []
        for index, each in enumerate(_operators(physics, len(y), self.prior.image_shape, y.device)):
            if id(each) not in rescaled:
                rescaled[id(each)] = _rescaling(each, self.image_range, self.prior.image_shape, y.device)
            ours, own = rescaled[id(each)](y[index : index + 1])
            _warn_of_range(y[index : index + 1], each, self.image_range, self.prior.image_shape)
            # the key of the noise is the measurement itself, wherever it stands in whichever batch
            key = hashlib.sha256(copied(y[index].resolve_conj()).cpu().numpy().tobytes()).hexdigest()
            measurements.append(Measurement(f"measurement_{index}", ours, own, series=key))
        return measurements


@contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out what Lightning says about every new Trainer: a model is called once a batch."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _warn_of_range(y: Tensor, physics: Physics, image_range: tuple[float, float], image_shape: tuple[int, ...]) -> None:
    """Warn of a measurement without a value below that of grey, as images in [0, 1] have."""
    if image_range[0] >= 0 or not isinstance(physics, LinearPhysics):
        return
    white = physics.A(torch.ones(1, *image_shape, device=y.device))
    if white.is_complex() or white.shape != y.shape:
        return
    seen = white > white.max() / 2
    if seen.sum() >= ENOUGH and (y[seen] >= 0).all():
        log.warning("no measured value is below that of grey; for images in [0, 1] set image_range=(0, 1)")


class _OfRange(Physics):
    r"""The operator :math:`a \, A(c + s x) + b` of images :math:`x` in [-1, 1]."""

    def __init__(
        self,
        physics: Physics,
        noise_model: NoiseModel,
        image_range: tuple[float, float],
        scale: float = 1.0,
        shift: float = 0.0,
    ) -> None:
        super().__init__(noise_model=noise_model)
        self.physics, self.scale, self.shift = physics, scale, shift
        self.centre, self.half = sum(image_range) / 2, (image_range[1] - image_range[0]) / 2

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:  # noqa: N802
        return self.scale * self.physics.A(self.centre + self.half * x) + self.shift


def _rescaling(
    physics: Physics, image_range: tuple[float, float], image_shape: tuple[int, ...], device: torch.device
) -> Callable[[Tensor], tuple[Tensor, Physics]]:
    r"""A function from a measurement to one of images in [-1, 1], and its operator.

    With images :math:`u = c + s x`, a linear operator measures :math:`(y - A(c)) / s = A(x) + n / s`: it stays as it is,
    with its closed forms, and noise is divided by :math:`s`. Counts of photons with gain :math:`g`, of images in
    :math:`[0, w]`, become :math:`2 g k / w - 1` with the gain :math:`g / w`. Other operators are applied to :math:`u`.
    """
    low, high = image_range
    noise = physics.noise_model
    if (low, high) == (-1, 1):
        return lambda y: (y, physics)
    if isinstance(noise, deepinv.physics.PoissonNoise) and low == 0:
        gain = float(noise.gain.max())
        unit = 1.0 if noise.normalize else gain
        counting = _OfRange(physics, PoissonNoise(2 * math.sqrt(gain / high)), image_range, 2 / high, -1.0)
        return lambda y: (2 * unit * y / high - 1, counting)
    if not isinstance(physics, LinearPhysics):
        applied = _OfRange(physics, noise, image_range)
        return lambda y: (y, applied)
    centre, half = (low + high) / 2, (high - low) / 2
    offset = physics.A(torch.full((1, *image_shape), centre, device=device))
    # memo: the copy has the other noise in place of its own
    scaled = copy.deepcopy(physics, {id(noise): _divided(noise, half)})

    def rescale(y: Tensor) -> tuple[Tensor, Physics]:
        # an offset of another shape could be broadcast; the checkpoint identity reports the shapes
        return (y - offset if y.shape == offset.shape else y) / half, scaled

    return rescale


def _divided(noise: NoiseModel, factor: float) -> NoiseModel:
    """Noise whose standard deviation is divided by a factor; of a kind without known likelihood, which is refused later, itself."""
    if isinstance(noise, GaussianNoise):
        return GaussianNoise(noise.sigma / factor)
    return LaplaceNoise(noise.b / factor) if isinstance(noise, LaplaceNoise) else noise


def _operators(physics: Physics, count: int, image_shape: tuple[int, ...], device: torch.device) -> list[Physics]:
    """The operator of each measurement of a batch; a generator may have drawn other parameters for each.

    Raises:
        InputError: If an image alone has another measurement than in a batch.
    """
    if count == 1:
        return [physics]
    images = torch.linspace(0, 40 * math.pi * count, count * math.prod(image_shape), device=device)
    images = images.sin().view(count, *image_shape).abs()
    together = physics.A(images)
    own_noise = any(_has_batch(value, count) for value in physics.noise_model.buffers())
    if not own_noise and _is_same([physics] * count, images, together):
        return [physics] * count
    for parameters in (physics.noise_model, physics):
        alone = [_alone(physics, parameters, index, count) for index in range(count)]
        if _is_same(alone, images, together):
            return alone
    raise InputError(
        f"{type(physics).__name__} measures an image alone in another way than in a batch of {count}; give one "
        "measurement at a time"
    )


def _has_batch(value: Tensor, count: int) -> bool:
    return value.ndim > 0 and len(value) == count


def _alone(physics: Physics, parameters: torch.nn.Module, index: int, count: int) -> Physics:
    """A copy of an operator, in which one measurement's are left of the parameters of a batch."""
    memo: dict[int, Any] = {}
    own = copy.deepcopy(physics, memo)
    for module in memo[id(parameters)].modules():
        for name, value in list(module.named_buffers(recurse=False)):
            if _has_batch(value, count):
                setattr(module, name, value[index : index + 1])
    return own


def _is_same(operators: list[Physics], images: Tensor, together: Tensor) -> bool:
    """Whether each operator measures its image as it is measured in the batch."""
    for index, physics in enumerate(operators):
        expected = together[index : index + 1]
        try:
            alone = physics.A(images[index : index + 1])
        except Exception:  # noqa: BLE001  with the parameters of a batch, operators refuse one image by errors of many kinds
            return False
        if alone.shape != expected.shape or (alone - expected).abs().max() > SAME * expected.abs().max():
            return False
    return True
