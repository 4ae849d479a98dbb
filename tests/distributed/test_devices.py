"""Particles and measurements over processes, for real: spawned, exchanging through gloo, stopped and killed."""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from lightning.fabric.accelerators import MPSAccelerator
from PIL import Image
from support.command import SLOW, small_run, start_train, train, wait_for
from support.trainers import assert_same_bits
from support.warm import TESTS, Warm

from rlsd_lightning import InputError
from rlsd_lightning.distributed.processes import Processes, groups_of
from rlsd_lightning.distributed.shard import Shard


def one_by_one(small: list[str]) -> list[str]:
    """Networks that see one particle at a time compute the same bits however many there are."""
    return [*small, "trainer.accelerator=cpu", "method.particle_chunk=1", "num_particles=5"]


@pytest.fixture
def small(small: list[str]) -> list[str]:
    return one_by_one(small)


def ended(process: Warm | subprocess.Popen, seconds: float = 120) -> str:
    """What a process printed, once it has ended."""
    try:
        return process.communicate(timeout=seconds)[0]
    finally:
        process.kill()


def children(process: Warm | subprocess.Popen, command: str = "") -> list[int]:
    """Its children, or those whose command line has a word."""
    asked = ["pgrep", "-P", str(process.pid), "-f", command]
    listed = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    return [int(line) for line in listed.split()]


def test_a_run_on_apples_gpu_is_one_process_without_ddp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MPSAccelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    processes = Processes("auto", 1)
    assert (processes.device.type, processes.size, processes.strategy()) == ("mps", 1, "auto")
    assert Processes("cpu", 1).device.type == "cpu"


# --- precision -----------------------------------------------------------------------------------------------------


def test_float16_on_a_cpu_is_bfloat16_and_says_so(small: list[str], tmp_path: Path) -> None:
    for precision in ("16-mixed", "bf16-mixed"):
        settings = ("num_steps=5", f"trainer.precision={precision}", f"output_dir={tmp_path / precision}")
        code, printed = train(*small, *settings)
        assert code == 0, printed
        assert ("a CPU computes trainer.precision=16-mixed as bf16-mixed" in printed) == (precision == "16-mixed")
    assert_same_bits(tmp_path / "16-mixed" / "000", tmp_path / "bf16-mixed" / "000")


# --- stopped and killed --------------------------------------------------------------------------------------------


PATIENT = ["num_steps=20", SLOW]
"""Steps of over a tenth of a second: when the first checkpoint is there, most of them are left."""


@pytest.fixture(scope="module")
def whole(tiny_prior_folder: Path, tiny_features_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over two measurements that nothing stops."""
    folder = tmp_path_factory.mktemp("whole")
    command = one_by_one(small_run(tiny_prior_folder, tiny_features_folder))
    code, printed = train(*command, "num_steps=20", "data.limit=2", f"output_dir={folder}")
    assert code == 0, printed
    return folder


@pytest.mark.parametrize("to", [pytest.param("first", marks=pytest.mark.slow), "other"])
def test_a_signal_to_any_process_saves_and_the_run_goes_on_with_another_number(
    to: str, small: list[str], whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start_train(*small, *PATIENT, "trainer.devices=2", f"output_dir={run}", PYTHONPATH=TESTS)
    wait_for((run / "000" / "checkpoints" / "last.ckpt").is_file, process)
    os.kill(process.pid if to == "first" else children(process)[0], signal.SIGTERM)
    printed = ended(process, 60)
    assert process.returncode == 75, printed
    assert f"resume with: python train.py resume={run}" in printed
    assert "Traceback" not in printed
    assert train(f"resume={run}", "trainer.devices=1")[0] == 0
    assert_same_bits(run / "000", whole / "000")


@pytest.mark.slow
@pytest.mark.parametrize("to", ["all", "first"])
def test_processes_that_work_alone_finish_their_step(to: str, small: list[str], whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = [each for each in small if "every_n_train_steps" not in each]
    often = ["callbacks.checkpoint.every_n_train_steps=1", SLOW, "+callbacks.slow.seconds=13"]
    command = [*small, *often, "num_steps=20", "data.limit=2", "parallel=measurements"]
    process = start_train(*command, "trainer.devices=2", f"output_dir={run}", PYTHONPATH=TESTS)
    wait_for((run / "001" / "checkpoints" / "last.ckpt").is_file, process)
    time.sleep(2)  # into the next step
    for number in (process.pid, *(children(process) if to == "all" else ())):
        os.kill(number, signal.SIGINT)
    printed = ended(process, 90)
    assert process.returncode == 75, printed
    assert "process 1: stopped by" in printed
    for name in ("000", "001"):
        saved = torch.load(run / name / "checkpoints" / "last.ckpt", weights_only=True)
        assert saved["global_step"] == 2
    code, printed = train(f"resume={run}", "trainer.devices=1", SLOW, "+callbacks.slow.seconds=0")
    assert code == 0, printed
    for name in ("000", "001"):
        assert_same_bits(run / name, whole / name)


@pytest.mark.slow
def test_a_signal_to_one_lone_process_leaves_the_others_work_alone(
    small: list[str], whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [*small, *PATIENT, "data.limit=2", "parallel=measurements"]
    process = start_train(*command, "trainer.devices=2", f"output_dir={run}", PYTHONPATH=TESTS)
    wait_for((run / "001" / "checkpoints" / "last.ckpt").is_file, process)
    os.kill(children(process)[0], signal.SIGTERM)
    printed = ended(process, 60)
    assert process.returncode == 1, printed
    assert "results of 1 of 2 measurements" in printed
    assert "process 1: stopped by SIGTERM after step" in printed
    assert "Traceback" not in printed
    assert (run / "000" / "metrics.json").is_file()
    assert not (run / "001" / "metrics.json").is_file()
    code, printed = train(f"resume={run}", "trainer.devices=1")
    assert code == 0, printed
    assert "000: finished before, left as it is" in printed
    assert "001: going on from" in printed
    for name in ("000", "001"):
        assert_same_bits(run / name, whole / name)


@pytest.mark.parametrize("to", [pytest.param("first", marks=pytest.mark.slow), "other"])
def test_a_killed_process_takes_the_run_down_and_nothing_is_lost(
    to: str, small: list[str], whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start_train(*small, *PATIENT, "trainer.devices=2", f"output_dir={run}", PYTHONPATH=TESTS)
    wait_for((run / "000" / "checkpoints" / "last.ckpt").is_file, process)
    others = children(process)
    os.kill(process.pid if to == "first" else others[0], signal.SIGKILL)
    ended(process, 60)
    assert process.returncode != 0
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{other}").exists() for other in others):
        assert time.monotonic() < deadline, "a process outlived the run"
        time.sleep(0.1)
    assert train(f"resume={run}", "trainer.devices=1")[0] == 0
    assert_same_bits(run / "000", whole / "000")


def test_one_that_a_killed_process_started_ends_with_it_before_they_have_met(small: list[str], tmp_path: Path) -> None:
    process = start_train(*small, "num_steps=60", "trainer.devices=2", f"output_dir={tmp_path / 'run'}", new=True)
    # imports start other programs, too
    wait_for(lambda: children(process, "train.py"), process, seconds=300)
    os.kill(process.pid, signal.SIGKILL)  # the other still imports
    assert "error: the process that started it is gone" in ended(process, 60)


def start_faulty(small: list[str], run: Path, *settings: str, **fault: object) -> Warm:
    """Starts a run on two processes, with a fault before step 12."""
    fault = {"_target_": "support.faults.Fault", "step": 12, **fault}
    return start_train(
        *small,
        "num_steps=20",
        "trainer.devices=2",
        f"output_dir={run}",
        *settings,
        *(f"+callbacks.fault.{name}={value}" for name, value in fault.items()),
        PYTHONPATH=TESTS,
    )


@pytest.mark.slow
def test_a_process_that_works_alone_names_itself_in_its_error(small: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    fault = {"kind": "disk", "position": 0, "measurement": "'001'"}
    process = start_faulty(small, run, "data.limit=2", "parallel=measurements", "patience=20", **fault)
    printed = ended(process, 60)
    assert process.returncode != 0
    assert f"process 1: error: '{run}' can't be written to ([Errno 28] No space left on device)" in printed
    assert "process 0: " not in printed and "Traceback" not in printed


def test_a_full_disk_says_so_and_ends_the_run_within_seconds(small: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start_faulty(small, run, kind="disk", position=0)
    wait_for((run / "000" / "checkpoints" / "last.ckpt").is_file, process)
    printed = ended(process, 30)  # far below the patience of ten minutes
    assert process.returncode == 1, printed
    assert "process 1: error: lost touch with the other processes (" in printed
    assert f"error: '{run}' can't be written to ([Errno 28] No space left on device)" in printed
    assert "Traceback" not in printed
    assert printed.count(f"python train.py resume={run}") == 2


def test_a_bug_in_one_process_is_the_only_measurements_error(small: list[str], tmp_path: Path) -> None:
    process = start_faulty(small, tmp_path / "run", kind="bug", position=1)
    printed = ended(process)
    assert process.returncode == 1, printed
    assert printed.count("error: RuntimeError: a fault of its own (the log has the traceback)") == 1
    assert "Traceback" not in printed and "lost touch" not in printed
    logs = "".join(file.read_text() for file in (tmp_path / "run").glob("*.log"))
    assert "raise FAULTS[self.kind]\nRuntimeError: a fault" in logs


def test_a_foreign_checkpoint_is_one_error_and_not_a_hang(small: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(*small, "num_steps=5", f"output_dir={run}")[0] == 0
    (run / "000" / "metrics.json").unlink()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "000.png")
    process = start_train(f"resume={run}", f"data.images={tmp_path / '000.png'}", "trainer.devices=2", new=True)
    printed = ended(process)
    assert process.returncode == 1, printed
    assert "error: the checkpoint belongs to measurement '000'" in printed
    assert "Traceback" not in printed


@pytest.mark.slow
@pytest.mark.parametrize(("number", "times"), [(signal.SIGKILL, 50), (signal.SIGTERM, 20)])
def test_signals_at_random_moments_lose_and_change_nothing(
    number: signal.Signals, times: int, small: list[str], tmp_path: Path
) -> None:
    command = [*small, "num_steps=60", "data.limit=2"]
    assert train(*command, f"output_dir={tmp_path / 'whole'}")[0] == 0
    chance, moments = random.Random(int(number)), Counter()
    for turn in range(times):
        run = tmp_path / f"{turn}"
        process = start_train(*command, f"trainer.devices={chance.randint(1, 4)}", f"output_dir={run}")
        time.sleep(chance.uniform(1, 15))  # from its first imports to its last results
        begun = (run / ".hydra" / "config.yaml").is_file()
        if process.poll() is None:
            os.kill(chance.choice([process.pid, *children(process)]), number)
            saved, done = (len(list(run.glob(file))) for file in ("*/checkpoints/last.ckpt", "*/metrics.json"))
            moments[f"{saved} checkpoints, {done} results" if begun else "before the run began"] += 1
        else:
            moments["after its end"] += 1
        ended(process, 60)
        begun = (run / ".hydra" / "config.yaml").is_file()
        how = [f"resume={run}"] if begun else [*command, f"output_dir={run}"]
        again = start_train(*how, f"trainer.devices={chance.randint(1, 4)}")
        printed = ended(again, 180)
        assert again.returncode == 0, f"turn {turn}: {printed}"
        for name in ("000", "001"):
            assert_same_bits(run / name, tmp_path / "whole" / name)
        print(f"{turn + 1} of {times} {number.name}: {dict(moments)}", flush=True)


# --- who does what -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [0, 1, 2, 5, 8, 13])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_shares_cover_all_particles_once_and_evenly(total: int, size: int) -> None:
    shares = [Shard(position, size).rows(total) for position in range(size)]
    assert [row for share in shares for row in range(share.start, share.stop)] == list(range(total))
    counts = [share.stop - share.start for share in shares]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("parallel", "processes", "batches", "groups"),
    [
        ("auto", 4, 100, 4),
        ("auto", 4, 1, 1),
        ("auto", 4, 3, 2),
        ("auto", 6, 4, 3),
        ("auto", 1, 0, 1),
        ("measurements", 4, 1, 4),
        ("particles", 4, 9, 1),
        ("2x4", 8, 1, 2),
    ],
)
def test_groups(parallel: str, processes: int, batches: int, groups: int) -> None:
    assert groups_of(parallel, processes, batches)[0] == groups


@pytest.mark.parametrize("parallel", ["2x3", "both", "4", ""])
def test_groups_that_do_not_fit_are_refused(parallel: str) -> None:
    with pytest.raises(InputError, match="G times P = 8"):
        groups_of(parallel, 8, 1)
