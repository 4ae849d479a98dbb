"""Real processes of a group agree on what has failed in one of them, wherever it fails, and go on."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from support.faults import Fault
from support.processes import Group, as_process, forked
from support.trainers import assert_same_bits, trainer_with

from rlsd_lightning import RLSD, InputError, LatentFeatures, Measurement, ParticleStrategy
from rlsd_lightning.distributed.agreement import together
from rlsd_lightning.engine.runner import run_measurements
from rlsd_lightning.errors import FailedError, PeerError
from rlsd_lightning.measurement import MeasurementList
from rlsd_lightning.operators import inpainting, super_resolution
from rlsd_lightning.results.store import read_failures

FAULTS = {
    "in a step": {"kind": "bug", "position": 1, "step": 2},
    "at the end of a step": {"kind": "bug", "position": 1, "step": "after 1"},
    "while results are written": {"kind": "bug", "position": 0, "step": "end"},
    "at the end of another": {"kind": "bug", "position": 1, "step": "end"},
}


@pytest.fixture
def run(tiny_prior, tmp_path: Path) -> Callable[..., tuple[int, int]]:
    """A run in one process of a group."""

    def module(measurements: Sequence[Measurement]) -> RLSD:
        settings = {"num_steps": 4, "num_particles": 3, "particle_chunk": 1}
        return RLSD(tiny_prior, measurements, LatentFeatures(), **settings)

    def start(group: Group | None, data: MeasurementList, folder: str, fault: dict | None = None, size: int = 1):
        callbacks = [Fault(**fault)] if fault else []

        def trainer(own: Path, **place) -> L.Trainer:
            devices = {} if group is None else {"devices": group.size, "strategy": ParticleStrategy()}
            return trainer_with(own, *callbacks, results=tmp_path / folder, **place, **devices)

        return run_measurements(
            data, module, trainer, tmp_path / folder, measurements_per_batch=size, processes=group, parallel="particles"
        )

    return start


@pytest.fixture
def data(measurement: Measurement) -> MeasurementList:
    return MeasurementList(measurement._replace(name=name) for name in "abc")


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_in_one_process_costs_one_measurement(
    fault: dict, run: Callable, data: MeasurementList, tmp_path: Path
) -> None:
    fault = {**fault, "measurement": "b"}
    assert forked(tmp_path, 2, lambda group: run(group, data, "many", fault)) == [(2, 1), (0, 0)]
    assert [row["name"] for row in read_failures(tmp_path / "many")] == ["b"]
    assert "a fault of its own" in read_failures(tmp_path / "many")[0]["reason"]
    for name in "ac":
        assert (tmp_path / "many" / name / "metrics.json").is_file()


def test_the_others_end_with_the_same_bits(run: Callable, data: MeasurementList, tmp_path: Path) -> None:
    fault = {"kind": "bug", "position": 0, "step": 0, "measurement": "b"}
    forked(tmp_path, 2, lambda group: run(group, data, "many", fault))
    assert run(None, MeasurementList(data[2:]), "one") == (1, 0)
    assert_same_bits(tmp_path / "many" / "c", tmp_path / "one" / "c")


def test_a_full_memory_of_one_process_halves_the_batch_of_all(
    run: Callable, data: MeasurementList, tmp_path: Path
) -> None:
    fault = {"kind": "memory", "position": 1, "step": 2, "measurement": "a to c"}
    assert forked(tmp_path, 2, lambda group: run(group, data, "many", fault, size=3)) == [(3, 0), (0, 0)]
    folders = {path.parent.parent.name for path in (tmp_path / "many").glob("*/checkpoints/last.ckpt")}
    assert {"batch_0000-0001", "c"} <= folders


def test_what_one_process_can_not_read_none_solves(run: Callable, data: MeasurementList, tmp_path: Path) -> None:
    class Flaky(MeasurementList):
        position = 0

        def __getitem__(self, index: int) -> Measurement:
            if index == 1 and self.position:
                raise OSError(5, "Input/output error")
            return super().__getitem__(index)

    def solve(group: Group) -> tuple[int, int]:
        flaky = Flaky(data)
        flaky.position = group.shard.position
        return run(group, flaky, "many")

    assert forked(tmp_path, 2, solve) == [(2, 1), (0, 0)]
    assert "Input/output error" in read_failures(tmp_path / "many")[0]["reason"]


@pytest.mark.parametrize("position", [0, 1])
def test_the_first_process_of_a_group_says_a_failure_once(
    position: int, run: Callable, data: MeasurementList, tmp_path: Path
) -> None:
    def said(group: Group) -> list[str]:
        records: list[logging.LogRecord] = []
        handler = logging.Handler(logging.INFO)
        handler.emit = records.append
        logging.getLogger("rlsd_lightning").addHandler(handler)
        run(group, data, "many", {"kind": "bug", "position": position, "step": 1, "measurement": "b"})
        return [record.getMessage() for record in records if record.levelno >= logging.INFO]

    first, other = forked(tmp_path, 2, said)
    assert sum(line.startswith("b: RuntimeError: a fault of its own") for line in first) == 1
    assert other == []


def test_the_first_process_speaks_for_the_only_measurement(
    run: Callable, data: MeasurementList, tmp_path: Path
) -> None:
    def solve(group: Group) -> tuple[str, str]:
        try:
            run(group, MeasurementList(data[:1]), "many", {"kind": "bug", "position": 1, "step": 2})
        except (InputError, PeerError) as error:
            return type(error).__name__, str(error)

    (first, said), (other, _) = forked(tmp_path, 2, solve)
    assert (first, other) == ("InputError", "PeerError")
    assert said.startswith("RuntimeError: a fault of its own")


def test_all_have_the_reason_of_the_first_that_fails(tmp_path: Path) -> None:
    def work(group: Group) -> list[str]:
        said = []
        for failing in ([], [0], [2], [0, 1], [0, 1, 2]):

            def step(failing: list[int] = failing) -> Sequence[float]:
                group.shard.gather(torch.ones(1), 3)
                if group.shard.position in failing:
                    raise ValueError(f"of {group.shard.position}")
                return group.shard.sum(torch.ones(1)).tolist()

            try:
                said.append(str(together(group.shard, step)))
            except FailedError as error:
                said.append(str(error).split(" (")[0])
        return said

    expected = ["[3.0]", "ValueError: of 0", "ValueError: of 2", "ValueError: of 0", "ValueError: of 0"]
    assert forked(tmp_path, 3, work) == [expected] * 3


@pytest.mark.parametrize("differs", ["noise", "mask", "shape", "name", None])
def test_processes_with_different_measurements_are_told_so(differs: str | None, tiny_prior, tmp_path: Path) -> None:
    shape = tiny_prior.image_shape

    def started(group: Group) -> str:
        own = group.shard.position if differs else 0
        physics = inpainting(shape, "box" if differs == "mask" and own else "half", sigma=0.01)
        if differs == "shape" and own:
            physics = super_resolution(shape, 2)
        torch.manual_seed(own if differs == "noise" else 0)
        measurement = Measurement(f"face{own if differs == 'name' else ''}", physics(torch.zeros(1, *shape)), physics)
        module = RLSD(tiny_prior, measurement, LatentFeatures(), num_steps=2, num_particles=2)
        as_process(module, group.shard.position, 2)._trainer = SimpleNamespace(
            strategy=None, world_size=1, gradient_clip_val=0, accumulate_grad_batches=1, precision="32-true"
        )
        try:
            module.setup("fit")
        except InputError as error:
            return str(error)
        return "alike"

    said = forked(tmp_path, 2, started)
    assert said[0] == said[1]
    if differs is None:
        assert said[0] == "alike"
    else:
        assert "those of process 1 (" in said[0] and "torch.manual_seed" in said[0]
