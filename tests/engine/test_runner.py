"""A run over many measurements, one by one or side by side, loses none of them because of another."""

import copy
import shutil
import signal
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file
from support.command import train
from support.trainers import StopAt, StopError, Visited, trainer_with
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from rlsd_lightning import RLSD, Distilled, InputError, LatentFeatures, Measurement, RLSDPaper
from rlsd_lightning.distributed.processes import Processes
from rlsd_lightning.engine.batch_size import largest_batch
from rlsd_lightning.engine.callbacks import FiniteGuard
from rlsd_lightning.engine.runner import run_measurements
from rlsd_lightning.engine.signals import StopOnSignal, signals_noted
from rlsd_lightning.errors import StoppedError
from rlsd_lightning.measurement import MeasurementList
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.operators import gaussian_blur, hdr, inpainting
from rlsd_lightning.results.monitor import Monitor


@pytest.fixture
def data(tiny_prior, measurement: Measurement) -> MeasurementList:
    """Three measurements, each with another operator."""
    shape = tiny_prior.image_shape
    operators = (inpainting(shape, "half"), gaussian_blur(shape), hdr(shape))
    truths = measurement.truth.roll(7, dims=-1), measurement.truth, measurement.truth.flip(-1)
    return MeasurementList(
        Measurement(name, operator.A(truth), operator, truth)
        for name, operator, truth in zip(("first", "second", "third"), operators, truths, strict=True)
    )


class Poison(Callback):
    """Makes one measurement's particles infinite after a step."""

    def __init__(self, name: str, step: int) -> None:
        self.name, self.step = name, step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        for measurement, z in pl_module.each(pl_module.z.data):
            if (measurement.name, batch_idx) == (self.name, self.step):
                z[0, 0, 0, 0] = float("inf")


class Full(Callback):
    """The device's memory is full at the first step of some batches."""

    def __init__(self, fails) -> None:
        self.fails = fails

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        if self.fails(pl_module.measurements):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def with_callbacks(*callbacks: Callback, **settings) -> Callable[..., L.Trainer]:
    """A maker of Trainers for a run."""
    return lambda folder, **place: trainer_with(folder, *callbacks, **settings, **place)


def results(folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
    return {name: load_file(folder / name / "particles.safetensors")["x"] for name in names}


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-4)


# --- side by side --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "features", "settings"),
    [
        (RLSD, "latents", {}),
        (RLSD, "vit", {"gamma": 2.0, "gamma_mode": "absolute"}),
        (RLSD, "vit", {"gamma": 0.3, "particle_chunk": 4}),
        (RLSD, "latents", {"refine_share": 0.5, "eta": 0.3}),
        (Distilled, "latents", {}),
        (RLSD, "latents", {"augmented": False, "gamma": 0.0}),
        (RLSDPaper, "vit", {}),
    ],
)
def test_measurements_side_by_side_end_as_they_do_alone(
    method: type[ParticleModule], features: str, settings: dict, tiny_prior, tiny_features, data: MeasurementList
) -> None:
    prior = copy.deepcopy(tiny_prior).double()
    compared = copy.deepcopy(tiny_features).double() if features == "vit" else LatentFeatures()
    data = [m._replace(y=m.y.double(), physics=copy.deepcopy(m.physics).double(), truth=m.truth.double()) for m in data]

    def solved(measurements: Sequence[Measurement]) -> Tensor:
        module = method(prior, measurements, compared, num_particles=3, num_steps=8, **settings).double()
        L.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        ).fit(module)
        return module.z.detach()

    together = solved(data)
    alone = torch.cat([solved([measurement]) for measurement in data])
    torch.testing.assert_close(together, alone, rtol=1e-7, atol=1e-7)
    assert not torch.isclose(alone[:3], alone[3:6]).all(dim=0).any()


def test_a_batch_writes_what_its_measurements_write_alone(
    tiny_prior, tiny_features, data: MeasurementList, tmp_path: Path
) -> None:
    module = partial(make_module, tiny_prior, tiny_features)
    for size in (1, 2):
        folder = tmp_path / f"{size}"
        trainer = partial(trainer_with, results=folder)
        assert run_measurements(data, module, trainer, folder, measurements_per_batch=size) == (3, 0)
    assert_close(results(tmp_path / "1", data.names), results(tmp_path / "2", data.names))
    assert (tmp_path / "2" / "batch_0000-0001" / "checkpoints" / "last.ckpt").is_file()
    assert (tmp_path / "2" / "third" / "checkpoints" / "last.ckpt").is_file()
    for name in data.names:
        written = [{file.name for file in (tmp_path / size / name).glob("*.*")} for size in ("1", "2")]
        assert written[0] == written[1]


def make_module(
    prior, features, measurements: Sequence[Measurement], num_steps: int = 9, particle_chunk: int | None = None
) -> RLSD:
    return RLSD(prior, measurements, features, num_steps=num_steps, num_particles=2, particle_chunk=particle_chunk)


def written_at(path: Path) -> tuple[int, int]:
    """Which file it is and when it was written, but not when it was read."""
    return path.stat().st_ino, path.stat().st_mtime_ns


def test_a_stopped_batch_goes_on_without_those_that_are_finished(
    tiny_prior, tiny_features, data: MeasurementList, tmp_path: Path
) -> None:
    module = partial(make_module, tiny_prior, tiny_features)
    run, whole = tmp_path / "run", tmp_path / "whole"
    run_measurements(data, module, partial(trainer_with, results=whole), whole, measurements_per_batch=3)
    with pytest.raises(StopError):
        run_measurements(data, module, with_callbacks(StopAt(5), results=run), run, measurements_per_batch=3)
    shutil.copytree(whole / "second", run / "second")
    finished = written_at(run / "second" / "metrics.json")
    visited = Visited()
    count = run_measurements(data, module, with_callbacks(visited, results=run), run, measurements_per_batch=3)
    assert count == (3, 0)
    assert visited.steps == [5, 6, 7, 8]
    assert_close(results(run, ["first", "third"]), results(whole, ["first", "third"]))
    assert written_at(run / "second" / "metrics.json") == finished


def test_a_measurement_that_the_checkpoint_does_not_know_starts_afresh(
    tiny_prior, tiny_features, data: MeasurementList, tmp_path: Path
) -> None:
    # it could not be read when the others were solved
    module = partial(make_module, tiny_prior, tiny_features)
    run, whole = tmp_path / "run", tmp_path / "whole"
    run_measurements(data, module, partial(trainer_with, results=whole), whole)

    class Broken(MeasurementList):
        def __getitem__(self, index):
            if index == 1:
                raise InputError("can't be read")
            return super().__getitem__(index)

    trainer = partial(trainer_with, results=run)
    assert run_measurements(Broken(data), module, trainer, run, measurements_per_batch=3) == (2, 1)
    assert run_measurements(data, module, trainer, run, measurements_per_batch=3) == (3, 0)
    assert_close(results(run, data.names), results(whole, data.names))


def test_a_frame_without_a_result_before_it_starts_cold_and_says_so(
    tiny_prior, tiny_features, data: MeasurementList, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Frames(MeasurementList):
        sequence = True

        def __getitem__(self, index):
            if index == 0:
                raise InputError("can't be read")
            return super().__getitem__(index)

    trainer = with_callbacks(results=tmp_path)
    module = partial(make_module, tiny_prior, tiny_features, num_steps=4)
    assert run_measurements(Frames(data), module, trainer, tmp_path) == (2, 1)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    (said,) = [warning for warning in warnings if "previous" in warning]
    assert said == "second: starts from noise, as the previous measurement 'first' has no result"


# --- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3])
def test_a_measurement_that_diverges_keeps_its_checkpoint_and_the_others_finish(
    size: int, tiny_prior, tiny_features, data: MeasurementList, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, whole, run = partial(make_module, tiny_prior, tiny_features), tmp_path / "whole", tmp_path / "run"
    run_measurements(data, module, partial(trainer_with, results=whole), whole)
    visited = Visited()

    trainer = with_callbacks(Poison("second", 5), FiniteGuard(every_n_steps=3), visited, every=3, results=run)
    assert run_measurements(data, module, trainer, run, measurements_per_batch=size) == (2, 1)
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert message.startswith("particles of 'second' are no longer finite at step 6; lower")
    assert not (run / "second" / "metrics.json").exists()
    assert_close(results(run, ["first", "third"]), results(whole, ["first", "third"]))
    if size == 1:
        saved = torch.load(run / "second" / "checkpoints" / "last.ckpt", weights_only=True)
        assert saved["global_step"] == 3
        assert saved["state_dict"]["z"].isfinite().all()
    else:
        assert visited.steps == [*range(6), *range(3, 9)]


@pytest.mark.parametrize("names", [["small", "large"], ["large"]])
def test_a_measurement_that_does_not_fit_into_memory_is_one_line(
    names: list[str], tiny_prior, tiny_features, measurement, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = MeasurementList(measurement._replace(name=name) for name in names)
    module = partial(make_module, tiny_prior, tiny_features)
    full = Full(lambda measurements: measurements[0].name == "large")

    def solve() -> tuple[int, int]:
        return run_measurements(data, module, with_callbacks(full, results=tmp_path), tmp_path)

    if len(names) == 1:
        with pytest.raises(InputError, match=r"'large' does not fit .* even one particle at a time"):
            solve()
    else:
        assert solve() == (1, 1)
        assert "'large' does not fit into the device's memory, even one particle at a time (CUDA out" in caplog.text


def test_a_batch_that_does_not_fit_into_memory_is_halved(
    tiny_prior, tiny_features, data: MeasurementList, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, full = partial(make_module, tiny_prior, tiny_features), Full(lambda measurements: len(measurements) > 1)
    count = run_measurements(data, module, with_callbacks(full, results=tmp_path), tmp_path, measurements_per_batch=3)
    assert count == (3, 0)
    assert "batch_0000-0002: CUDA out of memory. Tried to allocate 2.00 GiB.; it is solved in two halves" in caplog.text
    assert "batch_0000-0001: CUDA out of memory." in caplog.text


def test_one_that_does_not_fit_the_prior_does_not_cost_its_batch(
    tiny_prior, tiny_features, data: MeasurementList, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data[1] = data[1]._replace(y=data[1].y[..., :5])
    module = partial(make_module, tiny_prior, tiny_features)
    trainer = partial(trainer_with, results=tmp_path)
    assert run_measurements(data, module, trainer, tmp_path, measurements_per_batch=3) == (2, 1)
    assert "second: " in caplog.text


def test_a_half_begins_when_the_failed_batch_has_let_go_of_its_memory(
    tiny_prior, tiny_features, data: MeasurementList, tmp_path: Path
) -> None:
    held: list[weakref.ref] = []

    class Large(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
            if len(pl_module.measurements) > 1:
                activations = torch.zeros(3)
                held.append(weakref.ref(activations))
                raise torch.OutOfMemoryError("CUDA out of memory.")
            assert all(each() is None for each in held)

    module = partial(make_module, tiny_prior, tiny_features)
    run = {"folder": tmp_path, "measurements_per_batch": 3}
    assert run_measurements(data, module, with_callbacks(Large(), results=tmp_path), **run) == (3, 0)
    assert len(held) == 2  # of three measurements, and of two


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_particles_at_a_time_begin_with_free_memory(
    count: int, tiny_prior, tiny_features, data: MeasurementList, tmp_path: Path
) -> None:
    held: list[weakref.ref] = []

    class Large(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
            assert all(each() is None for each in held)
            if (pl_module.particle_chunk or len(pl_module.z)) > 1:
                activations = torch.zeros(3)
                held.append(weakref.ref(activations))
                raise torch.OutOfMemoryError("CUDA out of memory.")

    module = partial(make_module, tiny_prior, tiny_features)
    few = MeasurementList(data[index] for index in range(count))
    assert run_measurements(few, module, with_callbacks(Large(), results=tmp_path), tmp_path) == (count, 0)
    assert held


def test_a_signal_while_results_are_made_stops_before_the_next_measurement(
    tiny_prior, tiny_features, data: MeasurementList, tmp_path: Path
) -> None:
    class Raise(Callback):
        def on_train_end(self, trainer, pl_module) -> None:
            if pl_module.name == "second":
                signal.raise_signal(signal.SIGTERM)

    module = partial(make_module, tiny_prior, tiny_features)
    callbacks = with_callbacks(Raise(), StopOnSignal(tmp_path), results=tmp_path)
    with pytest.raises(StoppedError, match=r"^stopped by SIGTERM before 'third'$"):
        run_measurements(data, module, callbacks, tmp_path)
    assert [name for name in data.names if (tmp_path / name / "metrics.json").is_file()] == ["first", "second"]
    assert run_measurements(data, module, callbacks, tmp_path) == (3, 0)  # the signal does not come again


@pytest.mark.parametrize("count", [1, 2])
def test_a_signal_between_two_measurements_stops_before_the_next_one(
    count: int, tiny_prior, tiny_features, data: MeasurementList, tmp_path: Path
) -> None:
    signals = {"second": count}

    def module(measurements: list[Measurement], **forced: int) -> RLSD:
        for _ in range(signals.pop(measurements[0].name, 0)):
            signal.raise_signal(signal.SIGINT)
        return make_module(tiny_prior, tiny_features, measurements, **forced)

    callbacks, before = with_callbacks(StopOnSignal(tmp_path), results=tmp_path), signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background it is ignored
    stop, said = (StoppedError, "^stopped by SIGINT before 'second'$") if count == 1 else (KeyboardInterrupt, None)
    with pytest.raises(stop, match=said), signals_noted():
        run_measurements(data, module, callbacks, tmp_path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)
    assert run_measurements(data, module, callbacks, tmp_path) == (3, 0)


def test_a_signal_while_other_processes_are_waited_for_is_obeyed(
    tiny_prior, tiny_features, data: MeasurementList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waiting(processes: Processes, value: int, check: Callable[[], None]) -> int:
        signal.raise_signal(signal.SIGTERM)
        check()
        return value

    module = partial(make_module, tiny_prior, tiny_features)
    monkeypatch.setattr(Processes, "sum", waiting)
    callbacks = with_callbacks(StopOnSignal(tmp_path), results=tmp_path)
    with (
        pytest.raises(StoppedError, match=r"^stopped by SIGTERM while it waited$"),
        signals_noted(),
    ):
        run_measurements(data, module, callbacks, tmp_path)
    assert StopOnSignal.came is None


def test_reconstructions_are_made_once_a_step(tiny_prior, tiny_features, measurement, tmp_path: Path) -> None:
    made: list[int] = []

    class Counting(RLSD):
        def reconstructions(self) -> tuple[Tensor, Tensor]:
            made.append(self.steps_done)
            return super().reconstructions()

        def intermediate_images(self) -> None:
            """Methods decode in their steps; the callbacks make nothing of their own."""

    trainer = trainer_with(tmp_path, Monitor(), results=tmp_path)
    trainer.fit(Counting(tiny_prior, measurement, tiny_features, num_steps=4, num_particles=2))
    assert made == [4]


# --- how many ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fitting", [1, 2, 3, 5, 6, 7])
def test_the_largest_batch_is_the_last_that_does_not_run_out_of_memory(
    fitting: int, tiny_prior, tiny_features, measurement: Measurement
) -> None:
    class Small(RLSD):
        def decode(self, z: Tensor, tiny: bool = False) -> Tensor:
            if len(z) > 2 * fitting:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().decode(z, tiny)

    def module(measurements: Sequence[Measurement]) -> RLSD:
        return Small(tiny_prior, measurements, tiny_features, num_steps=2, num_particles=2)

    assert largest_batch(module, MeasurementList([measurement] * 6), trainer_with) == min(fitting, 6)


def test_the_largest_batch_of_the_published_method(tiny_prior, tiny_features, measurement: Measurement) -> None:
    # its step needs a Trainer
    module = partial(RLSDPaper, tiny_prior, features=tiny_features, num_steps=2, num_particles=2)
    data = MeasurementList([measurement] * 3)
    assert largest_batch(lambda measurements: module(measurements=measurements), data, trainer_with) == 3


@pytest.mark.parametrize("size", [0, -1, "all", 1.5])
def test_a_size_that_is_none_is_refused(size, data: MeasurementList, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"at least 1, or auto, got {size}"):
        run_measurements(data, None, None, tmp_path, measurements_per_batch=size)


# --- the command line ----------------------------------------------------------------------------------------------


def test_command_line_solves_side_by_side(tiny_prior_folder: Path, tiny_features_folder: Path, tmp_path: Path) -> None:
    small = [
        f"prior.pretrained={tiny_prior_folder}",
        "num_particles=2",
        "num_steps=10",
        "trainer.log_every_n_steps=5",
        "data.limit=3",
    ]
    for size in ("1", "2", "auto"):
        code, printed = train(*small, f"measurements_per_batch={size}", f"output_dir={tmp_path / size}")
        assert code == 0, printed
    fits = "3 on cuda:0" if torch.cuda.is_available() else "1 on cpu"
    assert f"measurements_per_batch=auto: {fits}" in printed
    names = ["000", "001", "002"]
    assert_close(results(tmp_path / "1", names), results(tmp_path / "2", names))
    events = EventAccumulator(str(next((tmp_path / "2" / "batch_0000-0001").rglob("events.*")).parent)).Reload()
    assert {"000/particles_and_std", "001/particles_and_std"} <= set(events.Tags()["images"])
    single = [EventAccumulator(str(next((tmp_path / "1" / n).rglob("events.*")).parent)).Reload() for n in names[:2]]
    for curve in ("loss/total", "psnr/mean"):
        mean = sum(run.Scalars(curve)[-1].value for run in single) / 2
        assert events.Scalars(curve)[-1].value == pytest.approx(mean, rel=1e-3)
    code, printed = train(f"resume={tmp_path / '2'}", "measurements_per_batch=1")
    assert code == 1
    assert "measurements_per_batch was 2 when the run was started and can't change to 1" in printed


def test_command_line_refuses_a_batch_of_a_sequence(tiny_prior_folder: Path, tmp_path: Path) -> None:
    code, printed = train(
        f"prior.pretrained={tiny_prior_folder}",
        "data.sequence=true",
        "measurements_per_batch=2",
        f"output_dir={tmp_path}",
    )
    assert code == 1
    assert "measurements_per_batch must be 1 with data.sequence=true" in printed


@pytest.mark.parametrize(
    "removed", [["stop"], ["progress", "monitor", "guard"], ["checkpoint"], ["results"]], ids=lambda names: names[0]
)
def test_command_line_runs_without_some_callbacks(removed: list[str], small: list[str], tmp_path: Path) -> None:
    small = [setting for setting in small if not any(setting.startswith(f"callbacks.{name}.") for name in removed)]
    code, printed = train(*small, "num_steps=5", f"output_dir={tmp_path}", *(f"~callbacks.{name}" for name in removed))
    assert code == (removed == ["results"]), printed  # without results there is nothing to show for
    assert "Traceback" not in printed
    assert (tmp_path / "000" / "metrics.json").exists() == (removed != ["results"])
    assert (tmp_path / "000" / "checkpoints" / "last.ckpt").exists() == (removed != ["checkpoint"])
