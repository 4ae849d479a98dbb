"""Representatives of many particles: of images, of results, in the grid, in metrics.json and in the report."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from support.operator_cases import images

from rlsd_lightning import InputError, Measurement, representatives
from rlsd_lightning.evaluation.scores import Solved
from rlsd_lightning.operators import inpainting, phase_retrieval
from rlsd_lightning.results import result as module
from rlsd_lightning.results.report import write_report
from rlsd_lightning.results.result import Representative, Result, image_result
from rlsd_lightning.results.store import write_summary

SHAPE = (3, 16, 16)


def grouped(sizes: list[int]) -> torch.Tensor:
    """Groups of images that differ by little, one group after another."""
    centres = 0.9 * images(len(sizes), shape=SHAPE).repeat_interleave(torch.tensor(sizes), dim=0)
    return centres + 0.01 * images(sum(sizes), seed=1, shape=SHAPE)


def result_of(particles: torch.Tensor, physics=None, truth: torch.Tensor | None = None) -> Result:
    physics = physics or inpainting(SHAPE, "half")
    measurement = Measurement("m", physics.A(particles[:1]), physics, truth)
    return image_result(Solved(measurement, particles, particles, particles))


@pytest.mark.parametrize("sizes", [[5, 1, 3], [1, 1, 1, 7], [4, 6, 2, 8]])
def test_each_group_has_one_with_its_share(sizes: list[int]):
    particles = grouped(sizes)
    chosen = representatives(particles, len(sizes))
    group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    assert [one.share for one in chosen] == [size / sum(sizes) for size in sorted(sizes, reverse=True)]
    assert all(sizes[group[one.particle]] == round(one.share * sum(sizes)) for one in chosen)
    assert representatives(result_of(particles), len(sizes)) == chosen


def test_there_are_at_most_as_many_as_particles():
    assert representatives(grouped([1, 1]), 4) == [Representative(0, 0.5), Representative(1, 0.5)]
    assert representatives(torch.zeros(1, *SHAPE)) == [Representative(0, 1.0)]
    for k in (0, -3):
        with pytest.raises(InputError, match=f"k must be at least 1, got {k}"):
            representatives(torch.zeros(3, *SHAPE), k)


def test_equivalent_forms_of_an_image_are_one():
    physics = phase_retrieval(SHAPE)
    first, second = images(2, shape=SHAPE).abs()[:, None]
    turned = first.flip(-2, -1)
    torch.testing.assert_close(physics.A(turned), physics.A(first), rtol=1e-3, atol=1e-3)
    (largest, smallest) = representatives(result_of(torch.cat([first, turned, first, second]), physics), 2)
    assert (largest.share, smallest) == (0.75, Representative(3, 0.25))


@pytest.mark.parametrize("count", [7, 8, 9])
@pytest.mark.parametrize("truth", [True, False])
def test_the_grid_shows_them_first_from_eight_particles_on(
    count: int, truth: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    drawn = []
    monkeypatch.setattr(module, "write_grid", lambda file, panels, std, others=(): drawn.extend([panels, others]))
    particles = grouped([count - 5, 2, 2, 1])
    result = result_of(particles, truth=particles[:1] if truth else None)
    result._draw(tmp_path / "grid.png")
    first, below = ([title for title, _ in part] for part in drawn)
    known = [*(["truth"] if truth else []), "measurement"]
    titles = [f"particle {i}" for i in range(count)]
    if count < 8:
        assert (first, below) == ([*known, *titles, "mean"], [])
        assert "representatives" not in result.metrics
        return
    chosen = representatives(result)
    assert first == [*known, *(f"particle {i}: {share:.0%}" for i, share in chosen), "mean"]
    assert below == [title for i, title in enumerate(titles) if i not in {one.particle for one in chosen}]
    assert result.metrics["representatives"] == [one._asdict() for one in chosen]


def test_report_and_summary_say_them_without_a_column(tmp_path: Path):
    rows = [{"name": "a", "diversity": 0.5, "num_particles": 9, **result_of(grouped([4, 2, 2, 1])).metrics}]
    write_summary(tmp_path, rows)
    assert (tmp_path / "summary.csv").read_text().splitlines()[0] == "name,diversity,num_particles"
    (tmp_path / "a").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "a" / "grid.png")
    page = write_report(tmp_path, rows).read_text()
    assert "<th>representatives</th>" not in page
    assert "(44%), particle" in page and page.count("(22%)") == 2 and "(11%)." in page


def test_points_have_representatives_too():
    points = torch.tensor([[3.0, 3.0], [3.1, 3.0], [3.0, 3.1], [9.0, 9.0]])
    result = Result(points, points.mean(dim=0), points.std(dim=0), points, {})
    assert representatives(result, 2) == [Representative(0, 0.75), Representative(3, 0.25)]
