"""A run over many measurements: each in a folder of its own, none lost because of another."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import lightning as L
import torch

from rlsd_lightning.distributed.ranks import Ranks
from rlsd_lightning.engine.batch_size import largest_batch
from rlsd_lightning.engine.callbacks import Progress
from rlsd_lightning.engine.checkpoints import LAST, PREVIOUS, checkpoint_to_resume, put_aside
from rlsd_lightning.errors import InputError, NonFiniteError
from rlsd_lightning.identity import saved_samples
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.results.report import write_report
from rlsd_lightning.results.store import is_damaged, last_particles, read_metrics, write_summary
from rlsd_lightning.results.video import write_sequence

__all__ = ["run_measurements"]

log = logging.getLogger(__name__)


def run_measurements(
    data,
    make_module: Callable[[Sequence[Measurement]], ParticleModule],
    make_trainer: Callable[[Path], L.Trainer],
    folder: Path,
    checkpoint: tuple[str, Path] | None = None,
    measurements_per_batch: int | str = 1,
    ranks: Ranks | None = None,
    parallel: str = "auto",
) -> tuple[int, int]:
    """Solves every measurement that has no result yet, from its last checkpoint if there is one.

    Args:
        data: A sequence of measurements, with their ``names``; if its ``sequence`` is true, they start from each other.
        make_module: Called with the measurements of one batch.
        make_trainer: Called with the folder of one batch: the measurement's if it has one only.
        folder: The run's folder.
        checkpoint: The name of one batch's folder and the checkpoint it goes on from; the others are left alone.
        measurements_per_batch: How many are solved side by side; ``auto`` is the largest number that the device's
            memory holds.
        ranks: The processes of the run; this one alone if left out.
        parallel: How they share the work, see :func:`~rlsd_lightning.distributed.ranks.groups_of`.

    Returns:
        How many measurements have a result, and how many of those asked for have none. Every process waits for the
        others; the first writes the summary, the others don't look at the results and return zeros.

    Raises:
        InputError: If the only measurement can't be solved, or an argument is out of range.
    """
    ranks = ranks or Ranks("cpu")
    folder.mkdir(parents=True, exist_ok=True)
    runner, start = _Runner(data, make_module, make_trainer, folder, ranks), time.perf_counter()
    batches = _batches(data.names, runner.batch_size(measurements_per_batch))
    if checkpoint is not None:
        if checkpoint[0] not in batches:
            raise InputError(
                f"ckpt_path belongs to measurement '{checkpoint[0]}', which is not one of this run's ({len(data)} from "
                f"'{data.names[0]}' to '{data.names[-1]}'); give it with the data it was made from"
            )
        batches = {checkpoint[0]: batches[checkpoint[0]]}
    ranks.share("particles" if runner.in_order else parallel, len(batches))
    for label in list(batches)[ranks.group :: ranks.groups]:
        measurements = runner.unsolved(batches[label])
        runner.solve(measurements, label, checkpoint[1] if checkpoint else folder / label / "checkpoints" / LAST)
        ranks.shard.any(False)  # the results are written when the next batch may start from them
    particle_steps = ranks.sum_of_all(runner.particle_steps)
    if not ranks.is_first:
        return 0, 0
    if particle_steps:
        rate = particle_steps / (time.perf_counter() - start)
        log.info("%.3g particle-steps a second over %d processes", rate, ranks.size)
    results = {name: read_metrics(folder / name) for name in data.names}
    rows = [metrics for metrics in results.values() if metrics is not None]
    write_summary(folder, rows)
    if rows:
        write_report(folder, rows)
    if rows and runner.in_order:
        write_sequence(folder, [row["name"] for row in rows])
    asked = [data.names[index] for indices in batches.values() for index in indices]
    return len(rows), sum(results[name] is None for name in asked)


def _batches(names: Sequence[str], size: int) -> dict[str, range]:
    """The indices of every batch's measurements, by the name of its folder."""
    batches = {}
    for first in range(0, len(names), size):
        indices = range(first, min(first + size, len(names)))
        batches[names[first] if len(indices) == 1 else f"batch_{first:04d}-{indices[-1]:04d}"] = indices
    return batches


class _Runner:
    """What solving a batch takes; the arguments are those of :func:`run_measurements`."""

    def __init__(self, data, make_module: Callable, make_trainer: Callable, folder: Path, ranks: Ranks) -> None:
        self.data, self.make_module, self.make_trainer, self.folder = data, make_module, make_trainer, folder
        self.ranks = ranks
        self.in_order = getattr(data, "sequence", False)
        self.particle_steps = 0
        """How many steps of how many particles this process has taken."""

    def batch_size(self, asked: int | str) -> int:
        """How many measurements are solved side by side; that of ``auto`` stays the same when a run is resumed."""
        if asked != "auto" and (not isinstance(asked, int) or asked < 1):
            raise InputError(f"measurements_per_batch must be at least 1, or auto, got {asked}")
        if self.in_order and asked != 1:
            raise InputError(
                f"measurements_per_batch must be 1 with data.sequence=true, where each starts from the last, got {asked}"
            )
        if asked != "auto":
            return asked
        return self.ranks.broadcast(self._fitting_size() if self.ranks.is_first else None)

    def _fitting_size(self) -> int:
        chosen = self.folder / "measurements_per_batch.txt"
        if not chosen.is_file():
            device, size = self.ranks.device, 1
            # a process that asks for too much of a CPU's memory is killed rather than told, and more is not faster there
            if device.type != "cpu":
                size = largest_batch(self.make_module, self._first_readable(), len(self.data), self.make_trainer)
            log.info("measurements_per_batch=auto: %d on %s", size, device)
            chosen.write_text(f"{size}\n")
        return int(chosen.read_text())

    def _first_readable(self) -> Measurement:
        for index in range(len(self.data)):
            try:
                return self.data[index]
            except InputError as error:
                reason = error
        raise reason

    def unsolved(self, indices: range) -> list[Measurement]:
        """The measurements without a result, but for those that can't be read."""
        measurements = []
        for index in indices:
            name = self.data.names[index]
            if read_metrics(self.folder / name) is not None:
                log.info("%s: finished before, left as it is", name)
                continue
            if is_damaged(self.folder / name):
                log.warning("%s: its result is incomplete or damaged and is made again", name)
            try:
                measurement = self.data[index]
            except InputError as error:
                self._report(name, error)
                continue
            if self.in_order and index:
                measurement = measurement._replace(start=last_particles(self.folder / self.data.names[index - 1]))
            measurements.append(measurement)
        return measurements

    def solve(self, measurements: list[Measurement], label: str, checkpoint: Path) -> None:
        """Solves a batch, from its checkpoint if there is one, and without those that fail."""
        failure = None
        try:
            alone = [m.name for m in measurements] == [label]
            known = {label} if alone else _saved_names(checkpoint)  # in a folder of its own it must be its checkpoint
            self._solve([m for m in measurements if m.name in known], label, checkpoint)
            self._solve([m for m in measurements if m.name not in known], label, None)
        except InputError as error:
            if len(measurements) == 1:
                self._report(measurements[0].name, error)
                return
            failure = str(error)
        if failure is None:
            return
        # not in the handler: the error holds the frames of the failed step, and with them the memory that was short
        log.error("%s: %s; its measurements are solved one by one", label, failure)
        for m in measurements:
            if read_metrics(self.folder / m.name) is None:
                own = self.folder / m.name / "checkpoints" / LAST
                self.solve([m], m.name, own)

    def _solve(self, measurements: list[Measurement], label: str, checkpoint: Path | None) -> None:
        (self.folder / label).mkdir(exist_ok=True)
        while measurements:
            module = self.make_module(measurements)
            module.shard = self.ranks.shard
            try:
                self._fit(module, self.make_trainer(self.folder / label), checkpoint)
                return
            except NonFiniteError as error:
                log.error("%s", error)
                measurements = [m for m in measurements if m.name not in error.measurements]
                checkpoint = self.folder / label / "checkpoints" / LAST

    def _fit(self, module: ParticleModule, trainer: L.Trainer, checkpoint: Path | None) -> None:
        first = self.data.names.index(module.measurements[0].name) + 1
        last = first + len(module.measurements) - 1
        if isinstance(trainer.progress_bar_callback, Progress):
            position = f"{first}" if first == last else f"{first}-{last}"
            trainer.progress_bar_callback.position = f"[{position}/{len(self.data)}] "
        if checkpoint is not None:
            checkpoint = self._agreed_checkpoint(checkpoint, module)
        if checkpoint is not None:
            log.info("%s: going on from %s", module.name, checkpoint)
        try:
            # our own checkpoints hold tensors and plain numbers only
            trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
        except torch.OutOfMemoryError as error:
            if self.ranks.shard.size > 1:
                raise  # the other processes of the group wait for this one: they can't go on without it
            raise InputError(
                f"'{module.name}' does not fit into the device's memory ({str(error).splitlines()[0]}); set "
                "method.particle_chunk=1, prior.decoder_checkpointing=true or fewer particles or measurements_per_batch"
            ) from error
        self.particle_steps += (module.steps_done - module.resumed_at) * len(module.z[module.rows])
        if module.steps_done < len(module.timesteps):
            log.error("%s: stopped after %d of %d steps", module.name, module.steps_done, len(module.timesteps))

    def _agreed_checkpoint(self, path: Path, module: ParticleModule) -> Path | None:
        """What all processes of the group go on from."""
        chosen = checkpoint_to_resume(path, module.check_checkpoint)
        in_reserve = chosen is not None and chosen.name == PREVIOUS and path.name == LAST
        if not self.ranks.shard.any(in_reserve):
            return chosen
        if self.ranks.shard.position == 0:
            put_aside(path)
        return path.with_name(PREVIOUS)

    def _report(self, name: str, error: InputError) -> None:
        """Says what is wrong with one measurement; that ends a run which has no other."""
        if len(self.data) == 1:
            raise error
        log.error("%s: %s", name, error)


def _saved_names(checkpoint: Path) -> set[str]:
    """The measurements a checkpoint knows; none if there is no such file."""
    names: set[str] = set()
    checkpoint_to_resume(checkpoint, lambda held: names.update(saved_samples(held)))
    return names
