"""A cut cable: two machines that are network namespaces, joined by a pair of virtual interfaces."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command import SLOW, small_run, start_train, train, wait_for
from support.trainers import assert_same_bits
from support.warm import TESTS, Warm

ADDRESSES = ("10.77.0.1", "10.77.0.2")
PATIENCE = 5
COMMAND = ["trainer.accelerator=cpu", "method.particle_chunk=1", "num_steps=20"]


def ip(*arguments: str) -> int:
    return subprocess.run(["ip", *arguments], capture_output=True, check=False).returncode


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    """Names of two namespaces; the interface of each is called cable."""
    names = tuple(f"rlsd{os.getpid()}{letter}" for letter in "ab")
    if shutil.which("ip") is None or ip("netns", "add", names[0]):
        pytest.skip("network namespaces are not allowed here")
    try:
        ip("netns", "add", names[1])
        ip("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            assert ip("-n", name, "link", "set", "lo", "up") == ip("-n", name, "link", "set", "cable", "up") == 0
        yield names
    finally:
        for name in names:
            ip("netns", "delete", name)


def start_on(machines: tuple[str, str], *arguments: object) -> list[Warm]:
    """Starts a process on each machine, with what torchrun tells it."""
    return [
        start_train(
            *arguments,
            "trainer.num_nodes=2",
            f"patience={PATIENCE}",
            network=machine,
            TORCHELASTIC_RUN_ID="cut",
            MASTER_ADDR=ADDRESSES[0],
            MASTER_PORT=29500,
            RANK=rank,
            GROUP_RANK=rank,
            LOCAL_RANK=0,
            LOCAL_WORLD_SIZE=1,
            WORLD_SIZE=2,
            GLOO_SOCKET_IFNAME="cable",
            PYTHONPATH=TESTS,
        )
        for rank, machine in enumerate(machines)
    ]


@pytest.fixture(scope="module")
def whole(tiny_prior_folder: Path, tiny_features_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over both faces that nothing stops."""
    folder = tmp_path_factory.mktemp("whole")
    small = small_run(tiny_prior_folder, tiny_features_folder)
    code, printed = train(*COMMAND, *small, "data.limit=2", f"output_dir={folder}")
    assert code == 0, printed
    return folder


@pytest.mark.parametrize(
    ("parallel", "faces"), [("particles", 1), pytest.param("measurements", 2, marks=pytest.mark.slow)]
)
def test_a_cut_cable_ends_both_in_one_line_and_the_run_goes_on(
    parallel: str, faces: int, machines: tuple[str, str], whole: Path, small: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    names = [f"{index:03d}" for index in range(faces)]
    processes = start_on(
        machines, *COMMAND, *small, f"data.limit={faces}", SLOW, f"parallel={parallel}", f"output_dir={run}"
    )
    try:
        for name in names:
            wait_for((run / name / "checkpoints" / "last.ckpt").is_file, processes[0])
        ip("-n", machines[0], "link", "set", "cable", "down")
        printed = [process.communicate(timeout=90)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, (process, text) in enumerate(zip(processes, printed, strict=True)):
        assert process.returncode == 1, text
        assert "Traceback" not in text
        assert f"{f'process {rank}: ' if rank else ''}error: lost touch with the other processes (" in text
        assert f"resume with: python train.py resume={run}" in text
    if parallel == "measurements":  # each goes on alone with what it has
        assert all((run / name / "metrics.json").is_file() for name in names)
    assert train(f"resume={run}", "trainer.num_nodes=1")[0] == 0
    for name in names:
        assert_same_bits(run / name, whole / name)
