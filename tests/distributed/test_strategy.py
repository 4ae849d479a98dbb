"""ParticleStrategy in a user's own script: real processes, started by Lightning and by torchrun."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import lightning as L
import pytest
import torch
from support import fit
from support.command import PROJECT, wait_for
from support.warm import TESTS, Warm

from rlsd_lightning import RLSD, InputError, LatentFeatures
from rlsd_lightning.results.store import read_metrics

SCRIPT = PROJECT / "tests" / "support" / "fit.py"
MIDDLE = Path("0") / "checkpoints" / "step=5.ckpt"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.fixture
def start(tiny_prior_folder: Path) -> Callable[..., Warm | subprocess.Popen]:
    """Starts the script, by torchrun in new interpreters; its two fits are of five particles."""

    def begin(
        folder: Path, *arguments: object, devices: int = 2, before: Sequence[str] = ()
    ) -> Warm | subprocess.Popen:
        folder.mkdir()
        command = [SCRIPT, tiny_prior_folder, folder, "--devices", devices, *arguments]
        environment = {**os.environ, "PYTHONPATH": TESTS}
        if not before:
            return Warm(command, environment, PROJECT, children=devices - 1, session=True)
        return subprocess.Popen(
            [sys.executable, *before, *map(str, command)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # a group of its own, in which stragglers are found
        )

    return begin


def ended(process: Warm | subprocess.Popen, seconds: float = 240) -> str:
    """What a process printed, once it and all those it started have ended."""
    try:
        printed = process.communicate(timeout=seconds)[0]
        for _ in range(100):
            if subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, check=False).returncode:
                return printed
            time.sleep(0.1)
        raise AssertionError(f"a process outlived its run, which printed {printed}")
    finally:
        subprocess.run(["pkill", "-KILL", "-g", str(process.pid)], check=False)


def kept(folder: Path, processes: int) -> list[dict]:
    """What each process wrote."""
    return [torch.load(folder / f"process{rank}.pt", weights_only=True) for rank in range(processes)]


def alone(prior: Path, folder: Path, *arguments: object) -> dict:
    """What the script writes on one device, run in this process."""
    folder.mkdir()
    with mock.patch.dict(os.environ):
        fit.main(list(map(str, (prior, folder, *arguments))))
    return kept(folder, 1)[0]


@pytest.fixture(scope="module")
def one(tiny_prior_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """What the script writes on one device, and a checkpoint in the middle of its first fit."""
    folder = tmp_path_factory.mktemp("alone") / "one"
    return alone(tiny_prior_folder, folder), folder / MIDDLE


@pytest.mark.parametrize(
    ("count", "before"),
    [pytest.param(3, (), id="lightning", marks=pytest.mark.slow), pytest.param(2, TORCHRUN, id="torchrun")],
)
def test_particles_are_spread_and_the_same_on_any_number_of_processes(
    count: int,
    before: Sequence[str],
    one: tuple[dict, Path],
    start: Callable,
    tiny_prior_folder: Path,
    tmp_path: Path,
) -> None:
    one, middle = one
    process = start(tmp_path / "many", "--checkpoint", middle, devices=count, before=before)
    printed = ended(process)
    assert process.returncode == 0, printed
    processes = kept(tmp_path / "many", count)
    for number, expected in enumerate(one["fits"]):
        found = [process["fits"][number] for process in processes]
        rows = [each["rows"] for each in found]
        assert sum(rows) == 5
        assert max(rows) < 5
        for rank, each in enumerate(found):
            assert each["x"].equal(expected["x"])
            assert each["steps"] == expected["steps"] == 10
            # its own rows only; a lone one needs no second decode in the backward pass
            assert 0 < each["decoded"] * 5 <= expected["decoded"] * rows[rank]
            assert each["is_first"] == (rank == 0,) * 3
            assert each["world"] == count
            assert each["broadcast"] == "from 0"
            assert each["gathered"] == rows
            assert each["sum"] == 5
            assert each["decisions"] == [False, True]
    whole = one["fits"][0]
    assert not whole["x"].equal(one["fits"][1]["x"])
    # resumed in the middle, on another number of processes
    back = alone(tiny_prior_folder, tmp_path / "back", "--only-resume", "--checkpoint", tmp_path / "many" / MIDDLE)
    for resumed in (back["resumed"], *(process["resumed"] for process in processes)):
        assert resumed["x"].equal(whole["x"])
        assert resumed["steps"] == 10
        assert resumed["decoded"] < whole["decoded"] * 3 / 4
    # solve() returns the same result in every process, and the first one writes it
    assert len(one["solved"]) == 5
    assert all(process["solved"].equal(one["solved"]) for process in processes)
    assert all(process["metrics"] == processes[0]["metrics"] for process in processes)
    assert read_metrics(tmp_path / "many" / "saved") == processes[0]["metrics"]


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGKILL, id="killed"), pytest.param(signal.SIGSTOP, id="hung", marks=pytest.mark.slow)],
)
def test_a_script_ends_when_one_of_its_processes_does(number: signal.Signals, start: Callable, tmp_path: Path) -> None:
    process = start(tmp_path / "run", "--steps", 900, "--patience", 5)
    wait_for((tmp_path / "run" / MIDDLE).is_file, process)
    other = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(other), number)
    printed = ended(process, 60)
    assert process.returncode != 0
    if number == signal.SIGSTOP:  # a killed one's end may be seen by Lightning first, which ends all without a word
        assert "rlsd_lightning.errors.LostError: " in printed


def test_other_strategies_are_refused_in_a_script(start: Callable, tmp_path: Path) -> None:
    process = start(tmp_path / "run", "--strategy", "ddp")
    printed = ended(process)
    assert process.returncode == 1
    assert "InputError: the Trainer's strategy must be a ParticleStrategy" in printed
    assert not list((tmp_path / "run").glob("*.pt"))


@pytest.mark.parametrize("strategy", ["auto", "ddp", "ddp_find_unused_parameters_true"])
def test_strategies_that_average_gradients_are_refused(strategy: str, tiny_prior, measurement) -> None:
    module = RLSD(tiny_prior, measurement, LatentFeatures(), num_steps=2)
    module.trainer = L.Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False)
    with pytest.raises(InputError, match=r"must be a ParticleStrategy .*, got DDPStrategy, .* strategy=ParticleStr"):
        module.setup("fit")


def test_a_module_without_a_trainer_has_all_particles(tiny_prior, measurement, tmp_path: Path) -> None:
    module = RLSD(tiny_prior, measurement, LatentFeatures(), num_steps=2)
    assert (module.shard.size, module.rows) == (1, slice(0, 4))
    with pytest.raises(AttributeError):
        module.shard = None
