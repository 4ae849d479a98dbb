"""Every form of a run ends with the same bits on any number of processes, which are real and exchange through gloo."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.command import PROJECT, small_run, train, wait_for
from support.trainers import assert_same_bits
from support.warm import TESTS, Warm

# the processes are started once, so all of these tests belong to one worker
pytestmark = pytest.mark.xdist_group("processes")

TOGETHER = ["parallel=particles", "num_steps=6"]
BATCH = [*TOGETHER, "data.limit=2", "measurements_per_batch=2"]
VIT = ["features=vit", "features.pretrained={features}"]
CASES: dict[str, tuple[int, list[str]]] = {
    "vit": (2, [*TOGETHER, *VIT, "method.gamma=0.5"]),
    # one process has no particle at all
    "empty": (3, [*TOGETHER, "num_particles=2", "method=distilled", "method.repulsion_saturation=3"]),
    "fresh": (3, [*TOGETHER, "method.eta=inf", "method.refine_share=0"]),
    "selection": (2, [*TOGETHER, "method.outlier_ratio=1"]),
    "paper": (2, [*TOGETHER, *VIT, "method=rlsd_paper"]),
    "batch": (3, [*BATCH, "method=distilled", "method.repulsion_saturation=3"]),
    "bf16": (2, [*TOGETHER, "trainer.precision=bf16-mixed"]),
    **{method: (2, [*BATCH, f"method={method}"]) for method in ("rlsd", "daps", "dwgf")},
    "twisted": (2, [*BATCH, "method=twisted", "method.resample_below=0.9"]),
    "measurements": (2, ["parallel=auto", "num_steps=5", "data.limit=3", "trainer.log_every_n_steps=5"]),
    # one group takes twice as many steps as the other
    "groups": (4, ["parallel=2x2", "num_steps=5", "data.limit=3"]),
}
RARE = ("fresh", "paper", "bf16", "daps", "dwgf", "twisted")
"""Cases of the slow tests."""
FORMED = {
    "measurements": "2 processes: 2 groups of 1, as parallel=auto with 3 batches",
    "groups": "4 processes: 2 groups of 2, as parallel=2x2",
}
"""What a run says of its groups, unless all processes form one."""


@pytest.fixture(scope="module")
def commands(tiny_prior_folder: Path, tiny_features_folder: Path) -> dict[str, list[str]]:
    """The command line of each case, without its devices and its folder."""
    # networks that see one particle at a time compute the same bits however many there are
    small = [*small_run(tiny_prior_folder, tiny_features_folder), "trainer.accelerator=cpu", "method.particle_chunk=1"]
    return {
        name: [*small, "num_particles=5", *(setting.format(features=tiny_features_folder) for setting in settings)]
        for name, (_, settings) in CASES.items()
    }


@pytest.fixture(scope="module")
def on_processes(
    commands: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Callable[[str], Path]]:
    """Waits for a case, which must end well in every process; returns the run's folder."""
    folder = tmp_path_factory.mktemp("many")
    cases = [
        {"name": name, "size": size, "arguments": [*commands[name], f"output_dir={folder / name}"]}
        for name, (size, _) in CASES.items()
        if any(f"[{name}]" in item.name for item in request.session.items if item.path == request.path)
    ]
    (folder / "cases.json").write_text(json.dumps(cases))
    command = [PROJECT / "tests" / "support" / "ranks.py", folder / "cases.json"]
    # a session of its own, which ends as a whole
    process = Warm(command, {**os.environ, "PYTHONPATH": TESTS}, PROJECT, session=True)

    def ended(name: str) -> Path:
        size = CASES[name][0]
        files = [folder / f"{name}.{rank}.json" for rank in range(size)]
        wait_for(lambda: all(file.is_file() for file in files), process, seconds=300)
        said = [json.loads(file.read_text()) for file in files]
        assert [code for code, _ in said] == [0] * size, said
        expected = FORMED.get(name, f"{size} processes: 1 groups of {size}, as parallel=particles")
        assert [expected in printed for _, printed in said] == [rank == 0 for rank in range(size)], said
        return folder / name

    yield ended
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in RARE else name for name in CASES]
)
def test_runs_on_processes_end_with_the_same_bits(
    name: str, commands: dict[str, list[str]], on_processes: Callable[[str], Path], tmp_path: Path
) -> None:
    code, printed = train(*commands[name], "parallel=auto", f"output_dir={tmp_path}")
    assert code == 0, printed
    many = on_processes(name)
    finished = [file.parent.name for file in tmp_path.glob("*/metrics.json")]
    for measurement in finished:
        assert_same_bits(tmp_path / measurement, many / measurement)
    rows = (many / "summary.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["name", *sorted(finished), "mean"]
    if name in FORMED:
        assert sorted(finished) == ["000", "001", "002"]
        assert [len(list((many / measurement).glob("events.*"))) for measurement in finished] == [1, 1, 1]
