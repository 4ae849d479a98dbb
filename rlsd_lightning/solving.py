"""The Python interface: one call from a measurement to its result."""

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from deepinv.physics import Physics
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from rlsd_lightning.distributed.environment import cluster_environment, is_one_device
from rlsd_lightning.distributed.strategy import ParticleStrategy
from rlsd_lightning.engine.callbacks import FiniteGuard
from rlsd_lightning.errors import InputError
from rlsd_lightning.features import Features, LatentFeatures
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.methods.rlsd import RLSD
from rlsd_lightning.operators import as_physics
from rlsd_lightning.priors import Prior
from rlsd_lightning.results.result import Result
from rlsd_lightning.results.writer import ImageResults, PointResults
from rlsd_lightning.signatures import typed

__all__ = ["solve", "solve_together"]

IMAGE_DIMS = 3
"""Dimensions of an image; particles with fewer are points."""
MOST = 2.0
"""Largest absolute value of a true image: filters exceed [-1, 1], but by less than that."""


@typed
def solve(
    y: Tensor,
    physics: Physics | Callable[[Tensor], Tensor],
    prior: Prior,
    *,
    truth: Tensor | None = None,
    num_particles: int = 4,
    num_steps: int = 50,
    seed: int = 0,
    features: Features | None = None,
    method: Callable[..., ParticleModule] = RLSD,
    callbacks: Sequence[Callback] = (),
    trainer: dict[str, Any] | None = None,
    **settings: Any,
) -> Result:
    r"""Draw particles that explain a measurement.

    With ``trainer={"devices": 4}`` each device computes a share of the particles. Lightning then runs the calling script
    once in every process, and each of them returns the same result. So call this in a script, not in a notebook.
    :meth:`Result.save` writes in the first process only.

    Args:
        y: The measurement :math:`y = A(x) + n`, with shape :math:`(1, \dots)`.
        physics: The operator :math:`A` with its noise, acting on images in [-1, 1]; or a plain, differentiable function
            of images with shape :math:`(N, C, H, W)`, whose noise is taken to be small.
        prior: The latent diffusion prior.
        truth: The clean image in [-1, 1], with shape :math:`(1, C, H, W)`, if it is known; ``metrics`` then has PSNR and
            SSIM. It does not change the particles.
        num_particles: The number :math:`N` of particles.
        num_steps: The number of timesteps.
        seed: Seed of all noise.
        features: What the kernel compares; the latents if left out.
        method: The particle method.
        callbacks: Lightning callbacks.
        trainer: Arguments of the ``lightning.Trainer``, such as ``accelerator``, ``devices`` or ``precision``. The
            strategy is a ParticleStrategy where there are several devices.
        settings: Arguments of the method, such as ``gamma``.

    Returns:
        The particles with shape :math:`(N, *\mathrm{image\_shape})`, their mean, uncertainty, metrics and warnings.

    Raises:
        InputError: If an argument is out of range, the operator does not fit the prior, or the Trainer stops early.
        NonFiniteError: If particles become infinite or not a number.
        LostError: If another process ends or is silent.
    """
    if truth is not None:
        _check_truth(truth, prior)
    settings |= {"num_particles": num_particles, "num_steps": num_steps, "seed": seed}
    measurement = Measurement("measurement", y, as_physics(physics), truth)
    return solve_together([measurement], prior, features, method, callbacks, trainer, settings)[0]


def solve_together(
    measurements: Sequence[Measurement],
    prior: Prior,
    features: Features | None,
    method: Callable[..., ParticleModule],
    callbacks: Sequence[Callback],
    trainer: dict[str, Any] | None,
    settings: dict[str, Any],
) -> list[Result]:
    """Draw particles for several measurements side by side; arguments and errors are those of :func:`solve`."""
    options = {
        "accelerator": "auto",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        **(trainer or {}),
    }
    place = options["devices"], options.get("num_nodes", 1)
    options.setdefault("plugins", cluster_environment(*place))
    if not is_one_device(*place):
        options.setdefault("strategy", ParticleStrategy())
    # a caller may have turned gradients off, but repulsion needs those of the latents
    with torch.inference_mode(False), torch.enable_grad(), tempfile.TemporaryDirectory() as scratch:
        measurements = [each._replace(y=copied(each.y), truth=copied(each.truth)) for each in measurements]
        results = ImageResults() if len(prior.image_shape) == IMAGE_DIMS else PointResults()
        options.setdefault("default_root_dir", scratch)
        fitting = L.Trainer(**options, callbacks=[FiniteGuard(), results, *callbacks])
        if is_one_device(*place):
            prior.to(fitting.strategy.root_device)  # scales that nobody has measured are measured where it is
        module = method(prior, measurements, features or LatentFeatures(), **settings)
        fitting.fit(module)
    if not results.finished:
        raise InputError(
            f"all {len(module.timesteps)} steps are expected, but the Trainer stopped after {module.steps_done}; leave "
            "max_steps, max_time, fast_dev_run and callbacks that stop it out"
        )
    return results.finished


def copied(values: Tensor | None) -> Tensor | None:
    """A copy in single precision, as the networks', and not an inference tensor."""
    if values is None:
        return None
    kind = torch.complex64 if values.is_complex() else torch.float32
    return values.detach().to(kind if values.is_complex() or values.is_floating_point() else values.dtype, copy=True)


def _check_truth(truth: Tensor, prior: Prior) -> None:
    expected = (1, *prior.image_shape)
    if truth.shape != expected:
        raise InputError(f"truth must have shape {expected}, as the prior's images, got {tuple(truth.shape)}")
    if not torch.isfinite(truth).all():
        raise InputError("truth must be finite, got NaN or infinity")
    if len(prior.image_shape) == IMAGE_DIMS and truth.abs().max() > MOST:
        raise InputError(
            f"truth must be an image in [-1, 1], got values from {truth.min():g} to {truth.max():g}; turn pixels from 0 to "
            "255 into this range by truth / 127.5 - 1"
        )
