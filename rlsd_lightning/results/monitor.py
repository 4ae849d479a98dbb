"""Curves and pictures in TensorBoard, and curves in a table."""

import csv
import io
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch import Tensor
from torchvision.utils import make_grid

from rlsd_lightning.evaluation.health import health_metrics
from rlsd_lightning.evaluation.scores import Solved, aligned
from rlsd_lightning.functional.metrics import psnr
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.results.result import WHITE_STD
from rlsd_lightning.results.store import mean_figures, table, write_atomically

__all__ = ["Monitor", "ResumableCSVLogger", "log_moment"]


CHARTS = {
    "run": {
        "terms of the loss": ["Multiline", ["loss/(?!total$|refine_)"]],
        "PSNR": ["Multiline", ["psnr/"]],
        "terms of the refinement": ["Multiline", ["loss/refine_"]],
    }
}
"""Charts with several curves each, in TensorBoard's Custom Scalars: patterns of the curves' names."""


class Monitor(Callback):
    """Logs the speed, puts the terms of the loss on one chart, and lets a resumed run discard what a killed one logged after its checkpoint.

    A step's number on every axis is its index, as on Lightning's own curves.
    """

    def __init__(self) -> None:
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
            logger.experiment.add_custom_scalars(CHARTS)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: ParticleModule, batch: Any, batch_idx: int) -> None:
        self._next_step = batch_idx + 1
        if self._last_timing is None:
            self._last_timing = (batch_idx, time.perf_counter())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: ParticleModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not pl_module.is_log_step(batch_idx):
            return
        done = batch_idx + 1
        step, start = self._last_timing
        now = time.perf_counter()
        seconds = (now - start) / (done - step)
        self.log("step", float(batch_idx))  # otherwise Lightning adds a curve of the epoch, which is always 0
        self.log("seconds_per_step", seconds)
        self.log("particle_steps_per_second", len(pl_module.z) / seconds)
        self._last_timing = (done, now)


class ResumableCSVLogger(CSVLogger):
    """CSVLogger that keeps what a resumed run logged before; Lightning's own deletes the file.

    Args:
        save_dir: Folder of metrics.csv.
        name: Name of a subfolder; none by default, like ``version``.
        flush_logs_every_n_steps: Rows that are written together. 1: a killed run keeps all before its checkpoint.
    """

    def __init__(
        self, save_dir: str | Path, name: str = "", version: str = "", flush_logs_every_n_steps: int = 1
    ) -> None:
        super().__init__(save_dir, name, version, flush_logs_every_n_steps=flush_logs_every_n_steps)

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir)
        return self._experiment


class _Writer(ExperimentWriter):
    """Writer whose first logged step replaces the file's rows from that step on."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self._has_begun = False

    def _check_log_dir_exists(self) -> None:
        """Keep earlier files, which Lightning deletes here."""

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        if not self._has_begun:
            self._keep_before(step or 0)
            self._has_begun = True
        super().log_metrics(metrics_dict, step)

    def _keep_before(self, step: int) -> None:
        file = Path(self.metrics_file_path)
        if not file.is_file():
            return
        text = file.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # a killed run may have left half a row
        reader = csv.DictReader(io.StringIO(whole))
        rows = [row for row in reader if float(row.get("step") or "inf") < step]
        if rows:
            self.metrics_keys = list(reader.fieldnames)
            write_atomically(file, table(self.metrics_keys, rows))
        else:
            file.unlink()


def log_moment(
    trainer: L.Trainer, module: ParticleModule, every: list[Solved], step: int, repulsion_ratio: float | None
) -> None:
    """Log health metrics, PSNR and pictures of all measurements; with several, curves are their means."""
    if not trainer.loggers:
        return
    # self.log would repeat the values until the next moment
    values = _figures(module, every, repulsion_ratio)
    for logger in trainer.loggers:
        logger.log_metrics(values, step=step)
    for logger in _tensorboards(trainer):
        for solved in every:
            # what stands before the slash are pictures side by side
            beside = solved.measurement.name if len(every) > 1 else "pictures"
            for name, picture in _panels(solved).items():
                logger.experiment.add_image(f"{beside}/{name}", picture, step)


def _tensorboards(trainer: L.Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


@torch.no_grad()
def _figures(module: ParticleModule, every: list[Solved], repulsion_ratio: float | None) -> dict[str, float]:
    """Health metrics and, where a truth is known, PSNR: means over measurements."""
    health: list[dict[str, float | None]] = []
    ratios: list[Tensor] = []
    for solved in every:
        features = module.particle_features(solved.z, solved.decoded)
        health.append(health_metrics(module, solved, features, repulsion_ratio)._asdict())
        if solved.measurement.truth is not None:
            truth = solved.measurement.truth.to(solved.images)
            ratios.append(psnr(aligned(solved.images, truth, solved.measurement.physics), truth))
    values = {f"health/{name}": value for name, value in mean_figures(health).items()}
    if ratios:
        every_ratio = torch.stack(ratios)
        values |= {"psnr/mean": every_ratio.mean().item(), "psnr/best": every_ratio.amax(dim=1).mean().item()}
    return values


def _panels(solved: Solved) -> dict[str, Tensor]:
    """Pictures in [0, 1]: the particles with their standard deviation as the last, and their decoded latents."""
    alike = aligned(solved.images, solved.images[:1], solved.measurement.physics).float().clamp(-1, 1)
    spread = alike.var(dim=0, correction=0).mean(dim=0).sqrt() / WHITE_STD
    images, decoded = (pictures.float().clamp(-1, 1) / 2 + 0.5 for pictures in (solved.images, solved.decoded))
    beside = torch.cat([images, spread.clamp(max=1).expand_as(images[:1])])
    return {"particles_and_std": make_grid(beside, nrow=9), "decoded": make_grid(decoded, nrow=9)}
