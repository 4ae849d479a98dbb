"""Whatever one input raises is its own failure: the others are solved, and the failure is named everywhere."""

import csv
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image, UnidentifiedImageError
from support.command import train
from support.page import Page
from support.trainers import trainer_with

from rlsd_lightning import RLSD, InputError, LatentFeatures, Measurement
from rlsd_lightning.distributed.agreement import together
from rlsd_lightning.distributed.shard import Shard
from rlsd_lightning.engine.batch_size import largest_batch
from rlsd_lightning.engine.runner import run_measurements
from rlsd_lightning.errors import FailedError, StoppedError, printable
from rlsd_lightning.functional.noise import measurement_key
from rlsd_lightning.measurement import MeasurementList
from rlsd_lightning.results.store import read_failures

ERRORS = [
    InputError("the file is empty"),
    KeyError("Orientation"),
    UnidentifiedImageError("cannot identify image file"),
    Image.DecompressionBombError("Image size (182000000 pixels) exceeds limit"),
    MemoryError(),
    OSError(36, "File name too long", "name"),
    RuntimeError("several\nlines"),
    UnicodeEncodeError("utf-8", "\udcf6", 0, 1, "surrogates not allowed"),
]
"""What libraries raise for an input."""


class Failing(MeasurementList):
    """Measurements of which one can't be read."""

    def __init__(self, measurements: Sequence[Measurement], index: int, error: Exception) -> None:
        super().__init__(measurements)
        self.index, self.error = index, error

    def __getitem__(self, index: int) -> Measurement:
        if index == self.index:
            raise self.error
        return super().__getitem__(index)


class Raising(Callback):
    """Raises in the step of a measurement."""

    def __init__(self, name: str, error: Exception) -> None:
        self.name, self.error = name, error

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        if self.name in [measurement.name for measurement in pl_module.measurements]:
            raise self.error


@pytest.fixture
def data(measurement: Measurement) -> MeasurementList:
    return MeasurementList(measurement._replace(name=name) for name in ("a", "b", "c"))


@pytest.fixture
def run(tiny_prior, tmp_path: Path) -> Callable[..., tuple[int, int]]:
    """Runs over measurements with callbacks."""

    def module(measurements: Sequence[Measurement]) -> RLSD:
        return RLSD(tiny_prior, measurements, LatentFeatures(), num_steps=2, num_particles=1)

    def start(data: MeasurementList, *callbacks: Callback, size: int = 1) -> tuple[int, int]:
        def trainer(folder: Path, **place) -> L.Trainer:
            return trainer_with(folder, *callbacks, results=tmp_path, **place)

        return run_measurements(data, module, trainer, tmp_path, measurements_per_batch=size)

    return start


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_one_that_can_not_be_read_is_one_line(
    error: Exception, run: Callable, data: MeasurementList, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "rlsd_lightning")
    assert run(Failing(data, 1, error), size=3) == (2, 1)
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert said.startswith("b: ") and "\n" not in said
    (row,) = read_failures(tmp_path)
    assert said == f"b: {row['reason']}" and row["name"] == "b"
    traces = [record for record in caplog.records if record.levelname == "DEBUG" and record.exc_info]
    expected = not isinstance(error, InputError | MemoryError)
    assert [record.exc_info[1] for record in traces] == [error] * expected


@pytest.mark.parametrize(
    ("error", "size"), [(InputError("too small"), 1), (KeyError("x"), 3), (UnidentifiedImageError("none"), 1)]
)
def test_one_that_can_not_be_solved_costs_no_other(
    error: Exception, size: int, run: Callable, data: MeasurementList, tmp_path: Path
) -> None:
    assert run(data, Raising("b", error), size=size) == (2, 1)
    assert [row["name"] for row in read_failures(tmp_path)] == ["b"]
    assert (tmp_path / "c" / "metrics.json").is_file()


def test_the_only_one_is_an_input_error_with_the_cause(run: Callable, data: MeasurementList) -> None:
    with pytest.raises(InputError, match="KeyError: 'x'") as caught:
        run(MeasurementList(data[:1]), Raising("a", KeyError("x")))
    assert isinstance(caught.value.__cause__, KeyError)


def test_failures_are_forgotten_when_the_input_is_mended(run: Callable, data: MeasurementList, tmp_path: Path) -> None:
    assert run(Failing(data, 1, ValueError("torn"))) == (2, 1)
    page = Page((tmp_path / "report.html").read_text())
    assert "b: ValueError: torn" in " ".join(page.texts["failed"].split())
    assert run(data) == (3, 0)
    assert not (tmp_path / "failed.csv").exists()
    assert "failed" not in Page((tmp_path / "report.html").read_text()).texts


@pytest.mark.parametrize("index", [0, 1, 2])
def test_failures_of_inputs_that_are_no_longer_asked_for_are_forgotten(
    index: int, run: Callable, data: MeasurementList, tmp_path: Path
) -> None:
    assert run(Failing(data, index, ValueError("torn"))) == (2, 1)
    others = MeasurementList(one for one in data if one is not data[index])
    assert run(others) == (2, 0)
    assert not (tmp_path / "failed.csv").exists()


def test_a_report_names_failures_even_if_nothing_was_solved(
    run: Callable, data: MeasurementList, tmp_path: Path
) -> None:
    assert run(data, *(Raising(name, ValueError(f"<{name}>")) for name in "abc")) == (0, 3)
    assert [row["name"] for row in read_failures(tmp_path)] == ["a", "b", "c"]
    assert "&lt;c&gt;" in (tmp_path / "report.html").read_text()


def test_a_broken_first_measurement_does_not_end_the_probe_of_the_batch_size(
    tiny_prior, data: MeasurementList, caplog: pytest.LogCaptureFixture
) -> None:
    def module(measurements: Sequence[Measurement]) -> RLSD:
        return RLSD(tiny_prior, measurements, LatentFeatures(), num_steps=2, num_particles=1)

    assert largest_batch(module, Failing(data, 0, KeyError("x")), trainer_with) == 3
    for index in range(3):
        data[index] = data[index]._replace(y=data[index].y[..., :5])
    assert largest_batch(module, data, trainer_with) == 1
    assert "the probe of measurements_per_batch=auto failed" in caplog.text


# --- agreement -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [StoppedError("by a signal"), OSError(28, "No space left on device")])
def test_what_ends_a_run_is_no_failure_of_one(error: Exception, tmp_path: Path) -> None:
    def work() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        together(Shard(), work, tmp_path)
    assert caught.value is error
    if isinstance(error, OSError):  # of the input's disk
        with pytest.raises(FailedError, match="No space left"):
            together(Shard(), work)


@pytest.mark.parametrize(
    ("error", "no_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), True),
        (MemoryError(), True),
        (ValueError("out of memory of last year"), False),
    ],
)
def test_a_full_memory_is_recognised(error: Exception, no_memory: bool) -> None:
    def work() -> None:
        raise error

    with pytest.raises(FailedError) as caught:
        together(Shard(), work)
    assert caught.value.out_of_memory is no_memory


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shown"), [(b"gr\xf6n", "gr%F6n"), ("größe".encode(), "größe"), (b"\xff\xfe", "%FF%FE")], ids=ascii
)
def test_names_that_are_not_utf8_are_escaped(name: bytes, shown: str) -> None:
    decoded = name.decode("utf-8", "surrogateescape")
    assert printable(decoded) == shown
    assert printable(decoded).encode()
    assert 0 <= measurement_key(decoded) < 2**64


def test_names_that_are_not_utf8_are_solved_and_named(small: list[str], tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in (b"gr\xf6n", b"\xff\xfe", b"ok"):
        Image.new("RGB", (32, 32), "red").save(photos / f"{name.decode('utf-8', 'surrogateescape')}.png")
    (photos / b"b\xe4d.png".decode("utf-8", "surrogateescape")).write_bytes(b"no picture")
    run = tmp_path / "run"
    code, printed = train(*small, "num_steps=2", f"data.images={photos}", "data.limit=null", f"output_dir={run}")
    assert code == 1, printed
    assert "Traceback" not in printed
    assert printed.count("\nfailed: b%E4d: ") == 1
    assert "failed: b%E4d: " in (run / "train.log").read_text(encoding="utf-8")
    for name in ("gr%F6n", "%FF%FE", "ok"):
        assert (run / name / "metrics.json").is_file()
        assert list((run / name).glob("events.*"))
    rows = list(csv.DictReader((run / "summary.csv").open(encoding="utf-8")))
    assert {row["name"] for row in rows} == {"gr%F6n", "%FF%FE", "ok", "mean"}
    assert "b%E4d" in Page((run / "report.html").read_text(encoding="utf-8")).texts["failed"]
