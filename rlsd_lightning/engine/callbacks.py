"""Guard, early end and progress bar of a run."""

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar

from rlsd_lightning.errors import NonFiniteError, require_at_least_one
from rlsd_lightning.evaluation.causes import non_finite_cause
from rlsd_lightning.methods.base import ParticleModule

__all__ = ["EndEarly", "FiniteGuard", "Progress", "not_finite"]

log = logging.getLogger(__name__)

SECONDS_PER_LINE = 60.0
"""Time between two lines of a measurement's progress, where there is no terminal."""


class FiniteGuard(Callback):
    """Stops a measurement whose particles are no longer finite; no such particles reach a checkpoint.

    It checks before every checkpoint, every ``every_n_steps`` steps, and after the last step.

    Args:
        every_n_steps: Steps between two checks; each waits for the device.

    Raises:
        NonFiniteError: If a particle is infinite or NaN.
    """

    def __init__(self, every_n_steps: int = 25) -> None:
        require_at_least_one(every_n_steps=every_n_steps)
        self.every_n_steps = every_n_steps
        self._checked: int | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: ParticleModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        if done % self.every_n_steps == 0 or done == len(pl_module.timesteps):
            self._check(pl_module, done)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: ParticleModule, checkpoint: dict[str, Any]) -> None:
        self._check(pl_module, pl_module.steps_done)

    def _check(self, module: ParticleModule, done: int) -> None:
        if done == self._checked:
            return
        self._checked = done
        lost = not_finite(module)
        if lost:
            raise NonFiniteError(
                f"particles of '{', '.join(lost)}' are no longer finite at step {done}; {non_finite_cause(module)}",
                lost,
            )


class EndEarly(Callback):
    """Ends a run with what it has, once it is asked to: the next step becomes the last, and the results are written.

    The last of all steps makes the particles' latents clean, so they decode to images at any noise level. The fewer steps
    were taken, the smoother these images are.

    Args:
        is_asked: Says between two steps whether the run is to end, in any of its processes.
    """

    def __init__(self, is_asked: Callable[[], bool]) -> None:
        self._is_asked = is_asked

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: ParticleModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.shard.any(self._is_asked()):
            trainer.train_dataloader.end_after(batch_idx + 1)
        if batch_idx + 1 == len(pl_module.timesteps):
            trainer.should_stop = True  # the Trainer has counted the timesteps before


class Progress(TQDMProgressBar):
    """One bar with the measurement's name and position, and all terms of the loss; without a terminal a few lines.

    Lines are logged at the start, and once a minute.

    Args:
        refresh_rate: Steps between two updates of the bar; 0 shows nothing.
        position: Text before the measurement's name, such as ``[2/3]``.
    """

    def __init__(self, refresh_rate: int = 5, position: str = "") -> None:
        self._lines = refresh_rate > 0 and not sys.stdout.isatty()
        super().__init__(refresh_rate=0 if self._lines else refresh_rate, leave=True)
        self.position = position
        self._last_line = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: ParticleModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self.train_progress_bar.set_description(f"{self.position}{pl_module.name}")
        if self._lines:
            steps, particles = len(pl_module.timesteps), len(pl_module.z)
            log.info("%s%s: %d steps, %d particles", self.position, pl_module.name, steps, particles)
            self._last_line = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: ParticleModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        done, steps = batch_idx + 1, len(pl_module.timesteps)
        if self._lines and done < steps and time.monotonic() - self._last_line >= SECONDS_PER_LINE:
            terms = self.get_metrics(trainer, pl_module).items()
            shown = ", ".join(f"{name} {value:.3g}" for name, value in terms if isinstance(value, float))
            log.info("%s%s: step %d of %d; %s", self.position, pl_module.name, done, steps, shown)
            self._last_line = time.monotonic()

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {name.removeprefix("loss/"): value for name, value in metrics.items()}


def not_finite(module: ParticleModule) -> list[str]:
    """Names of the measurements with a particle that is infinite or not a number; waits for the device."""
    every = module.state_dict(keep_vars=True).values()
    states = [value[module.rows].unsqueeze(-1) for value in every if value.ndim and len(value) == len(module.z)]
    mine = [torch.isfinite(value).flatten(1).all(dim=1) for value in states]
    finite = module.gather(torch.stack(mine).all(dim=0).float()).cpu()
    return [measurement.name for measurement, particles in module.each(finite) if not particles.all()]
