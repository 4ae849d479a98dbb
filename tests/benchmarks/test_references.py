"""What photographs are compared with: bicubic interpolation, total variation, and the tables of both."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rlsd_lightning.functional.metrics import psnr
from rlsd_lightning.operators import denoising, inpainting, jpeg, super_resolution

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SHAPE = (3, 64, 80)


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The modules, which are scripts and no package."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import references
    import tables

    yield SimpleNamespace(references=references, tables=tables)
    for name in ("references", "tables"):
        sys.modules.pop(name)


def smooth() -> torch.Tensor:
    """A slope with another one in each colour, away from the ends of the range."""
    rows, columns = torch.linspace(-0.6, 0.6, SHAPE[1])[:, None], torch.linspace(-0.6, 0.6, SHAPE[2])
    return torch.stack((rows.expand(SHAPE[1:]), columns.expand(SHAPE[1:]), (rows + columns) / 2))[None]


def blocks() -> torch.Tensor:
    """Two flat areas."""
    image = torch.full((1, *SHAPE), -0.5)
    image[..., 20:44, 20:60] = 0.5
    return image


@pytest.mark.parametrize("filter", ["bicubic", "average", "gaussian"])
@pytest.mark.parametrize("factor", [2, 4])
def test_bicubic_interpolation_puts_each_value_where_it_was_measured(
    factor: int, filter: str, benchmarks: SimpleNamespace
):
    physics, truth = super_resolution(SHAPE, factor, filter=filter, sigma=0.0), smooth()
    found = benchmarks.references.bicubic(physics, physics.A(truth), SHAPE)
    inside = (..., slice(24, -24), slice(24, -24))
    torch.testing.assert_close(found[inside], truth[inside], rtol=0, atol=1e-5)


def test_without_interpolation_it_is_the_pseudo_inverse_or_the_measurement(benchmarks: SimpleNamespace):
    truth = smooth()
    for physics in (inpainting(SHAPE, "random", sigma=0.0), jpeg(SHAPE, 30)):
        y = physics.A(truth)
        assert torch.equal(benchmarks.references.bicubic(physics, y, SHAPE), y)


def test_total_variation_fills_flat_areas_and_takes_noise_away(
    benchmarks: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    truth, references = blocks()[..., ::2, ::2].contiguous(), benchmarks.references
    shape = truth.shape[1:]
    holes = inpainting(shape, "random", sigma=0.0)
    holes.update_parameters(mask=(torch.rand(1, *shape[1:]) < 0.6).float().expand(1, *shape))
    assert psnr(references.total_variation(holes, holes.A(truth), 1e-3), truth).item() > 25
    monkeypatch.setattr(references, "STEPS", 40)  # noise needs fewer
    noisy = denoising(shape, sigma=0.2)
    y = noisy(truth)
    smoothed = psnr(references.total_variation(noisy, y, 0.3), truth).item()
    assert smoothed > psnr(y, truth).item() + 8


@pytest.mark.parametrize("sigma", [0.02, 0.2, 1.0])
def test_the_best_weight_of_total_variation_is_that_of_a_search_over_all(
    benchmarks: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, sigma: float
):
    references, truth = benchmarks.references, blocks()[..., ::2, ::2].contiguous()
    monkeypatch.setattr(references, "STEPS", 40)
    noisy, weights = denoising(truth.shape[1:], sigma=sigma), (1e-3, 1e-2, 0.1, 0.3, 1.0)
    found = references.best_weight(noisy, [truth], weights)
    torch.manual_seed(0)
    y = noisy(truth)
    assert found == max(weights, key=lambda each: psnr(references.total_variation(noisy, y, each), truth).item())


def test_the_photographs_table_has_means_over_photographs_task_by_task(benchmarks: SimpleNamespace):
    runs = {
        "denoising/default": [{"name": "a", "psnr_mean": 20.0, "coverage_90": 0.9}, {"name": "b", "psnr_mean": 21.0}],
        "JPEG/default": [{"name": "a", "psnr_mean": 30.0}],
        "denoising/tv": [{"name": "a", "psnr_mean": 19.0}],
    }
    lines = benchmarks.tables.photographs({"runs": runs}).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[:3] for row in cells] == [
        ["denoising", "`default`", "20.50 ± 0.50"],
        ["denoising", "`tv`", "19.00"],
        ["JPEG", "`default`", "30.00"],
    ]
    assert cells[0][-1] == "0.90" and cells[1][-1] == "-"
