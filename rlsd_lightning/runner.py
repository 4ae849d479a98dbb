"""A run over many measurements: each in a folder of its own, none lost because of another."""

import logging
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch

from rlsd_lightning.callbacks import Progress
from rlsd_lightning.errors import InputError, NonFiniteError
from rlsd_lightning.particles import ParticleModule
from rlsd_lightning.report import write_report
from rlsd_lightning.results import read_metrics, write_summary
from rlsd_lightning.sequence import last_particles, write_sequence

__all__ = ["run_measurements"]

log = logging.getLogger(__name__)


def run_measurements(
    data,
    make_module: Callable[..., ParticleModule],
    make_trainer: Callable[[Path], L.Trainer],
    folder: Path,
    checkpoint: tuple[str, Path] | None = None,
) -> tuple[int, int]:
    """Solves every measurement that has no result yet, from its last checkpoint if there is one.

    Args:
        data: A sequence of measurements, with their ``names``; if its ``sequence`` is true, they start from each other.
        make_module: Called with a measurement.
        make_trainer: Called with a measurement's folder.
        folder: The run's folder.
        checkpoint: The name of one measurement and the checkpoint it goes on from; the others are left alone.

    Returns:
        How many measurements have a result, and how many of those asked for have none.
    """
    if checkpoint is not None and checkpoint[0] not in data.names:
        raise InputError(
            f"ckpt_path belongs to measurement '{checkpoint[0]}', which is not one of this run's ({len(data)} from "
            f"'{data.names[0]}' to '{data.names[-1]}'); give it with the data it was made from"
        )
    in_order = getattr(data, "sequence", False)
    for index, name in enumerate(data.names):
        if checkpoint is not None and name != checkpoint[0]:
            continue
        target = folder / name
        if read_metrics(target) is not None:
            log.info("%s: finished before, left as it is", name)
            continue
        try:
            measurement = data[index]
            if in_order and index:
                measurement = measurement._replace(start=last_particles(folder / data.names[index - 1]))
            last = checkpoint[1] if checkpoint else target / "checkpoints" / "last.ckpt"
            _solve(make_module(measurement), make_trainer(target), last, f"[{index + 1}/{len(data)}] ")
        except (InputError, NonFiniteError) as error:
            if len(data) == 1 and isinstance(error, InputError):
                raise
            log.error("%s: %s", name, error)
    rows = [metrics for name in data.names if (metrics := read_metrics(folder / name)) is not None]
    write_summary(folder, rows)
    if rows:
        write_report(folder, rows)
    if rows and in_order:
        write_sequence(folder, [row["name"] for row in rows])
    asked = data.names if checkpoint is None else [checkpoint[0]]
    return len(rows), sum(read_metrics(folder / name) is None for name in asked)


def _solve(module: ParticleModule, trainer: L.Trainer, checkpoint: Path, position: str) -> None:
    """Solves one measurement, from its checkpoint if there is one."""
    name = module.measurement.name
    if isinstance(trainer.progress_bar_callback, Progress):
        trainer.progress_bar_callback.position = position
    if checkpoint.is_file():
        log.info("%s: going on from %s", name, checkpoint)
    try:
        # our own checkpoints hold tensors and plain numbers only
        trainer.fit(module, ckpt_path=checkpoint if checkpoint.is_file() else None, weights_only=True)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"'{name}' does not fit into the device's memory ({str(error).splitlines()[0]}); set "
            "method.particle_chunk=1, prior.decoder_checkpointing=true or fewer particles"
        ) from error
    if module.steps_done < len(module.timesteps):
        log.error("%s: stopped after %d of %d steps", name, module.steps_done, len(module.timesteps))
