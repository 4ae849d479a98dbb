"""Callbacks that write the results of finished measurements."""

import logging
import time
from abc import abstractmethod
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from rlsd_lightning.errors import first_line
from rlsd_lightning.evaluation.health import health_metrics, health_settings, health_warnings
from rlsd_lightning.evaluation.scores import aligned, score
from rlsd_lightning.features import load_lpips
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.results.monitor import images_at, moments
from rlsd_lightning.results.pictures import thumbnails, write_evolution, write_images
from rlsd_lightning.results.store import mean_figures, write_metrics
from rlsd_lightning.uncertainty import DecoderError, decoder_error

__all__ = ["ImageResults", "Results"]

log = logging.getLogger(__name__)


class Results(Callback):
    """Writes the results of finished measurements, metrics.json last: it marks a finished measurement.

    Thumbnails of the moments are part of a checkpoint, so a resumed run has its whole filmstrip.

    Args:
        folder: The run's folder; each measurement has a subfolder of its name.
        features: Feature network of the diversity; what the kernel compares if left out.
        prior_diversity: Diversity of the prior's samples in these features, if known.
    """

    def __init__(
        self, folder: str | Path, features: nn.Module | None = None, prior_diversity: float | None = None
    ) -> None:
        self.folder = Path(folder)
        self.features = features
        self.prior_diversity = prior_diversity
        self._seconds_before = 0.0
        self._start = 0.0
        self._repulsion: float | None = None
        self._moments: dict[str, list[tuple[int, Tensor]]] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds(), "moments": self._moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seconds_before, self._moments = state["seconds"], state["moments"]

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._start

    def on_train_start(self, trainer: L.Trainer, pl_module: ParticleModule) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: ParticleModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        if done not in moments(len(pl_module.timesteps)):
            return
        seen = images_at(pl_module, done)
        if seen is None or seen[0].ndim != 4 or pl_module.shard.position:
            return
        for measurement, images in pl_module.each(seen[0]):
            self._moments.setdefault(measurement.name, []).append((done, thumbnails(images)))

    def on_train_end(self, trainer: L.Trainer, pl_module: ParticleModule) -> None:
        if pl_module.steps_done < len(pl_module.timesteps):
            return  # stopped early: not finished
        seconds = self._seconds() / len(pl_module.measurements)
        images, decoded = pl_module.pictures()
        self._repulsion = pl_module.repulsion_ratio()
        if pl_module.shard.position:
            return  # the first process of a group writes
        written = []
        for measurement, x, at_z, z in pl_module.each(images, decoded, pl_module.z.detach()):
            folder = self.folder / measurement.name
            folder.mkdir(parents=True, exist_ok=True)
            metrics = {
                "name": measurement.name,
                **self.results(folder, pl_module, measurement, x, at_z, z),
                "num_particles": pl_module.num_particles,
                "num_steps": len(pl_module.timesteps),
                "seconds": round(seconds, 3),
            }
            write_metrics(folder, metrics)
            written.append({f"final/{name}": value for name, value in metrics.items() if isinstance(value, float)})
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(dict(pl_module.hparams), mean_figures(written))

    @abstractmethod
    def results(
        self,
        folder: Path,
        pl_module: ParticleModule,
        measurement: Measurement,
        images: Tensor,
        decoded: Tensor,
        z: Tensor,
    ) -> dict[str, Any]:
        """Write the files of one measurement's particles to its folder; returns their figures."""


class ImageResults(Results):
    """Writes pictures, tensors, figures, health warnings and a filmstrip of image-shaped particles."""

    def results(
        self,
        folder: Path,
        pl_module: ParticleModule,
        measurement: Measurement,
        images: Tensor,
        decoded: Tensor,
        z: Tensor,
    ) -> dict[str, Any]:
        physics, truth = measurement.physics, measurement.truth
        shared = _shared_error(pl_module, measurement, images, decoded)
        write_images(folder, images, z, measurement, None if shared is None else shared.variance)
        if measurement.name in self._moments:
            write_evolution(folder / "filmstrip.png", self._moments[measurement.name])
        features = None if self.features is None else self.features.to(images.device)
        with torch.no_grad():
            compared = pl_module.compared(z, aligned(images, images[:1], physics), features)
        settings = health_settings(pl_module) | {"repulsion_ratio": self._repulsion}
        metrics = health_metrics(measurement, images, decoded, z, compared, **settings)
        warnings = health_warnings(metrics, self.prior_diversity, pl_module.hparams)
        for sentence in warnings:
            log.warning("%s: %s", measurement.name, sentence)
        truth = None if truth is None else truth.to(images)
        figures = score(images, measurement.y, physics, truth, compared, load_lpips())
        return figures | {"decoder_error": None if shared is None else shared.std, "warnings": warnings}


def estimated_error(
    module: ParticleModule, measurement: Measurement, images: Tensor, decoded: Tensor
) -> DecoderError | None:
    """The decoder's error, estimated from a measurement's particles; None where they are not proximal steps."""
    variance = module.decoder_std**2
    if not module.has_proximal_results or module.prior.latent_shape == module.prior.image_shape or images.ndim != 4:
        return None
    # the same whatever the processes, which round differently
    settings = {"at_once": module.particle_chunk or module.num_particles, "seed": module.seed}
    weight = module.proximal.mu(measurement, variance)
    return decoder_error(measurement, images, decoded, variance, weight, key=measurement.noise_key, **settings)


def _shared_error(
    module: ParticleModule, measurement: Measurement, images: Tensor, decoded: Tensor
) -> DecoderError | None:
    """The particles' shared error; None if it can't be estimated, as a failed estimate must not cost the result."""
    try:
        shared = estimated_error(module, measurement, images, decoded)
    except Exception as error:  # noqa: BLE001  an operator may refuse a batch, or memory run out
        reason = f"{type(error).__name__}: {first_line(error)}"
    else:
        if shared is None or shared.variance.isfinite().all():
            return shared
        reason = "the operator is not finite near the decoded images"
    log.warning("%s: std.png leaves out the decoder's error, which can't be estimated (%s)", measurement.name, reason)
    return None
