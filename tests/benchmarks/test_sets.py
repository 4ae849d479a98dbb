"""Figures of sets of particles: who is compared with whom, and intervals of faces that a calibration has not seen."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from types import ModuleType

import pytest
import torch

from rlsd_lightning.evaluation.checks.intervals import conformal_calibration
from rlsd_lightning.measurement import SavedMeasurement

MODULES = ("sets", "posterior", "runs", "tables")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The scripts, which are no package."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    yield {name: importlib.import_module(name) for name in ("sets", "tables")}
    for name in MODULES:
        sys.modules.pop(name, None)


def saved(count: int, spread: float = 1.0) -> list[SavedMeasurement]:
    """Measurements whose truth and particles are draws of one Gaussian, with another spread of the particles."""
    generator = torch.Generator().manual_seed(0)
    draws = 0.1 * torch.randn(count, 5, 3, 8, 8, generator=generator)
    return [SavedMeasurement(f"{i:03}", spread * each[1:], {}, each[:1]) for i, each in enumerate(draws)]


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_intervals_of_images_that_a_calibration_has_not_seen(modules: dict[str, ModuleType], spread: float):
    found = modules["sets"].left_out(saved(20, spread))
    assert len(found) == 20
    assert fmean(found) == pytest.approx(conformal_calibration(saved(20, spread), 0.9).left_out, abs=1e-3)
    assert 0.88 < fmean(found) < 0.97  # whatever the particles' own spread is


def test_too_few_images_have_no_intervals(modules: dict[str, ModuleType]):
    assert modules["sets"].left_out(saved(9)) == []
    assert len(modules["sets"].left_out(saved(10))) == 10


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
