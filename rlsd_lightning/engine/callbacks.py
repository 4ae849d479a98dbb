"""Everything a run shows or writes while it goes: curves, pictures, results, progress."""

import logging
import time
from abc import abstractmethod
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torchvision.utils import make_grid

from rlsd_lightning.errors import NonFiniteError
from rlsd_lightning.evaluation.health import DECODER_STD, Signs, advice, means, signs
from rlsd_lightning.features import load_lpips
from rlsd_lightning.functional.metrics import psnr
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.results.writer import aligned, means_where_known, score, write_images, write_metrics
from rlsd_lightning.uncertainty import DecoderError

__all__ = ["FiniteGuard", "ImageResults", "Monitor", "Progress", "Results"]

log = logging.getLogger(__name__)


class FiniteGuard(Callback):
    """Stops a measurement whose loss or particles are no longer finite, before they reach a checkpoint.

    Args:
        every_n_steps: Steps between two looks (each waits for the device); must divide the checkpoints' interval.

    Raises:
        NonFiniteError: When it stops one.
    """

    def __init__(self, every_n_steps: int = 25) -> None:
        self.every_n_steps = every_n_steps

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: ParticleModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        if done % self.every_n_steps and done != len(pl_module.timesteps):
            return
        lost = pl_module.not_finite()
        if lost:
            raise NonFiniteError(
                f"particles of '{', '.join(lost)}' are no longer finite at step {done}; lower method.lr_z, "
                "method.zeta or method.gamma, or use precision 32-true",
                lost,
            )


class Monitor(Callback):
    """Curves, pictures and signs of health in TensorBoard as the particles evolve.

    The signs are those of :class:`~rlsd_lightning.evaluation.health.Signs`, with the diversity in what the kernel compares.

    Args:
        every_n_steps: Steps between two pictures, each of which costs a decode and a proximal step. With several measurements the curves
            are their means.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps
        self._since: tuple[int, float] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: ParticleModule) -> None:
        self._since = (trainer.fit_loop.epoch_loop.batch_progress.current.completed, time.perf_counter())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: ParticleModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        if done % trainer.log_every_n_steps == 0:
            step, start = self._since
            now = time.perf_counter()
            seconds = (now - start) / max(1, done - step)
            self.log("seconds_per_step", seconds)
            self.log("particle_steps_per_second", len(pl_module.z) / seconds)
            self._since = (done, now)
        if done % self.every_n_steps and done != len(pl_module.timesteps):
            return
        images, decoded = pl_module.pictures()
        repulsion = pl_module.repulsion_ratio()
        if images.ndim != 4 or pl_module.shard.position:
            return
        ratios, seen = [], []
        for measurement, particles, at_z, z in pl_module.each(images, decoded, pl_module.z.detach()):
            with torch.no_grad():
                compared = pl_module.compared(z, at_z)
            seen.append(_signs(pl_module, measurement, particles, at_z, z, compared, repulsion))
            if measurement.truth is not None:
                truth = measurement.truth.to(particles)
                ratios.append(psnr(aligned(particles, truth, measurement.physics), truth))
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    _add_pictures(logger, pl_module, measurement, particles, at_z, done)
        # self.log would repeat them until the next picture
        values = {f"diagnosis/{name}": value for name, value in means(seen).items()}
        if ratios:
            for name, reduce in (("mean", torch.mean), ("best", torch.max)):
                values[f"psnr/{name}"] = torch.stack([reduce(each) for each in ratios]).mean().item()
        for logger in trainer.loggers:
            logger.log_metrics(values, step=done)


def _signs(
    module: ParticleModule,
    measurement: Measurement,
    images: Tensor,
    decoded: Tensor,
    z: Tensor,
    features: Tensor,
    repulsion: float | None,
) -> Signs:
    decoder_std = module.hparams.get("decoder_std", DECODER_STD)
    return signs(measurement, images, decoded, z, features, module.prior.white_latents, repulsion, decoder_std)


def _shared_error(
    module: ParticleModule, measurement: Measurement, images: Tensor, decoded: Tensor
) -> DecoderError | None:
    """The error that the particles share; a finished result is worth more than its map, so that nothing is raised."""
    try:
        shared = module.decoder_error(measurement, images, decoded)
    # whatever an operator raises that is given several measurements, or a full memory
    except Exception as error:  # noqa: BLE001
        log.warning(
            "%s: std.png has the particles' spread alone, as the decoder's error can't be estimated (%s: %s)",
            measurement.name,
            type(error).__name__,
            (str(error).splitlines() or [""])[0],
        )
        return None
    if shared is not None and not shared.variance.isfinite().all():
        log.warning(
            "%s: std.png has the particles' spread alone, as the operator is not finite near the decoded images",
            measurement.name,
        )
        return None
    return shared


def _add_pictures(
    logger: TensorBoardLogger,
    module: ParticleModule,
    measurement: Measurement,
    images: Tensor,
    decoded: Tensor,
    step: int,
) -> None:
    label = f"/{measurement.name}" if len(module.measurements) > 1 else ""
    for name, pictures in (("particles", images), ("decoded", decoded)):
        grid = make_grid(pictures.float().clamp(-1, 1) / 2 + 0.5, nrow=8)
        logger.experiment.add_image(name + label, grid, step)
    alike = aligned(images, images[:1], measurement.physics).float().clamp(-1, 1)
    spread = alike.var(dim=0, correction=0).mean(dim=0).sqrt()
    # of the particles alone, on the scale of std.png, where full white is a quarter of the range
    logger.experiment.add_image(f"particles_std{label}", (2 * spread).clamp(max=1)[None], step)


class Progress(TQDMProgressBar):
    """One bar that names the measurement and how many there are.

    Args:
        refresh_rate: Steps between two updates.
    """

    def __init__(self, refresh_rate: int = 5) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=True)
        self.position = ""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: ParticleModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self.train_progress_bar.set_description(f"{self.position}{pl_module.name}")

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {name.removeprefix("loss/"): value for name, value in metrics.items()}


class Results(Callback):
    """Writes the measurements' results once they are finished.

    particles.safetensors comes first and metrics.json last: one with both is done.

    Args:
        folder: The run's folder; each measurement has one of its own in it, of its name.
        features: What the particles' diversity is measured in; what the kernel compares if left out.
        prior_diversity: Diversity of the prior's own samples in these features, if it is known.
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

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self._seconds()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._seconds_before = state["seconds"]

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._start

    def on_train_start(self, trainer: L.Trainer, pl_module: ParticleModule) -> None:
        self._start = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: ParticleModule) -> None:
        if pl_module.steps_done < len(pl_module.timesteps):
            return  # the Trainer was told to stop early: not finished
        count = len(pl_module.measurements)
        seconds = self._seconds() / count
        images, decoded = pl_module.pictures()
        self._repulsion = pl_module.repulsion_ratio()
        if pl_module.shard.position:
            return  # the first of the group writes
        written = []
        for measurement, x, at_z, z in pl_module.each(images, decoded, pl_module.z):
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
                logger.log_hyperparams(dict(pl_module.hparams), means_where_known(written))

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
        """Writes whatever belongs to the particles of one measurement to its folder and returns their figures."""


class ImageResults(Results):
    """Pictures, tensors and figures of image-shaped particles, and what has gone wrong with them.

    ``warnings`` in metrics.json has the sentences of :func:`~rlsd_lightning.evaluation.health.advice`, which are logged too.
    """

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
        features = None if self.features is None else self.features.to(images.device)
        with torch.no_grad():
            compared = pl_module.compared(z, aligned(images, images[:1], physics), features)
        truth = None if truth is None else truth.to(images)
        seen = _signs(pl_module, measurement, images, decoded, z.detach(), compared, self._repulsion)
        said = advice(seen, self.prior_diversity, pl_module.hparams)
        for sentence in said:
            log.warning("%s: %s", measurement.name, sentence)
        figures = score(images, measurement.y, physics, truth, compared, load_lpips())
        return figures | {"decoder_error": None if shared is None else shared.std, "warnings": said}
