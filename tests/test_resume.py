"""A run that was stopped anywhere goes on to the bits of one that never was."""

import copy
import json
import re
import signal
import time
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from command import start_train, train
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from rlsd_lightning import RLSD, InputError, LatentFeatures, Measurement, RLSDPaper, operators
from rlsd_lightning.callbacks import AtomicCheckpointIO, FiniteGuard, ImageResults
from rlsd_lightning.errors import StoppedError
from rlsd_lightning.interrupts import StopOnSignal
from rlsd_lightning.locking import only_run_in
from rlsd_lightning.measurement import MeasurementList
from rlsd_lightning.operators import inpainting
from rlsd_lightning.particles import ParticleModule
from rlsd_lightning.runner import run_measurements

EVERY = ["callbacks.checkpoint.every_n_train_steps=5", "callbacks.guard.every_n_steps=5"]


@pytest.fixture
def small(tiny_prior_folder: Path, tiny_features_folder: Path) -> list[str]:
    """Overrides for small runs with frequent checkpoints."""
    return [
        f"prior.pretrained={tiny_prior_folder}",
        f"callbacks.results.features.pretrained={tiny_features_folder}",
        "num_particles=2",
        *EVERY,
    ]


def particles(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "particles.safetensors")


def assert_same_bits(first: Path, second: Path) -> None:
    one, other = particles(first), particles(second)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].equal(other[name]), name


def wait_for(condition, process, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.002)


def test_a_killed_run_goes_on_to_the_same_bits(small: list[str], tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [*small, "num_steps=40", "data.limit=2"]
    process = start_train(*command, f"output_dir={killed}")
    try:
        wait_for((killed / "001" / "checkpoints" / "last.ckpt").is_file, process)
    finally:
        process.kill()  # SIGKILL: nothing of the program's own runs any more
        process.communicate()
    assert not (killed / "001" / "metrics.json").exists()
    finished = {file: file.stat().st_mtime_ns for file in (killed / "000").rglob("*") if file.is_file()}
    assert killed / "000" / "metrics.json" in finished

    code, printed = train(f"resume={killed}")
    assert code == 0, printed
    assert "000: finished before, left as it is" in printed
    assert "001: going on from" in printed
    assert {file: file.stat().st_mtime_ns for file in finished} == finished

    assert train(*command, f"output_dir={whole}")[0] == 0
    for name in ("000", "001"):
        assert_same_bits(killed / name, whole / name)
    rows = (killed / "summary.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["name", "000", "001", "mean"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_between_steps_and_asks_to_be_started_again(
    number: signal.Signals, small: list[str], tmp_path: Path
) -> None:
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    command = [*small, "num_steps=60"]
    process = start_train(*command, f"output_dir={stopped}")
    try:
        wait_for((stopped / "000" / "checkpoints" / "last.ckpt").is_file, process)
        process.send_signal(number)
        printed, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75, printed
    said = re.search(
        rf"^stopped by {number.name} after step (\d+) of '000'; go on with: .* resume=", printed, re.MULTILINE
    )
    done = int(said[1])
    saved = torch.load(stopped / "000" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == done  # not a step is lost
    assert "Traceback" not in printed
    assert train(f"resume={stopped}")[0] == 0
    assert train(*command, f"output_dir={whole}")[0] == 0
    assert_same_bits(stopped / "000", whole / "000")


def test_a_stopped_run_does_not_save_particles_that_are_no_longer_finite(
    tiny_prior, tiny_features, measurement, tmp_path: Path
) -> None:
    class Raise(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
            if batch_idx == 5:
                pl_module.z.data[0, 0, 0, 0] = float("nan")
                signal.raise_signal(signal.SIGTERM)

    module = RLSD(tiny_prior, measurement, tiny_features, num_steps=9, num_particles=2)
    trainer = trainer_with(tmp_path, Raise(), StopOnSignal(tmp_path / "checkpoints"), every=3)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError, match=r"SIGTERM after step 6 of"):
        trainer.fit(module)
    assert signal.getsignal(signal.SIGTERM) is before
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["state_dict"]["z"].isfinite().all()
    assert saved["global_step"] == 3


def test_a_second_run_in_the_same_folder_is_refused(small: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with only_run_in(run):
        code, printed = train(*small, "num_steps=2", f"output_dir={run}")
        assert code == 1
        assert f"another run is working in '{run}'" in printed
        assert not (run / "000").exists()
    code, printed = train(*small, "num_steps=2", f"output_dir={run}")
    assert code == 0, printed


@pytest.mark.parametrize("method", ["rlsd", "rlsd_paper"])
def test_results_that_went_missing_after_the_last_step_come_back(method: str, small: list[str], tmp_path: Path) -> None:
    # as if the kill had come between the last checkpoint and the results
    run, whole = tmp_path / "run", tmp_path / "whole"
    command = [*small, f"method={method}", "num_steps=10"]
    for folder in (run, whole):
        assert train(*command, f"output_dir={folder}")[0] == 0
    for file in ("metrics.json", "particles.safetensors", "grid.png"):
        (run / "000" / file).unlink()
    code, printed = train(f"resume={run}")
    assert code == 0, printed
    assert_same_bits(run / "000", whole / "000")
    again, first = (json.loads((folder / "000" / "metrics.json").read_text()) for folder in (run, whole))
    again.pop("seconds"), first.pop("seconds")
    assert again == first


def test_a_finished_run_is_left_as_it_is(small: list[str], tmp_path: Path) -> None:
    assert train(*small, "num_steps=5", f"output_dir={tmp_path / 'run'}")[0] == 0
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run" / "000").rglob("*") if file.is_file()}
    code, printed = train(f"resume={tmp_path / 'run'}")
    assert code == 0, printed
    after = {file: file.stat().st_mtime_ns for file in (tmp_path / "run" / "000").rglob("*") if file.is_file()}
    assert after == before


def test_a_resumed_run_keeps_the_settings_it_was_started_with(small: list[str], tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    command = ["task=inpaint_box", *small, "num_steps=5", "seed=3", "method.gamma=0.7", "data.limit=2"]
    for folder in (run, whole):
        assert train(*command, f"output_dir={folder}")[0] == 0
    settings, started_by = (run / ".hydra" / "config.yaml").read_text(), (run / ".hydra" / "command.txt").read_text()
    # a measurement that was never begun, and nothing of it on disk
    for file in sorted((run / "001").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    code, printed = train(f"resume={run}")
    assert code == 0, printed
    assert_same_bits(run / "001", whole / "001")
    assert (run / ".hydra" / "config.yaml").read_text() == settings
    assert (run / ".hydra" / "command.txt").read_text() == started_by


def test_ckpt_path_goes_on_with_that_measurement_only(small: list[str], tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    command = [*small, "num_steps=5", "data.limit=2"]
    for folder in (run, whole):
        assert train(*command, f"output_dir={folder}")[0] == 0
    for name in ("000", "001"):
        (run / name / "metrics.json").unlink()
        (run / name / "particles.safetensors").unlink()
    code, printed = train(f"ckpt_path={run / '001' / 'checkpoints' / 'last.ckpt'}")
    assert code == 0, printed
    assert_same_bits(run / "001", whole / "001")
    assert (run / "001" / "metrics.json").is_file()
    assert not (run / "000" / "metrics.json").exists()


@pytest.mark.parametrize(
    "other",
    [
        "num_particles=3",
        "num_steps=7",
        "method.gamma=0.9",
        "seed=1",
        "physics.sigma=0.2",
        "prior.prompt=a beard",
        "prior.guidance_scale=2",
        "data.mask=box",
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(other: str, small: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(*small, "num_steps=5", f"output_dir={run}")[0] == 0
    (run / "000" / "metrics.json").unlink()
    checkpoint = (run / "000" / "checkpoints" / "last.ckpt").read_bytes()
    code, printed = train(f"resume={run}", other)
    assert code == 1
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert "the checkpoint belongs to measurement '000'" in line
    assert "resume with the settings it was made with" in line
    assert "Traceback" not in printed
    assert (run / "000" / "checkpoints" / "last.ckpt").read_bytes() == checkpoint


def test_a_checkpoint_of_another_y_is_refused(small: list[str], tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    run = tmp_path / "run"
    assert train(*small, "num_steps=5", f"data.images={tmp_path / 'a.png'}", f"output_dir={run}")[0] == 0
    (run / "a" / "metrics.json").unlink()
    Image.new("RGB", (32, 32), "blue").save(tmp_path / "a.png")
    code, printed = train(f"resume={run}")
    assert code == 1
    assert "error: the checkpoint belongs to measurement 'a' of a run with another measurement" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (partial(operators.jpeg, quality=10), partial(operators.jpeg, quality=50)),
        (partial(operators.quantization, levels=4), partial(operators.quantization, levels=8)),
        (operators.compressed_sensing, partial(operators.compressed_sensing, operator_seed=1)),
        (operators.hdr, partial(operators.hdr, scale=2.1)),
    ],
)
def test_a_checkpoint_of_another_operator_is_refused_whatever_y_was(make, other, tiny_prior, tiny_features) -> None:
    y, saved = make(tiny_prior.image_shape).A(torch.zeros(1, *tiny_prior.image_shape)), {}

    def module(physics) -> RLSD:
        return RLSD(tiny_prior, Measurement("m", y, physics), tiny_features, num_steps=4)

    module(make(tiny_prior.image_shape)).on_save_checkpoint(saved)
    module(make(tiny_prior.image_shape)).on_load_checkpoint(saved)
    with pytest.raises(InputError, match="another measurement, operator"):
        module(other(tiny_prior.image_shape)).on_load_checkpoint(saved)


def test_a_checkpoint_of_another_feature_network_is_refused(tiny_prior, tiny_features, measurement) -> None:
    saved = {}
    RLSD(tiny_prior, measurement, tiny_features, num_steps=4).on_save_checkpoint(saved)
    retrained = copy.deepcopy(tiny_features)
    next(retrained.parameters()).data.add_(0.1)
    for features in (LatentFeatures(), retrained):
        with pytest.raises(InputError, match="features"):
            RLSD(tiny_prior, measurement, features, num_steps=4).on_load_checkpoint(saved)


def test_a_folder_that_holds_another_run_is_left_alone(small: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(*small, "num_steps=5", f"output_dir={run}")[0] == 0
    before = (run / ".hydra" / "config.yaml").read_text()
    code, printed = train(*small, "num_steps=6", f"output_dir={run}")
    assert code == 1
    assert f"'{run}' holds a run with other settings" in printed
    assert (run / ".hydra" / "config.yaml").read_text() == before
    code, printed = train(*small, "num_steps=5", f"output_dir={run}")  # the same settings go on
    assert code == 0
    assert "finished before" in printed


def test_a_run_that_the_trainer_stops_early_is_not_finished(small: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, printed = train(*small, "num_steps=8", "+trainer.limit_train_batches=3", f"output_dir={run}")
    assert code == 1
    assert "000: stopped after 3 of 8 steps" in printed
    assert not (run / "000" / "metrics.json").exists()


@pytest.mark.parametrize("other", ["method=rlsd_paper", "task=hdr"])
def test_a_resume_with_another_group_is_refused(other: str, small: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(*small, "num_steps=3", f"output_dir={run}")[0] == 0
    code, printed = train(f"resume={run}", other)
    assert code == 1
    assert f"'{other.split('=')[0]}' was chosen when the run was started" in printed


def test_a_damaged_checkpoint_is_one_line(small: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(*small, "num_steps=5", f"output_dir={run}")[0] == 0
    (run / "000" / "metrics.json").unlink()
    checkpoint = run / "000" / "checkpoints" / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    code, printed = train(f"resume={run}")
    assert code == 1
    assert "Traceback" not in printed
    assert str(checkpoint) in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert "can't be read" in line


# --- stopped at an exact step --------------------------------------------------------------------------------------


class StopError(Exception):
    """What stops a run in these tests."""


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        if batch_idx == self.step:
            raise StopError


class Visited(Callback):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        self.steps.append(batch[0])


@pytest.fixture
def measurement(tiny_prior) -> Measurement:
    physics = inpainting(tiny_prior.image_shape, "half")
    truth = torch.rand(1, *tiny_prior.image_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Measurement("noise", physics.A(truth), physics, truth)


def trainer_with(folder: Path, *callbacks: Callback, every: int = 1) -> L.Trainer:
    checkpoint = ModelCheckpoint(
        folder / "checkpoints",
        save_last=True,
        save_top_k=0,
        every_n_train_steps=every,
        enable_version_counter=False,
    )
    return L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[*callbacks, checkpoint, ImageResults(folder)],
        plugins=[AtomicCheckpointIO()],
    )


@pytest.mark.parametrize("stop", [1, 2, 4, 5])
@pytest.mark.parametrize(
    ("method", "settings"),
    [(RLSD, {}), (RLSD, {"x_update": "adam"}), (RLSD, {"augmented": False}), (RLSDPaper, {"num_particles": 3})],
    ids=["prox", "adam", "plain", "paper"],
)
def test_stopped_at_any_step_it_visits_the_rest_and_ends_the_same(
    stop: int, method: type[ParticleModule], settings: dict, tiny_prior, tiny_features, measurement, tmp_path: Path
) -> None:
    def module() -> ParticleModule:
        return method(tiny_prior, measurement, tiny_features, **{"num_steps": 6, "num_particles": 2, **settings})

    whole, rest = module(), module()
    trainer_with(tmp_path / "whole").fit(whole)
    with pytest.raises(StopError):
        trainer_with(tmp_path / "cut", StopAt(stop)).fit(module())
    visited = Visited()
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    trainer_with(tmp_path / "cut", visited).fit(rest, ckpt_path=last, weights_only=True)
    assert visited.steps == list(range(stop, 6))
    assert rest.z.equal(whole.z)
    assert rest.x.equal(whole.x)
    assert_same_bits(tmp_path / "cut", tmp_path / "whole")


def test_steps_after_the_last_checkpoint_are_taken_again(
    tiny_prior, tiny_features, measurement, tmp_path: Path
) -> None:
    def module() -> RLSD:
        return RLSD(tiny_prior, measurement, tiny_features, num_steps=8, num_particles=2)

    trainer_with(tmp_path / "whole", every=3).fit(module())
    with pytest.raises(StopError):
        trainer_with(tmp_path / "cut", StopAt(5), every=3).fit(module())
    visited = Visited()
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    trainer_with(tmp_path / "cut", visited, every=3).fit(module(), ckpt_path=last, weights_only=True)
    assert visited.steps == [3, 4, 5, 6, 7]
    assert_same_bits(tmp_path / "cut", tmp_path / "whole")


def test_a_checkpoint_holds_particles_and_no_weights(tiny_prior, tiny_features, measurement, tmp_path: Path) -> None:
    module = RLSD(tiny_prior, measurement, tiny_features, num_steps=2, num_particles=2)
    trainer_with(tmp_path).fit(module)
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert state.keys() >= {"z", "x"}
    assert not [name for name in state if name.split(".")[0] in {"vae", "unet", "prior", "_frozen", "features"}]


# --- particles that are no longer finite ---------------------------------------------------------------------------


class Poison(Callback):
    """Makes one measurement's particles infinite after a step."""

    def __init__(self, name: str, step: int) -> None:
        self.name, self.step = name, step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        if (pl_module.measurement.name, batch_idx) == (self.name, self.step):
            pl_module.z.data[0, 0, 0, 0] = float("inf")


def test_a_measurement_that_diverges_keeps_its_checkpoint_and_the_others_finish(
    tiny_prior, tiny_features, measurement, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = MeasurementList(measurement._replace(name=name) for name in ("first", "bad", "last"))

    def module(given: Measurement) -> RLSD:
        return RLSD(tiny_prior, given, tiny_features, num_steps=9, num_particles=2)

    def trainer(folder: Path) -> L.Trainer:
        return trainer_with(folder, Poison("bad", 5), FiniteGuard(every_n_steps=3), every=3)

    assert run_measurements(data, module, trainer, tmp_path) == (2, 1)
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert message.startswith("bad: particles of 'bad' are no longer finite at step 6; lower")
    for name in ("first", "last"):
        assert (tmp_path / name / "metrics.json").is_file()
    assert not (tmp_path / "bad" / "metrics.json").exists()
    saved = torch.load(tmp_path / "bad" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 3
    assert saved["state_dict"]["z"].isfinite().all()


class Full(Callback):
    """The device's memory is full at the first step of one measurement."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        if pl_module.measurement.name == "large":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("names", [["small", "large"], ["large"]])
def test_a_measurement_that_does_not_fit_into_memory_is_one_line(
    names: list[str], tiny_prior, tiny_features, measurement, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = MeasurementList(measurement._replace(name=name) for name in names)

    def solve() -> tuple[int, int]:
        def module(given: Measurement) -> RLSD:
            return RLSD(tiny_prior, given, tiny_features, num_steps=2, num_particles=2)

        return run_measurements(data, module, lambda folder: trainer_with(folder, Full()), tmp_path)

    if len(names) == 1:
        with pytest.raises(InputError, match=r"'large' does not fit .* method\.particle_chunk=1"):
            solve()
    else:
        assert solve() == (1, 1)
        assert "'large' does not fit into the device's memory (CUDA out of memory" in caplog.text


def test_a_run_that_diverges_ends_with_one(small: list[str], tmp_path: Path) -> None:
    code, printed = train(*small, "num_steps=10", "method.lr_z=1e30", "data.limit=2", f"output_dir={tmp_path / 'run'}")
    assert code == 1
    for name in ("000", "001"):
        assert f"{name}: particles of '{name}' are no longer finite" in printed
        assert not (tmp_path / "run" / name / "metrics.json").exists()
    assert "results of 0 of 2 measurements" in printed
    assert "Traceback" not in printed


def test_a_lone_diverging_measurement_ends_with_one(small: list[str], tmp_path: Path) -> None:
    code, printed = train(*small, "num_steps=10", "method.lr_z=1e30", f"output_dir={tmp_path / 'run'}")
    assert code == 1
    assert "000: particles of '000' are no longer finite" in printed
    assert "Traceback" not in printed


def test_a_foreign_checkpoint_is_refused(tiny_prior, tiny_features, measurement, tmp_path: Path) -> None:
    module = RLSD(tiny_prior, measurement, tiny_features, num_steps=2, num_particles=2)
    trainer_with(tmp_path / "one").fit(module)
    other = RLSD(tiny_prior, measurement._replace(name="other"), tiny_features, num_steps=2, num_particles=2)
    last = tmp_path / "one" / "checkpoints" / "last.ckpt"
    with pytest.raises(InputError, match=r"belongs to measurement 'noise' .* than 'other' here"):
        trainer_with(tmp_path / "two").fit(other, ckpt_path=last, weights_only=True)


def test_a_run_with_relative_files_is_resumed_from_another_folder(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (32, 32), "red").save(pictures / "one.png")
    Image.new("L", (32, 32), 255).save(pictures / "mask.png")
    Image.new("RGB", (32, 32), "blue").save(pictures / "two.png")
    monkeypatch.chdir(pictures)
    run = tmp_path / "run"
    files = ["data.images=*o*.png", "data.mask=mask.png", "data.limit=1"]
    assert train(*small, *files, "num_steps=5", f"output_dir={run}")[0] == 0
    monkeypatch.chdir(tmp_path)
    code, printed = train(f"resume={run}", "data.limit=2")
    assert code == 0, printed
    assert (run / "one" / "metrics.json").is_file() and (run / "two" / "metrics.json").is_file()
