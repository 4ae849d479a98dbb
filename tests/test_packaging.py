"""What an installation holds: the package, the configs, and the embedded data that they name."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from support.command import PROJECT

from rlsd_lightning import InputError, embedded, resources

pytestmark = pytest.mark.xdist_group("packaging")  # which is built once

PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
WHEEL = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
INSIDE = "rlsd_lightning/_project/"
MEBIBYTES = 90
"""Most that an installation may take, with both embedded priors."""


def named_in_configs() -> set[str]:
    """Paths that the configs look up in the project."""
    texts = (file.read_text() for file in resources.CONFIGS.rglob("*.yaml"))
    return {path for text in texts for path in re.findall(r"\$\{project:([^}]+)\}", text)}


def files_below(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def test_what_configs_name_is_in_the_wheel() -> None:
    named = named_in_configs()
    assert len(named) >= 4
    for path in named:
        assert files_below(resources.PROJECT / path), f"{path} is empty or not there"
        assert f"/{path}".startswith(tuple(f"{root}/" for root in WHEEL["include"]))
        assert not f"/{path}/".startswith(tuple(f"{left_out}/" for left_out in WHEEL["exclude"]))
    assert {target.rsplit("/", 1)[0] + "/" for target in WHEEL["sources"].values()} == {INSIDE}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The source distribution and the wheel built from it, by their suffixes."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
    return {file.suffix: file for file in folder.iterdir()}


def test_the_index_would_take_what_is_built(built: dict[str, Path]) -> None:
    twine = pytest.importorskip("twine.commands.check")
    assert sorted(built) == [".gz", ".whl"]
    assert not twine.check([str(file) for file in built.values()], strict=True)


def test_the_version_is_the_same_everywhere(built: dict[str, Path]) -> None:
    version = PYPROJECT["project"]["version"]
    assert yaml.safe_load((PROJECT / "CITATION.cff").read_text())["version"] == version
    assert re.findall(r"^## (\S+)", (PROJECT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == version
    with tarfile.open(built[".gz"]) as source:
        assert f"rlsd_lightning-{version}/CITATION.cff" in source.getnames()


def test_the_built_wheel_holds_all_that_a_run_needs(built: dict[str, Path]) -> None:
    wheel = built[".whl"]
    assert wheel.stat().st_size < MEBIBYTES * 2**20
    held = set(zipfile.ZipFile(wheel).namelist())
    folders = ("faces/heldout", "features", "priors", "photos", "masks", "kernels")
    expected = {str(file.relative_to(PROJECT)) for file in (PROJECT / "rlsd_lightning").rglob("*.py")}
    expected |= {"rlsd_lightning/results/report.html.jinja"}
    for folder in ("configs", *(f"data/{name}" for name in folders)):
        expected |= {INSIDE + str(file.relative_to(PROJECT)) for file in files_below(PROJECT / folder)}
    assert held >= expected
    others = {name for name in held - expected if ".dist-info/" not in name}
    assert others == {INSIDE + "data/README.md", INSIDE + "data/faces/posterior.json"}
    (points,) = [name for name in held if name.endswith("entry_points.txt")]
    assert "rlsd = rlsd_lightning.cli.command:command" in zipfile.ZipFile(wheel).read(points).decode()


def test_an_embedded_file_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (embedded("priors/faces") / "model_index.json").is_file()
    assert embedded("faces/heldout/000.png").is_file()


@pytest.mark.parametrize(
    ("name", "said"), [("priors/cats", "faces, photos"), ("photos/dog.jpg", "astronaut.jpg"), ("cats", "kernels")]
)
def test_an_embedded_file_that_is_not_there_is_named_with_its_neighbours(name: str, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"got '{name}'")) as caught:
        embedded(name)
    assert said in str(caught.value)
