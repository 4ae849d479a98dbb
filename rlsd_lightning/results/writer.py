"""Callbacks that make and write the results of finished measurements."""

import logging
import math
import time
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from rlsd_lightning.errors import first_line
from rlsd_lightning.evaluation.causes import cause_warnings
from rlsd_lightning.evaluation.checks import truth_free_checks
from rlsd_lightning.evaluation.familiarity import unknown_picture
from rlsd_lightning.evaluation.health import HealthMetrics, health_metrics, health_warnings
from rlsd_lightning.evaluation.scores import Solved, aligned, score
from rlsd_lightning.features import load_lpips
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.operators.likelihood import data_fit
from rlsd_lightning.results.grid import FILMSTRIP_ROWS, thumbnails
from rlsd_lightning.results.monitor import log_moment
from rlsd_lightning.results.result import Result, image_result
from rlsd_lightning.results.store import mean_figures
from rlsd_lightning.uncertainty import DecoderError, decoder_error, least_variance

__all__ = ["MOMENTS", "ImageResults", "PointResults", "Results", "moments"]

MOMENTS = 10
"""Moments of a run with pictures: enough to see the particles form, few enough to scroll through."""

log = logging.getLogger(__name__)


def moments(num_steps: int) -> list[int]:
    """Numbers of completed steps at which pictures are taken, evenly spread; the last is ``num_steps``."""
    return sorted({-(-num_steps * (index + 1) // MOMENTS) for index in range(MOMENTS)})


class Results(Callback):
    """Makes the results of finished measurements, and writes them.

    Args:
        folder: The run's folder; each measurement has a subfolder of its name. None: nothing is written, and the results
            are in ``finished``, in every process.
        features: Feature network of the diversity; what the kernel compares if left out.
        prior_diversity: Diversity of the prior's samples in these features, if known.
        checks: Whether to make the checks that need no truth; they take as long as two steps.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        features: nn.Module | None = None,
        prior_diversity: float | None = None,
        checks: bool = True,
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        self.features = features
        self.prior_diversity = prior_diversity
        self.checks = checks
        self.finished: list[Result] = []
        self._seconds_before = 0.0
        self._start = 0.0
        self._repulsion: float | None = None
        self._moments: dict[str, list[tuple[int, Tensor]]] = {}
        self._unknown: dict[str, str] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds(), "moments": self._moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seconds_before, self._moments = state["seconds"], state["moments"]

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._start

    def on_train_start(self, trainer: L.Trainer, pl_module: ParticleModule) -> None:
        self._start = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: ParticleModule) -> None:
        if pl_module.steps_done < len(pl_module.timesteps):
            return  # stopped early: not finished
        seconds = self._mean_seconds(pl_module) / len(pl_module.measurements)
        images, decoded = pl_module.final_images()
        self._repulsion = pl_module.repulsion_ratio()
        is_first = pl_module.shard.position == 0
        if self.folder is not None and not is_first:
            return
        figures = []
        for solved in map(Solved._make, pl_module.each(images, decoded, pl_module.z.detach())):
            made = self.result(pl_module, solved)
            counts = {"num_particles": pl_module.num_particles, "num_steps": len(pl_module.timesteps)}
            metrics = {"name": solved.measurement.name, **made.metrics, **counts, "seconds": round(seconds, 3)}
            made = replace(made, metrics=metrics, is_first=is_first)
            if self.folder is None:
                self.finished.append(made)
            else:
                self.write(self.folder / solved.measurement.name, pl_module, made)
            figures.append({f"final/{name}": value for name, value in metrics.items() if isinstance(value, float)})
        last = pl_module.steps_done - 1
        for logger in trainer.loggers if is_first else ():
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(dict(pl_module.hparams), mean_figures(figures), last)
            else:
                logger.log_metrics(mean_figures(figures), last)

    def _mean_seconds(self, module: ParticleModule) -> float:
        """Mean over the processes, so that all have the same result."""
        mine = torch.tensor(self._seconds(), dtype=torch.float64)
        return module.shard.sum(mine).item() / module.shard.size

    def checked(
        self, module: ParticleModule, solved: Solved, health: HealthMetrics | None = None
    ) -> list[dict[str, Any]]:
        """Checks that need no truth, as metrics.json has them; none, and a warning, if memory or an operator forbids."""
        if not self.checks:
            return []
        try:
            return [check._asdict() for check in truth_free_checks(module, solved, health, self.prior_diversity)]
        except Exception as error:  # noqa: BLE001  an operator may refuse a batch, or memory run out
            reason = f"{type(error).__name__}: {first_line(error)}"
            log.warning("%s: the checks without a truth are left out (%s)", solved.measurement.name, reason)
            return []

    @abstractmethod
    def result(self, module: ParticleModule, solved: Solved) -> Result:
        """Result of one measurement's particles."""

    def write(self, folder: Path, module: ParticleModule, result: Result) -> None:
        """Write the files of a result to its folder."""
        result.save(folder)


class PointResults(Results):
    """Results of particles that are no images, such as points in the plane."""

    def result(self, module: ParticleModule, solved: Solved) -> Result:
        points, measurement = solved.images.detach().float().cpu(), solved.measurement
        return Result(
            particles=points,
            mean=points.mean(dim=0),
            std=points.std(dim=0, correction=0),
            decoded=solved.decoded.detach().float().cpu(),
            metrics=data_fit(measurement.physics, solved.images, measurement.y)
            | {"checks": self.checked(module, solved)},
            tensors={"x": points, "z": solved.z.detach().cpu(), "y": measurement.y.cpu()},
        )


class ImageResults(Results):
    """Results of images: pictures, tensors, figures and health warnings; shows ten moments of the run.

    The moments are in TensorBoard, if the Trainer logs to it, and in a filmstrip. Its thumbnails are part of a
    checkpoint, so a resumed run has the whole filmstrip. Arguments are those of :class:`Results`.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: ParticleModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.folder is not None and pl_module.shard.position:
            return
        for measurement in pl_module.measurements:  # before the steps, which a user may want to save
            found = None if measurement.truth is None else unknown_picture(pl_module.prior, measurement)
            if found:
                self._unknown[measurement.name] = found
                log.warning("%s: %s", measurement.name, found)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: ParticleModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done, last = batch_idx + 1, len(pl_module.timesteps)
        if done not in moments(last):
            return
        repulsion = pl_module.repulsion_ratio()
        seen = pl_module.final_images() if done == last else pl_module.intermediate_images()
        if seen is None or (self.folder is not None and pl_module.shard.position):
            return
        every = [Solved._make(each) for each in pl_module.each(*seen, pl_module.z.detach())]
        for solved in every:
            shown = thumbnails(solved.images[:FILMSTRIP_ROWS])
            self._moments.setdefault(solved.measurement.name, []).append((done, shown))
        if not pl_module.shard.position:
            log_moment(trainer, pl_module, every, batch_idx, repulsion)

    def result(self, module: ParticleModule, solved: Solved) -> Result:
        measurement, images = solved.measurement, solved.images
        shared = estimated_error(module, solved)
        features = None if self.features is None else self.features.to(images.device)
        with torch.no_grad():
            compared = module.particle_features(solved.z, aligned(images, images[:1], measurement.physics), features)
        metrics = health_metrics(module, solved, compared, self._repulsion)
        causes, of_prior = cause_warnings(module, solved), module.prior.warnings
        unknown = self._unknown.get(measurement.name)
        if measurement.truth is None and not causes:
            unknown = unknown_picture(module.prior, measurement, images)
        causes = [unknown, *causes] if unknown else causes
        warnings = causes + health_warnings(
            metrics, self.prior_diversity, module.hparams, with_remedies=not (causes or of_prior)
        )
        for sentence in warnings[measurement.name in self._unknown :]:  # which was said at the start
            log.warning("%s: %s", measurement.name, sentence)
        figures = score(solved, compared, load_lpips())
        figures |= {"decoder_error": None if shared is None else shared.std, "warnings": of_prior + warnings}
        figures["checks"] = self.checked(module, solved, metrics)
        moments = self._moments.get(measurement.name, [])
        return image_result(solved, None if shared is None else shared.variance, figures, moments=moments)


def estimated_error(module: ParticleModule, solved: Solved) -> DecoderError | None:
    """The decoder's error, estimated from proximal steps; None, and a warning, if the estimate fails."""
    if not module.has_proximal_results or module.prior.latent_shape == module.prior.image_shape:
        return None
    measurement, variance = solved.measurement, module.decoder_std**2
    try:
        settings = {
            # the same for any number of processes, which round differently
            "at_once": module.particle_chunk or module.num_particles,
            "seed": module.seed,
            "least_var": least_variance(measurement, math.prod(module.prior.latent_shape), variance),
            "largest_var": max(variance, module.prior.calibration.largest_error**2),
        }
        weight = module.proximal.mu(measurement, variance)
        shared = decoder_error(
            measurement, solved.images, solved.decoded, variance, weight, key=measurement.noise_key, **settings
        )
    except Exception as error:  # noqa: BLE001  an operator may refuse a batch, or memory run out
        reason = f"{type(error).__name__}: {first_line(error)}"
    else:
        if shared is None or shared.variance.isfinite().all():
            return shared
        reason = "the operator is not finite near the decoded images"
    log.warning("%s: std.png leaves out the decoder's error, which can't be estimated (%s)", measurement.name, reason)
    return None
