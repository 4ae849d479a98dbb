"""Studies: every one runs on the smallest sizes, goes on with what is missing, and gathers what there is."""

import csv
from pathlib import Path

import pytest
import yaml
from command import PROJECT, train
from PIL import Image

from rlsd_lightning import InputError
from rlsd_lightning.study import gather, pareto_front

STUDIES = {file.stem: file for file in sorted((PROJECT / "configs/experiment/study").glob("*.yaml"))}


@pytest.fixture
def tiny(small: list[str], tmp_path: Path) -> list[str]:
    """Overrides for the smallest runs, in a folder of the test's."""
    return [*small[:2], "data.limit=1", f"hydra.sweep.dir={tmp_path / 'study'}"]


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
    assert rows[0][axes[0]] != rows[1][axes[0]]
    assert all(float(row["psnr_best"]) > 0 for row in rows)
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
    assert [row["num_particles"] for row in csv.DictReader((tmp_path / "study" / "study.csv").open())] == list("123")


def test_no_point_is_above_the_front_in_both():
    points = [(0.1, 20.0), (0.3, 18.0), (0.2, 17.0), (0.3, 19.0), (0.05, 20.0), (0.4, 10.0)]
    assert [points[index] for index in pareto_front(points)] == [(0.1, 20.0), (0.3, 19.0), (0.4, 10.0)]


def test_a_folder_without_runs_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"has no multirun\.yaml"):
        gather(tmp_path)
    with pytest.raises(InputError, match="has no finished run"):
        gather(tmp_path, ["method.gamma"])
