"""Studies: every one runs on the smallest sizes, goes on with what is missing, and gathers what there is."""

import csv
from pathlib import Path

import pytest
import yaml
from PIL import Image
from support.command import PROJECT, train

from rlsd_lightning import InputError
from rlsd_lightning.cli.subcommands.study import gather, main, pareto_front

STUDIES = {file.stem: file for file in sorted((PROJECT / "configs/experiment/study").glob("[!_]*.yaml"))}


@pytest.fixture
def tiny(small: list[str], tmp_path: Path) -> list[str]:
    """Overrides for the smallest runs, in a folder of the test's."""
    return [*small[:1], "data.limit=1", f"hydra.sweep.dir={tmp_path / 'study'}"]


def first_two(study: str) -> tuple[list[str], str]:
    """The axes of a study, and an override that leaves two values of the first and one of each other."""
    params = yaml.safe_load(STUDIES[study].read_text())["hydra"]["sweeper"]["params"]
    kept = {axis: values.split(",")[: 1 if index else 2] for index, (axis, values) in enumerate(params.items())}
    chosen = ",".join(f"{axis}:'{','.join(values)}'" for axis, values in kept.items())
    return list(params), f"hydra.sweeper.params={{{chosen}}}"


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_is_one_command_and_one_table(study: str, tiny: list[str], tmp_path: Path):
    axes, fewer = first_two(study)
    command = [f"experiment=study/{study}", *tiny, fewer]
    command += ["num_steps=3"] if study != "steps" else []
    command += ["num_particles=2"] if study != "particles" else []
    code, printed = train(*command)
    assert code == 0, printed
    rows = list(csv.DictReader((tmp_path / "study" / "study.csv").open()))
    assert len(rows) == 2
    assert list(rows[0])[: len(axes)] == axes
    assert {row["measurements"] for row in rows} == {"1"}
    assert rows[0][axes[0]] != rows[1][axes[0]]
    runs = [list(csv.DictReader(file.open()))[-1] for file in (tmp_path / "study").glob("*/summary.csv")]
    assert {row["psnr_best"] for row in rows} == {run["psnr_best"] for run in runs}
    with Image.open(tmp_path / "study" / "study.png") as picture:
        picture.load()


def test_the_same_command_goes_on_with_what_is_missing(tiny: list[str], tmp_path: Path):
    command = ["experiment=study/particles", *tiny, "num_steps=3"]
    code, printed = train(*command, "hydra.sweeper.params.num_particles='1,2'")
    assert code == 0, printed
    kept = tmp_path / "study" / "n=1" / "000" / "metrics.json"
    before = kept.stat().st_mtime_ns
    (tmp_path / "study" / "n=2" / "000" / "metrics.json").unlink()
    code, printed = train(*command, "hydra.sweeper.params.num_particles='1,2,3'")
    assert code == 0, printed
    assert kept.stat().st_mtime_ns == before
    assert (tmp_path / "study" / "n=2" / "000" / "metrics.json").is_file()
    assert [row["num_particles"] for row in csv.DictReader((tmp_path / "study" / "study.csv").open())] == [
        "1",
        "2",
        "3",
    ]


def test_a_run_that_fails_does_not_keep_the_others_from_the_table(tiny: list[str], tmp_path: Path):
    code, printed = train(
        "experiment=study/particles", *tiny, "num_steps=3", "hydra.sweeper.params.num_particles='0,1,2'"
    )
    assert code == f"error: 1 runs of this multirun have failed: {tmp_path / 'study' / 'n=0'}", printed
    assert "num_particles must be at least 1, got 0" in printed
    assert [row["num_particles"] for row in csv.DictReader((tmp_path / "study" / "study.csv").open())] == ["1", "2"]


def test_a_study_that_cannot_be_gathered_fails(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(folder: Path) -> None:
        raise InputError(f"'{folder}' has no result of a study")

    monkeypatch.setattr("rlsd_lightning.cli.subcommands.study.gather", full)
    code, printed = train("experiment=study/particles", *tiny, "num_steps=2", "hydra.sweeper.params.num_particles='1'")
    assert code == 1, printed
    assert f"error: '{tmp_path / 'study'}' has no result of a study" in printed


def test_runs_of_a_multirun_are_in_its_folder(tiny: list[str], tmp_path: Path):
    settings = [item for item in tiny if not item.startswith(("hydra.sweep.dir", "output_dir"))]
    code, printed = train("-m", *settings, "num_steps=2", "num_particles=1,2", f"hydra.sweep.dir={tmp_path / 'both'}")
    assert code == 0, printed
    assert sorted(file.parts[-3] for file in (tmp_path / "both").glob("*/*/metrics.json")) == ["0", "1"]


def test_several_processes_are_refused(tiny: list[str]):
    # before networks are loaded: there are none
    command = [*tiny, "prior.pretrained=nowhere", "trainer.devices=2", "hydra.sweeper.params.num_steps='3'"]
    code, printed = train("experiment=study/steps", *command)
    assert code, printed
    assert "trainer.devices must be 1 in a multirun and a study" in printed


def summary(folder: Path, overrides: list[str], best: float) -> None:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    (folder / "summary.csv").write_text(f"name,psnr_best,vendi\n000,{best},0.1\nmean,{best},0.1\n")


def test_rows_are_in_the_order_of_their_numbers_and_hold_their_own_figures(tmp_path: Path):
    (tmp_path / "multirun.yaml").write_text("hydra: {sweeper: {params: {method.gamma: '10,1e-05,0.5', task: 'a,b'}}}")
    for gamma, task, best in (("10", "a", 3.0), ("1e-05", "b", 1.0), ("0.5", "a", 2.0)):
        summary(tmp_path / f"{gamma}_{task}", [f"method.gamma={gamma}", f"task={task}", "~callbacks.progress"], best)
    summary(tmp_path / "another", ["task=a"], 9.0)
    rows = gather(tmp_path)
    assert [(row["method.gamma"], row["task"], row["psnr_best"]) for row in rows] == [
        (1e-05, "b", 1.0),
        (0.5, "a", 2.0),
        (10.0, "a", 3.0),
    ]


def test_no_point_is_above_the_front_in_both():
    points = [(0.1, 20.0), (0.3, 18.0), (0.2, 17.0), (0.3, 19.0), (0.05, 20.0), (0.4, 10.0)]
    assert [points[index] for index in pareto_front(points)] == [(0.1, 20.0), (0.3, 19.0), (0.4, 10.0)]


def test_a_folder_without_runs_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"has no multirun\.yaml"):
        gather(tmp_path)
    (tmp_path / "multirun.yaml").write_text("hydra: {sweeper: {params: {method.gamma: '0,1'}}}")
    with pytest.raises(InputError, match="has no result of a study"):
        gather(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("multirun.yaml", "hydra: {sweeper: "),
        ("multirun.yaml", "[1, 2]"),
        ("0/.hydra/overrides.yaml", "- 'method.gamma=0"),
        ("0/summary.csv", ""),
        ("0/.hydra/overrides.yaml", None),
    ],
)
def test_damaged_files_of_a_study_are_one_line(file: str, content: str | None, tmp_path: Path, capsys):
    (tmp_path / "multirun.yaml").write_text("hydra: {sweeper: {params: {method.gamma: '0,1'}}}")
    summary(tmp_path / "0", ["method.gamma=0"], 1.0)
    (tmp_path / file).unlink() if content is None else (tmp_path / file).write_text(content)
    assert main([str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and str(tmp_path) in line
