"""Figures of sets of particles: who is compared with whom."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

MODULES = ("sets", "posterior", "runs", "tables")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The scripts, which are no package."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    yield {name: importlib.import_module(name) for name in ("sets", "tables")}
    for name in MODULES:
        sys.modules.pop(name, None)


def test_sets_are_compared_with_independent_draws_face_by_face(modules: dict[str, ModuleType]):
    names = ("psnr_mean", "psnr_best", "coverage", "precision", "vendi", "energy_score")
    forms = {"exact draws": (20.0, 30.0), "independent": (10.0, 20.0), "default": (11.0, 22.0)}
    made = {
        "runs": {
            f"sets/inpaint/{form}": [
                {"name": f"{face:03}", **dict.fromkeys(names, figure)} for face, figure in enumerate(figures)
            ]
            for form, figures in forms.items()
        },
        "together": {form: {"frechet": 3.0} for form in forms},
    }
    exact, independent, default = modules["tables"].sets(made).splitlines()[2:]
    assert exact == f"| exact draws |{' 25.00 ± 5.00 |' * len(names)} 3.0 |"
    assert independent == f"| `independent` |{' 15.00 ± 5.00 |' * len(names)} 3.0 |"
    assert default == f"| `default` |{' +1.50 ± 0.50 |' * len(names)} 3.0 |"
