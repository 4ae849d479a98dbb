"""A run over many measurements: each in a folder of its own, none lost because of another."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import lightning as L

from rlsd_lightning.distributed.agreement import together
from rlsd_lightning.distributed.processes import Processes
from rlsd_lightning.engine.batch_size import batch_size, batches_of, by_size, label_of
from rlsd_lightning.engine.checkpoints import LAST, PREVIOUS, checkpoint_to_resume, put_aside
from rlsd_lightning.engine.chosen import chosen, keep_chosen
from rlsd_lightning.engine.signals import stop_if_asked
from rlsd_lightning.errors import FailedError, InputError, NonFiniteError, PeerError
from rlsd_lightning.identity import saved_samples
from rlsd_lightning.measurement import Measurement, Measurements
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.results.report import write_report
from rlsd_lightning.results.store import (
    clear_failure,
    in_short,
    is_damaged,
    last_particles,
    read_metrics,
    write_failure,
    write_failures,
    write_summary,
)
from rlsd_lightning.results.video import write_sequence

__all__ = ["run_measurements"]

log = logging.getLogger(__name__)

SAID_BY_ALL = ("engine", "data", "images", "operators", "reading")
"""Parts of the package whose log lines are the same in all processes of a group."""

Value = TypeVar("Value")


def run_measurements(
    data: Measurements,
    make_module: Callable[[Sequence[Measurement]], ParticleModule],
    make_trainer: Callable[..., L.Trainer],
    folder: Path,
    checkpoint: tuple[str, Path] | None = None,
    measurements_per_batch: int | str = 1,
    processes: Processes | None = None,
    parallel: str = "auto",
) -> tuple[int, int]:
    """Solve the measurements without a result, each from its last checkpoint if there is one.

    Whatever reading or solving one measurement raises is its failure only, and the others go on.

    Args:
        make_module: New module of some measurements; the keyword ``particle_chunk`` is given where memory was too small.
        make_trainer: New Trainer that writes to the folder of a batch. Keywords: ``position``, the batch's place in the
            data for the progress bar; ``batches`` left for this process; ``probe``, one step without callbacks.
        checkpoint: Name of one batch's folder, and the checkpoint to resume it from; the other batches are left alone.
        measurements_per_batch: Number of measurements solved side by side; ``auto`` fills the device's memory.
        processes: Processes of the run; by default this one alone. ``parallel`` says how they share the work, see
            :func:`~rlsd_lightning.distributed.processes.groups_of`.

    Returns:
        Number of measurements with a result, and of those asked for without one; zeros in all processes but the first.

    Raises:
        InputError: If the only measurement can't be solved, or an argument is out of range.
        PeerError: If the only measurement can't be solved, in all processes but the first.
        LostError: If another process is lost.
        StoppedError: If a signal has come.
    """
    run = _Run(data, make_module, make_trainer, folder, processes or Processes("cpu"))
    batches = batches_of(data.names, run.batch_size(measurements_per_batch))
    if checkpoint is not None:
        if checkpoint[0] not in batches:
            raise InputError(
                f"ckpt_path belongs to measurement '{checkpoint[0]}', which is not one of this run's ({len(data)} from "
                f"'{data.names[0]}' to '{data.names[-1]}'); give it with the data it was made from"
            )
        batches = {checkpoint[0]: batches[checkpoint[0]]}
    run.solve_all(batches, parallel, checkpoint and checkpoint[1])
    finished, missing = run.write_summary(batches) if run.processes.is_first else (0, 0)
    if missing:
        stop_if_asked("before every measurement had a result")
    return finished, missing


class _Run:
    """The state of a run; the arguments are those of :func:`run_measurements`."""

    def __init__(
        self, data: Measurements, make_module: Callable, make_trainer: Callable, folder: Path, processes: Processes
    ) -> None:
        self.data, self.make_module, self.make_trainer, self.folder = data, make_module, make_trainer, folder
        self.processes = processes
        self.batches, self.particles_at_once = 1, 1  # batches left; the last fit's particle_chunk
        self.forced = {}  # settings of the method after a full memory
        self.particle_steps = 0  # steps of this process, each times its particles; in the end those of all processes
        self.start = time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)

    def batch_size(self, asked: int | str) -> int:
        """Number of measurements solved side by side; that of ``auto`` is kept for a resumed run."""
        if asked != "auto" and (not isinstance(asked, int) or asked < 1):
            raise InputError(f"measurements_per_batch must be at least 1, or auto, got {asked}")
        if self.data.sequence and asked != 1:
            raise InputError(
                f"measurements_per_batch must be 1 with sequence=true, where each starts from the last, got {asked}"
            )
        if asked != "auto":
            return asked
        size = None
        if self.processes.is_first:
            size = batch_size(self.folder, self.processes.device, self.make_module, self.data, self.make_trainer)
        return self.processes.broadcast(size)

    def solve_all(self, batches: dict[str, range], parallel: str, checkpoint: Path | None) -> None:
        """Solve the batches of this process's group, and wait for the other groups."""
        processes = self.processes
        processes.form_groups("particles" if self.data.sequence else parallel, len(batches))
        if processes.shard.position:
            for part in SAID_BY_ALL:  # the first process of the group says it once
                logging.getLogger(f"rlsd_lightning.{part}").setLevel(logging.CRITICAL)
        chunk = processes.broadcast(chosen(self.folder, "particle_chunk") if processes.is_first else None)
        self.forced = {"particle_chunk": chunk} if chunk else {}
        mine = list(batches)[processes.group :: processes.groups]
        for done, label in enumerate(mine):
            stop_if_asked(f"before '{label}'", processes.shard)
            self.batches = len(mine) - done
            self.solve(self.unsolved(batches[label]), label, checkpoint or self.folder / label / "checkpoints" / LAST)
            processes.shard.agree()  # the next batch may start from these results
        self.particle_steps = processes.sum(self.particle_steps, partial(stop_if_asked, "while it waited"))

    def unsolved(self, indices: range) -> list[Measurement]:
        """Measurements without a result that can be read."""
        measurements = []
        for index in indices:
            name = self.data.names[index]
            if read_metrics(self.folder / name) is not None:
                log.info("%s: finished before, left as it is", name)
                continue
            if is_damaged(self.folder / name):
                log.warning("%s: its result is incomplete or damaged and is made again", name)
            try:
                measurements.append(self._together(partial(self._read, index)))
            except FailedError as failure:
                self._report(name, failure)
        return measurements

    def _read(self, index: int) -> Measurement:
        clear_failure(self.folder, index)
        measurement = self.data[index]
        if not (self.data.sequence and index):
            return measurement
        previous = self.data.names[index - 1]
        start, why = last_particles(self.folder / previous), "no result"
        if start is not None and measurement.image_shape not in (None, tuple(start[1].shape[1:])):
            start, why = None, "another size"
        if start is None:
            said = "%s: starts from noise, as the previous measurement '%s' has %s"
            log.warning(said, measurement.name, previous, why)
        return measurement._replace(start=start)

    def _together(self, work: Callable[[], Value], folder: Path | None = None) -> Value:
        """Do work in all processes of the group; raise a FailedError in all if it fails in one."""
        return together(self.processes.shard, work, folder, is_last=len(self.data) == 1)

    def solve(self, measurements: list[Measurement], label: str, checkpoint: Path) -> None:
        """Solve a batch, from its checkpoint if there is one; in parts if it fails, or if images have several sizes."""
        if not measurements:
            return
        sizes = by_size(measurements)
        was_split = label not in self.data.names and (self.folder / f"{label}_{next(iter(sizes))}").is_dir()
        if len(sizes) > 1 or was_split:
            for own, part in ((f"{label}_{size}", part) for size, part in sizes.items()):
                self.solve(part, own, self.folder / own / "checkpoints" / LAST)
            return
        try:
            self._together(partial(self._fit_batch, measurements, label, checkpoint), self.folder)
            return
        except FailedError as error:
            failure = error
        if len(measurements) == 1:
            if failure.out_of_memory and self.particles_at_once > 1:
                self._halve_chunk(label)
                self.solve(measurements, label, checkpoint)
            else:
                self._report(measurements[0].name, failure)
            return
        size = (len(measurements) + 1) // 2 if failure.out_of_memory else 1
        how = "it is solved in two halves" if failure.out_of_memory else "its measurements are solved one by one"
        log.warning("%s: %s; %s", label, failure, how)
        for first in range(0, len(measurements), size):
            part = [m for m in measurements[first : first + size] if read_metrics(self.folder / m.name) is None]
            if part:
                own = label_of(self.data.names, [self.data.names.index(m.name) for m in part])
                self.solve(part, own, self.folder / own / "checkpoints" / LAST)

    def _halve_chunk(self, label: str) -> None:
        """Let networks see half as many particles at a time from now on, and in a resumed run."""
        before, chunk = self.particles_at_once, (self.particles_at_once + 1) // 2
        self.forced = {"particle_chunk": chunk}
        log.warning("%s: memory is too small for %d particles at a time; from now on %d", label, before, chunk)
        if self.processes.shard.position == 0:
            keep_chosen(self.folder, "particle_chunk", chunk)

    def _fit_batch(self, measurements: list[Measurement], label: str, checkpoint: Path) -> None:
        """Fit the measurements that the checkpoint holds from there, and the others from the start."""
        alone = [m.name for m in measurements] == [label]
        known = {label} if alone else set()  # a lone one's must be its own
        if not alone:
            checkpoint_to_resume(checkpoint, lambda held: known.update(saved_samples(held)))
        self._fit_finite([m for m in measurements if m.name in known], label, checkpoint)
        self._fit_finite([m for m in measurements if m.name not in known], label, None)

    def _fit_finite(self, measurements: list[Measurement], label: str, checkpoint: Path | None) -> None:
        """Fit measurements together; without those that diverge, the others are fitted again from their checkpoint."""
        (self.folder / label).mkdir(exist_ok=True)
        while measurements:
            ends = dict.fromkeys(str(self.data.names.index(measurements[i].name) + 1) for i in (0, -1))
            position = f"[{'-'.join(ends)}/{len(self.data)}] "
            try:
                trainer = self.make_trainer(self.folder / label, position=position, batches=self.batches)
                module = self.make_module(measurements, **self.forced)
                self.particles_at_once = module.particle_chunk or len(module.z)
                self._fit(module, trainer, checkpoint)
                return
            except NonFiniteError as error:
                log.error("%s", error)
                for name in error.measurements:
                    self._keep_failure(name, str(error))
                measurements = [m for m in measurements if m.name not in error.measurements]
                checkpoint = self.folder / label / "checkpoints" / LAST

    def _fit(self, module: ParticleModule, trainer: L.Trainer, checkpoint: Path | None) -> None:
        if checkpoint is not None:
            checkpoint = self._agreed_checkpoint(checkpoint, module)
        if checkpoint is not None:
            log.info("%s: going on from %s", module.name, checkpoint)
        # our own checkpoints hold tensors and plain numbers only
        trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
        self.particle_steps += (module.steps_done - module.resumed_at) * len(module.z[module.rows])
        if module.steps_done < len(module.timesteps):
            log.error("%s: stopped after %d of %d steps", module.name, module.steps_done, len(module.timesteps))
        elif len(self.data) > 1 and self.processes.shard.position == 0:
            for measurement in module.measurements:
                figures = in_short(read_metrics(self.folder / measurement.name) or {})
                log.info("%s: %s", measurement.name, figures or "solved")

    def _agreed_checkpoint(self, path: Path, module: ParticleModule) -> Path | None:
        """Checkpoint that all processes of the group resume from."""
        usable = checkpoint_to_resume(path, module.identity.check)
        is_previous = usable is not None and usable.name == PREVIOUS and path.name == LAST
        if not self.processes.shard.any(is_previous):
            return usable
        if self.processes.shard.position == 0:
            put_aside(path)
        return path.with_name(PREVIOUS)

    def _report(self, name: str, failure: FailedError) -> None:
        """Keep the failure of one measurement; raise it if there is no other, in the first process as an InputError."""
        reason = str(failure)
        if failure.out_of_memory:
            reason = (
                f"'{name}' does not fit into the device's memory, even one particle at a time ({reason}); set "
                "decoder_checkpointing=true or a smaller image_size"
            )
        if len(self.data) > 1:
            self._keep_failure(name, reason)
            log.error("%s: %s", name, reason)
        elif self.processes.shard.position:
            raise PeerError
        elif isinstance(failure.error, InputError):
            raise failure.error
        else:
            raise InputError(reason) from failure.error

    def _keep_failure(self, name: str, reason: str) -> None:
        if self.processes.shard.position == 0:
            write_failure(self.folder, self.data.names.index(name), name, reason)

    def write_summary(self, batches: dict[str, range]) -> tuple[int, int]:
        """Write what covers all measurements and return the numbers of results and of missing ones."""
        if self.particle_steps:
            rate = self.particle_steps / (time.perf_counter() - self.start)
            log.info("%.3g particle-steps a second over %d processes", rate, self.processes.size)
        results = {name: read_metrics(self.folder / name) for name in self.data.names}
        rows = [metrics for metrics in results.values() if metrics is not None]
        write_summary(self.folder, rows)
        failures = write_failures(self.folder, [name for name, metrics in results.items() if metrics is None])
        if rows or failures:
            write_report(self.folder, rows, failures)
        if self.data.sequence:
            write_sequence(self.folder, [row["name"] for row in rows])
        return len(rows), sum(results[self.data.names[i]] is None for indices in batches.values() for i in indices)
