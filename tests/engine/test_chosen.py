"""What a run chooses by its device and memory, and keeps; and what it says it will take."""

import logging
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from support.command import train
from support.trainers import assert_same_bits, fit, trainer_with

from rlsd_lightning import RLSD, LatentFeatures
from rlsd_lightning.cli.trainer import precision_of
from rlsd_lightning.engine import pace
from rlsd_lightning.engine.chosen import chosen, keep_chosen, use_precision
from rlsd_lightning.engine.pace import Pace, duration
from rlsd_lightning.engine.runner import run_measurements
from rlsd_lightning.functional.precision import full_precision
from rlsd_lightning.measurement import MeasurementList

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def products():
    """The setting of matrix products, which is torch's, as it was before."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


# --- precision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "device", "has_bfloat16", "used"),
    [
        ("auto", CPU, False, "32-true"),
        ("auto", GPU, True, "bf16-mixed"),
        ("auto", GPU, False, "32-true"),
        ("16-mixed", GPU, True, "16-mixed"),
        ("32-true", GPU, True, "32-true"),
    ],
)
def test_auto_is_bfloat16_where_a_gpu_has_it(
    asked: str, device: torch.device, has_bfloat16: bool, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    torch.set_float32_matmul_precision("highest")
    assert use_precision(asked, device) == used
    assert torch.get_float32_matmul_precision() == ("high" if device == GPU else "highest")


@pytest.mark.parametrize("fails", [False, True])
def test_what_needs_float32_has_no_tf32_on_a_gpu(fails: bool) -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with full_precision(GPU):
            assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)


@pytest.mark.parametrize("device", [CPU, GPU])
def test_what_needs_float32_has_no_tf32_with_torchs_newer_settings(device: torch.device) -> None:
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("this version of torch has only the older settings")
    try:
        matmul.fp32_precision = "tf32"
        with full_precision(device):
            assert matmul.fp32_precision == ("ieee" if device == GPU else "tf32")
        assert matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_what_needs_float32_has_no_autocast() -> None:
    a = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with full_precision(CPU):
            assert (a @ a).dtype == torch.float32


def test_a_resumed_run_has_the_precision_that_was_chosen(tmp_path: Path) -> None:
    def alone(device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(device=device, is_first=True, broadcast=lambda value: value)

    assert precision_of("auto", tmp_path, alone(CPU)) == "32-true"
    keep_chosen(tmp_path, "measurements_per_batch", 3)
    assert (chosen(tmp_path, "precision"), chosen(tmp_path, "measurements_per_batch")) == ("32-true", 3)
    keep_chosen(tmp_path, "precision", "bf16-mixed")  # as if a GPU had begun it
    assert precision_of("auto", tmp_path, alone(CPU)) == "bf16-mixed"
    assert precision_of("32-true", tmp_path, alone(CPU)) == "32-true"


# --- memory --------------------------------------------------------------------------------------------------------


class Full(Callback):
    """Has memory for some particles at a time only."""

    def __init__(self, fitting: int) -> None:
        self.fitting, self.seen = fitting, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        self.seen.append(pl_module.particle_chunk)
        if (pl_module.particle_chunk or len(pl_module.z)) > self.fitting:
            raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize(("fitting", "tried"), [(3, [None, 3]), (2, [None, 3, 2]), (1, [None, 3, 2, 1])])
def test_networks_see_as_many_particles_as_fit_and_a_resumed_run_as_many(
    fitting: int, tried: list[int | None], tiny_prior, measurement, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def module(measurements, **forced) -> RLSD:
        return RLSD(tiny_prior, measurements, LatentFeatures(), num_steps=3, num_particles=5, **forced)

    def run(name: str, *callbacks: Callback, **forced) -> None:
        def trainer(folder: Path, **place):
            return trainer_with(folder, *callbacks, results=tmp_path / name, **place)

        make = module if not forced else lambda measurements: module(measurements, **forced)
        assert run_measurements(data, make, trainer, tmp_path / name) == (len(data), 0)

    data = MeasurementList(measurement._replace(name=name) for name in "ab")
    full = Full(fitting)
    run("run", full)
    assert list(dict.fromkeys(full.seen)) == tried
    assert full.seen[-3:] == [fitting] * 3  # the second measurement tries nothing larger
    assert f"particles at a time; from now on {fitting}" in caplog.text
    run("told", particle_chunk=fitting)
    shutil.rmtree(tmp_path / "run" / "b")
    full.seen.clear()
    run("run", full)
    assert full.seen == [fitting] * 3
    for name in "ab":
        assert_same_bits(tmp_path / "run" / name, tmp_path / "told" / name)


# --- pace ----------------------------------------------------------------------------------------------------------


def test_a_run_says_what_it_takes_from_its_first_steps(
    tiny_prior, measurement, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([10.0, 16.0])
    monkeypatch.setattr(pace, "_now", lambda device: next(clock))
    caplog.set_level(logging.INFO, "rlsd_lightning")
    module = RLSD(tiny_prior, measurement, LatentFeatures(), num_steps=60, num_particles=1)
    fit(module, tmp_path, Pace(batches=3), max_steps=10)
    (said,) = [record.getMessage() for record in caplog.records if "s a step" in record.getMessage()]
    # three steps took 6 s; 4 of 180 are done
    begin = (
        "noise: about 2 min 0 s for 60 steps, 5 min 52 s left for 3 like it (2 s a step, measured over steps 2 to 4); "
    )
    assert said.startswith(begin)
    assert re.search(r"[\d.]+ GiB of memory at most so far$", said)


def test_the_command_says_it_once(small: list[str], tmp_path: Path) -> None:
    code, printed = train(*small, "num_steps=5", "data.limit=2", f"output_dir={tmp_path}")
    assert code == 0, printed
    assert printed.count("s a step, measured over steps 2 to 4") == 1
    assert chosen(tmp_path, "precision") == "32-true"


@pytest.mark.parametrize(
    ("device", "compiles", "steps", "tiled", "compiled"),
    [
        (GPU, True, 1000, False, True),
        (GPU, True, 1000, True, False),  # compiled networks normalise each tile by itself
        (GPU, True, 100, False, False),
        (GPU, False, 1000, False, False),
        (CPU, True, 1000, False, False),
    ],
)
def test_networks_are_compiled_in_long_runs_on_a_gpu(
    device: torch.device, compiles: bool, steps: int, tiled: bool, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(pace, "compile_if_possible", lambda *place, regional: asked.append((*place, regional)))
    prior = SimpleNamespace(is_tiled=tiled)
    module = SimpleNamespace(name="m", timesteps=range(steps), device=device, prior=prior)
    Pace(compiles=compiles)._estimate(module, 1.0, 4)
    assert asked == [(prior, GPU, True)] * compiled


@pytest.mark.parametrize(("seconds", "said"), [(3.21, "3.2 s"), (75, "1 min 15 s"), (7500, "2 h 5 min")])
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
