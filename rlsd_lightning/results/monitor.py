"""Curves and pictures in TensorBoard."""

import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch import Tensor
from torchvision.utils import make_grid

from rlsd_lightning.evaluation.health import HealthMetrics, health_metrics, health_settings, mean_metrics
from rlsd_lightning.evaluation.scores import aligned
from rlsd_lightning.functional.metrics import psnr
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.results.pictures import WHITE_STD

__all__ = ["MOMENTS", "Monitor", "images_at", "moments"]

MOMENTS = 10
"""Moments of a run with pictures: enough to see the particles form, few enough to scroll through."""


def moments(num_steps: int, count: int = MOMENTS) -> list[int]:
    """Numbers of completed steps at which pictures are taken, evenly spread; the last is ``num_steps``."""
    return sorted({-(-num_steps * (index + 1) // count) for index in range(count)})


def images_at(module: ParticleModule, done: int) -> tuple[Tensor, Tensor] | None:
    """All particles and their decoded latents after a step; the final ones after the last step.

    Every process of a group must call it. None where the step decoded nothing.
    """
    return module.pictures() if done == len(module.timesteps) else module.current_images()


class Monitor(Callback):
    """Logs speed, health metrics, PSNR and pictures to TensorBoard; with several measurements, curves are their means.

    A step's number on every axis is its index, as on Lightning's own curves.

    Args:
        count: Number of moments with pictures, evenly spread over the steps.
    """

    def __init__(self, count: int = MOMENTS) -> None:
        self.count = count
        self._next_step = 0
        self._last_timing: tuple[int, float] | None = None

    def state_dict(self) -> dict[str, int]:
        return {"next_step": self._next_step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._next_step = state["next_step"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: ParticleModule) -> None:
        """Discard what a killed run logged after its checkpoint: TensorBoard drops steps from a session's start on."""
        if pl_module.shard.position:
            return
        start = Event(step=self._next_step, session_log=SessionLog(status=SessionLog.START))
        for logger in _tensorboards(trainer):
            logger.experiment.file_writer.add_event(start)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: ParticleModule, batch: Any, batch_idx: int) -> None:
        self._next_step = batch_idx + 1
        if self._last_timing is None:
            self._last_timing = (batch_idx, time.perf_counter())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: ParticleModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        if done % trainer.log_every_n_steps == 0:
            self._log_speed(done, len(pl_module.z))
        if done not in moments(len(pl_module.timesteps), self.count):
            return
        repulsion = pl_module.repulsion_ratio()
        seen = images_at(pl_module, done)
        if seen is None or seen[0].ndim != 4 or pl_module.shard.position:
            return
        # self.log would repeat the values until the next moment
        values = _figures(pl_module, *seen, repulsion)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=batch_idx)
        for logger in _tensorboards(trainer):
            for measurement, particles, decoded in pl_module.each(*seen):
                label = f"/{measurement.name}" if len(pl_module.measurements) > 1 else ""
                for name, picture in _panels(measurement, particles, decoded).items():
                    logger.experiment.add_image(name + label, picture, batch_idx)

    def _log_speed(self, done: int, particles: int) -> None:
        step, start = self._last_timing
        now = time.perf_counter()
        seconds = (now - start) / (done - step)
        self.log("step", float(done - 1))  # otherwise Lightning adds a curve of the epoch, which is always 0
        self.log("seconds_per_step", seconds)
        self.log("particle_steps_per_second", particles / seconds)
        self._last_timing = (done, now)


def _tensorboards(trainer: L.Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


@torch.no_grad()
def _figures(module: ParticleModule, images: Tensor, decoded: Tensor, repulsion: float | None) -> dict[str, float]:
    """Health metrics and, where a truth is known, PSNR: means over measurements."""
    health: list[HealthMetrics] = []
    settings = health_settings(module) | {"repulsion_ratio": repulsion}
    ratios: list[Tensor] = []
    for measurement, particles, at_z, z in module.each(images, decoded, module.z.detach()):
        features = module.compared(z, at_z)
        health.append(health_metrics(measurement, particles, at_z, z, features, **settings))
        if measurement.truth is not None:
            truth = measurement.truth.to(particles)
            ratios.append(psnr(aligned(particles, truth, measurement.physics), truth))
    values = {f"health/{name}": value for name, value in mean_metrics(health).items()}
    if ratios:
        every = torch.stack(ratios)
        values |= {"psnr/mean": every.mean().item(), "psnr/best": every.amax(dim=1).mean().item()}
    return values


def _panels(measurement: Measurement, images: Tensor, decoded: Tensor) -> dict[str, Tensor]:
    """Pictures in [0, 1]: the particles, their decoded latents, and the particles' standard deviation."""
    grids = {
        name: make_grid(pictures.float().clamp(-1, 1) / 2 + 0.5, nrow=8)
        for name, pictures in (("particles", images), ("decoded", decoded))
    }
    alike = aligned(images, images[:1], measurement.physics).float().clamp(-1, 1)
    spread = alike.var(dim=0, correction=0).mean(dim=0).sqrt()
    return grids | {"particles_std": (spread / WHITE_STD).clamp(max=1)[None]}
