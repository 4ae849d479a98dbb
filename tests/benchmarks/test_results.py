"""docs/results.md belongs to its figures, pictures and weights, and no folder of runs mixes versions."""

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

PROJECT = Path(__file__).resolve().parents[2]
MODULES = ("results", "faces", "photographs", "posterior", "priors", "references", "runs", "sets", "tables")


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script with the modules beside it, which are no package."""
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    yield importlib.import_module("results")
    for name in MODULES:
        sys.modules.pop(name)


@pytest.fixture
def copied(results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page and its figures in a folder of their own."""
    for name in ("PAGE", "FIGURES"):
        path = getattr(results, name)
        monkeypatch.setattr(results, name, Path(shutil.copy(path, tmp_path)))
    return tmp_path


def test_the_page_belongs_to_its_figures_pictures_and_weights(results: ModuleType):
    assert results.faults() == []


@pytest.mark.parametrize("old", ["| super-resolution x4 |", "python benchmarks/results.py --parts faces", "| `dps` |"])
def test_a_page_that_was_changed_by_hand_is_named(results: ModuleType, copied: Path, old: str):
    text = results.PAGE.read_text()
    assert old in text
    results.PAGE.write_text(text.replace(old, f"{old} 99.9", 1))
    (fault,) = results.faults()
    assert "results.md has other tables than results.json" in fault


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"weights": "0" * 12}, "faces: weights was 000000000000 and is "),
        ({"version": "0.0.1"}, "faces: version was 0.0.1 and is "),
        ({"pictures": {"tasks.png": "0" * 12}}, "faces: tasks.png is not the picture of these figures"),
    ],
)
def test_figures_of_other_weights_versions_or_pictures_are_named(
    results: ModuleType, copied: Path, change: dict, expected: str
):
    made = json.loads(results.FIGURES.read_text())
    made["faces"] |= {
        key: {**made["faces"][key], **new} if isinstance(new, dict) else new for key, new in change.items()
    }
    results.FIGURES.write_text(json.dumps(made))
    results.PAGE.write_text(results.page_with_tables(results.PAGE.read_text(), made))
    (fault,) = results.faults()
    assert fault.startswith(expected)


def test_tasks_that_are_made_anew_leave_the_others(results: ModuleType, monkeypatch: pytest.MonkeyPatch):
    made = json.loads(results.FIGURES.read_text())["faces"]
    key = "tasks/super_resolution/default"
    found = {"faces": made["faces"], "runs": {key: [{"name": "000"}]}, "coverage": {}, "intervals": {}}
    monkeypatch.setattr(results, "code_digest", lambda: "abc")
    merged = results.remade(made, found, ["super_resolution"])
    assert merged["runs"] == {**made["runs"], key: [{"name": "000"}]} and list(merged["runs"]) == list(made["runs"])
    assert merged["code"] == made["code"] and merged["coverage"] == made["coverage"]
    assert "abc for super-resolution x4, weights" in sys.modules["tables"].made_of(merged)
    with pytest.raises(SystemExit, match="faces must be"):
        results.remade(made, {**found, "faces": 2}, ["super_resolution"])


def test_a_part_without_figures_is_named(results: ModuleType, copied: Path):
    made = json.loads(results.FIGURES.read_text())
    del made["photographs"]
    results.FIGURES.write_text(json.dumps(made))
    (fault,) = results.faults()
    assert fault.startswith("photographs: no figures")


def test_a_folder_of_runs_holds_one_version(results: ModuleType, tmp_path: Path):
    hold = sys.modules["runs"].hold_one_version
    hold(tmp_path, {"code": "aaa", "weights": "bbb"})
    hold(tmp_path, {"code": "aaa", "weights": "bbb"})
    with pytest.raises(SystemExit, match=r"code: aaa\nweights: bbb\nbut now there is\ncode: ccc"):
        hold(tmp_path, {"code": "ccc", "weights": "bbb"})


@pytest.mark.parametrize(
    ("file", "old", "new", "same"),
    [
        ("rlsd_lightning/a.py", "# why\n", "# why not\n", True),
        ("rlsd_lightning/a.py", '"""Doubles."""', '"""Doubles a number."""', True),
        ("rlsd_lightning/a.py", "2 * x", "3 * x", False),
        ("configs/a.yaml", "# a number", "# another comment", True),
        ("configs/a.yaml", "gamma: 0.2", "gamma: 0.3", False),
    ],
)
def test_comments_and_docstrings_are_no_other_code(
    results: ModuleType, tmp_path: Path, file: str, old: str, new: str, same: bool
):
    for folder, text in {
        "rlsd_lightning/a.py": '# why\ndef double(x):\n    """Doubles."""\n    return 2 * x\n',
        "configs/a.yaml": "gamma: 0.2  # a number\n",
    }.items():
        (tmp_path / folder).parent.mkdir(exist_ok=True)
        (tmp_path / folder).write_text(text)
    digest = sys.modules["runs"].code_digest
    before = digest(tmp_path)
    changed = (tmp_path / file).read_text().replace(old, new)
    assert changed != (tmp_path / file).read_text()
    (tmp_path / file).write_text(changed)
    assert (digest(tmp_path) == before) is same
