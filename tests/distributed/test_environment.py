"""One device runs alone, whatever a scheduler's variables say; several are launched where srun did not."""

import os
import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import ListConfig
from support.command import train

from rlsd_lightning import LatentFeatures, StableDiffusionPrior, solve
from rlsd_lightning.distributed.environment import Alone, cluster_environment, is_one_device
from rlsd_lightning.distributed.processes import Processes
from rlsd_lightning.errors import InputError
from rlsd_lightning.operators import denoising

NOTEBOOK = {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "spawner-jupyter"}
BATCH = {
    "SLURM_NTASKS": "8",
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "fit",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
TASK = {**BATCH, "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "2"}
JOBS = {"notebook": NOTEBOOK, "batch script": BATCH, "one of four tasks": TASK}


@pytest.fixture(params=JOBS.values(), ids=JOBS)
def job(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Variables of a shell in a SLURM job, with the rank that Lightning takes from them when it is imported."""
    monkeypatch.setattr(rank_zero_only, "rank", int(request.param.get("SLURM_PROCID", 0)))
    for name, value in request.param.items():
        monkeypatch.setenv(name, value)
    return request.param


@pytest.mark.usefixtures("job")
def test_one_device_is_the_first_and_only_process() -> None:
    processes = Processes("cpu", 1)
    assert (processes.rank, processes.size, processes.is_first) == (0, 1, True)
    assert isinstance(processes.environment[0], Alone)
    assert rank_zero_only.rank == 0


@pytest.mark.parametrize("job", [TASK], ids=["one of four tasks"], indirect=True)
@pytest.mark.usefixtures("job")
def test_the_command_runs_in_a_shell_of_a_job(small: list[str], tmp_path: Path) -> None:
    code, printed = train(*small, "num_steps=2", "seed=2", f"output_dir={tmp_path}")
    assert code == 0, printed
    assert (tmp_path / "000" / "metrics.json").is_file()
    assert "Traceback" not in printed and "process 2" not in printed


@pytest.mark.usefixtures("job")
def test_python_solves_in_a_notebook_of_a_job(tiny_prior: StableDiffusionPrior) -> None:
    y = torch.zeros(1, *tiny_prior.image_shape)
    quiet = {"accelerator": "cpu", "enable_progress_bar": False}
    result = solve(
        y, denoising(tiny_prior.image_shape), tiny_prior, features=LatentFeatures(), num_steps=2, trainer=quiet
    )
    assert result.is_first and len(result.particles) == 4


@pytest.mark.parametrize(
    ("devices", "num_nodes", "one"),
    [
        (1, 1, True),
        ("1", 1, True),
        ([3], 1, True),
        (ListConfig([3]), 1, True),
        (2, 1, False),
        ([0, 1], 1, False),
        ("auto", 1, False),
        (1, 2, False),
    ],
)
def test_what_one_device_is(devices: object, num_nodes: int, one: bool) -> None:
    assert is_one_device(devices, num_nodes) is one


def test_several_devices_in_a_shell_are_launched_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in NOTEBOOK.items():
        monkeypatch.setenv(name, value)
    (environment,) = cluster_environment(2, 1)
    assert type(environment) is LightningEnvironment and not environment.creates_processes_externally
    assert "SLURM_PROCID, SLURM_LOCALID, SLURM_NODEID not set in this SLURM job" in caplog.text


def test_tasks_of_srun_and_processes_of_torchrun_stay_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TASK.items():
        monkeypatch.setenv(name, value)
    (environment,) = cluster_environment(4, 1)
    assert isinstance(environment, SLURMEnvironment) and not environment.auto_requeue
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    assert cluster_environment(4, 1) == cluster_environment(1, 1) == []
    assert os.environ["SLURM_PROCID"] == "2"


@pytest.mark.parametrize(
    ("devices", "said"),
    [(1, "as torchrun has started, 2, got 1; set devices to"), (3, "does not match the world size")],
)
def test_another_number_of_processes_than_torchrun_has_started_is_refused(
    devices: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "run", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=re.escape(said)):
        Processes("cpu", devices)
