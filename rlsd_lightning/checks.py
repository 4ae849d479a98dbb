"""Checks of settings."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lightning as L

from rlsd_lightning.distributed.strategy import ParticleStrategy
from rlsd_lightning.errors import (
    InputError,
    require,
    require_at_least_one,
    require_at_least_zero,
    require_integer,
    require_positive,
    require_positive_fraction,
)
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.operators.compose import probe_operator
from rlsd_lightning.priors import Calibration, Prior
from rlsd_lightning.signatures import require_types

__all__ = ["calibrated_settings", "check_trainer", "check_types", "checked_measurements"]

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
"""Precisions of the Trainer; particles stay float32 in each."""


def check_types(method: type, values: Mapping[str, Any]) -> None:
    """Check a method's arguments by the annotations of its constructor and of those that it hands arguments on to.

    Raises:
        InputError: If one is of another type.
    """
    # a wrapper of the constructors, as typed() is, would hide them from save_hyperparameters()
    for each in method.__mro__:
        require_types(inspect.signature(each.__init__).parameters, values)


def check_trainer(trainer: L.Trainer) -> None:
    """Check that a Trainer neither mixes nor changes the gradients of different particles, nor their precision.

    Raises:
        InputError: If it does.
    """
    if trainer.world_size > 1 and not isinstance(trainer.strategy, ParticleStrategy):
        raise InputError(
            "the Trainer's strategy must be a ParticleStrategy where there are several devices, got "
            f"{type(trainer.strategy).__name__}, which averages the gradients of different particles; pass "
            "strategy=ParticleStrategy() from rlsd_lightning"
        )
    if trainer.gradient_clip_val or trainer.accumulate_grad_batches != 1:
        raise InputError("the Trainer must neither clip nor accumulate gradients; leave these arguments out")
    if trainer.precision not in PRECISIONS:
        raise InputError(
            f"the Trainer's precision must be {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}, as particles are float32, "
            f"got {trainer.precision}"
        )


def _listed(measurements: Measurement | Sequence[Measurement]) -> list[Measurement]:
    """One or several measurements as a list.

    Raises:
        InputError: If anything else is among them.
    """
    is_lone = isinstance(measurements, Measurement) or not isinstance(measurements, Iterable)
    several = [measurements] if is_lone else list(measurements)
    for each in several:
        if not isinstance(each, Measurement):
            raise InputError(f"measurements must be a Measurement, or a list of them, got {type(each).__name__}")
        require_types(inspect.signature(Measurement).parameters, each._asdict())
    return several


def calibrated_settings(settings: Mapping[str, Any], prior: Prior) -> dict[str, float]:
    """Values of the prior's calibration for the settings that are None; it is not measured if there are none."""
    names = [name for name in Calibration._fields if name in settings and settings[name] is None]
    values = prior.calibration._asdict() if names else {}
    return {name: values[name] for name in names}


def checked_measurements(
    measurements: Measurement | Sequence[Measurement], settings: Mapping[str, Any], prior: Prior
) -> list[Measurement]:
    """One or several measurements as a list; they and the settings that all methods share are checked.

    Raises:
        InputError: If a setting is out of range, or the measurements can't be solved side by side.
    """
    _check_common(settings, prior)
    several = _listed(measurements)
    _check_together(several, settings["num_particles"], prior)
    return several


def _check_common(settings: Mapping[str, Any], prior: Prior) -> None:
    """Check the settings that all methods share."""
    require_at_least_one(num_particles=settings["num_particles"], particle_chunk=settings["particle_chunk"])
    num_steps, seed, most = settings["num_steps"], settings["seed"], prior.num_train_timesteps
    require_integer(num_steps=num_steps, seed=seed)
    require(lambda value: 1 <= value <= most, f"from 1 to {most}, the prior's schedule", num_steps=num_steps)
    require(lambda value: 0 <= value < 2**64, "from 0 to 2^64 - 1", seed=seed)
    require_positive_fraction(warm_share=settings["warm_share"])
    require_at_least_zero(decoder_std=settings["decoder_std"])
    require_positive(min_mu=settings["min_mu"])


def _check_together(measurements: Sequence[Measurement], num_particles: int, prior: Prior) -> None:
    """Check that measurements can be solved side by side."""
    names, starts = [each.name for each in measurements], [each.start for each in measurements]
    if not names or len(set(names)) < len(names):
        raise InputError(f"measurements with different names are expected, got {names}")
    if len({start is None for start in starts}) > 1:
        raise InputError("either all measurements or none must have a start, got some of both")
    _check_data(measurements, prior)
    shape = (num_particles, *prior.latent_shape)
    for start in starts:
        if start is not None and start[0].shape != shape:
            raise InputError(f"a start with latents of shape {shape} is expected, got {tuple(start[0].shape)}")


def _check_data(measurements: Sequence[Measurement], prior: Prior) -> None:
    """Try each operator once, and refuse measurements whose values are integers or not finite."""
    for measurement in measurements:
        if not (measurement.y.is_floating_point() or measurement.y.is_complex()):
            raise InputError(
                f"a measurement of real or complex numbers is expected, but '{measurement.name}' has "
                f"{measurement.y.dtype}; turn it into float32, and pixels from 0 to 255 into [-1, 1] by y / 127.5 - 1"
            )
    for measurement in {id(each.physics): each for each in measurements}.values():
        probe_operator(measurement.physics, prior.image_shape, like=measurement.y)
    for measurement in measurements:
        wrong = int((~measurement.y.isfinite()).sum())
        if wrong:
            raise InputError(
                f"finite measurements are expected, but {wrong} of the {measurement.y.numel()} values of "
                f"'{measurement.name}' are NaN or infinite; replace them, or set them to 0 and use an operator with a "
                "mask that hides them"
            )
