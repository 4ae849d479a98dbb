"""The Python interface: one call from a measurement to particles."""

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
from deepinv.physics import Physics
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from rlsd_lightning.distributed.strategy import ParticleStrategy
from rlsd_lightning.engine.callbacks import FiniteGuard
from rlsd_lightning.features import Features, LatentFeatures
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.methods.rlsd import RLSD
from rlsd_lightning.operators import as_physics
from rlsd_lightning.priors import Prior

__all__ = ["solve"]


def solve(
    y: Tensor,
    physics: Physics | Callable[[Tensor], Tensor],
    prior: Prior,
    *,
    num_particles: int = 4,
    num_steps: int = 100,
    seed: int = 0,
    features: Features | None = None,
    method: Callable[..., ParticleModule] = RLSD,
    callbacks: Sequence[Callback] = (),
    trainer: dict[str, Any] | None = None,
    **settings: Any,
) -> Tensor:
    r"""Draws particles that explain a measurement.

    With ``trainer={"devices": 4}`` each device computes a share of the particles. Lightning then runs the calling script
    once in every process, and each of them returns all particles. So call this in a script, not in a notebook, and
    write files in one process only: ``if lightning.pytorch.utilities.rank_zero_only.rank == 0``.

    Args:
        y: The measurement :math:`y = A(x) + n`, with shape :math:`(1, \dots)`.
        physics: The operator :math:`A` with its noise, acting on images in [-1, 1]; or a plain, differentiable function
            of images with shape :math:`(N, C, H, W)`, whose noise is taken to be small.
        prior: The latent diffusion prior.
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
        The particles, not clipped to [-1, 1], with shape :math:`(N, *\mathrm{image\_shape})`, on the CPU.

    Raises:
        InputError: If an argument is out of range, or the operator does not fit the prior.
        NonFiniteError: If particles become infinite or not a number.
        LostError: If another process ends or is silent.
    """
    module = method(
        prior,
        Measurement("measurement", y, as_physics(physics)),
        features or LatentFeatures(),
        num_particles=num_particles,
        num_steps=num_steps,
        seed=seed,
        **settings,
    )
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
    if options["devices"] != 1 or options.get("num_nodes", 1) != 1:
        options.setdefault("strategy", ParticleStrategy())
    with tempfile.TemporaryDirectory() as scratch:
        L.Trainer(**{"default_root_dir": scratch, **options}, callbacks=[FiniteGuard(), *callbacks]).fit(module)
    return module.pictures()[0].float().cpu()
