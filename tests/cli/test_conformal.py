"""Conformal intervals: the factor's closed form, coverage of images that were not used, and the subcommand."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from rlsd_lightning.cli.literal import INPUTS
from rlsd_lightning.cli.resume import MAY_CHANGE
from rlsd_lightning.cli.settings import OLDER
from rlsd_lightning.cli.subcommands import conformal
from rlsd_lightning.errors import InputError
from rlsd_lightning.evaluation.checks.intervals import (
    Conformal,
    conformal_calibration,
    fewest,
    interval,
    left_out_coverage,
)
from rlsd_lightning.functional.calibration import risk_controlled_factor
from rlsd_lightning.images import to_pil
from rlsd_lightning.measurement import SavedMeasurement
from rlsd_lightning.results.store import read_metrics, write_metrics, write_particles

SHAPE = (3, 16, 16)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def measurements(number: int, spread: float, first: int = 0, observed: Tensor | None = None) -> list[SavedMeasurement]:
    """Images with a deviation of 0.1, whose particles have one of 0.1 times the spread."""
    saved = []
    for seed in range(first, first + number):
        mean = 0.3 * normal(1, *SHAPE, seed=seed).clamp(-1, 1)
        difficulty = 0.5 + torch.rand((), generator=torch.Generator().manual_seed(seed)).item()  # images differ
        truth = (mean + 0.1 * difficulty * normal(1, *SHAPE, seed=seed + 10_000)).clamp(-1, 1)
        particles = mean + 0.1 * spread * normal(4, *SHAPE, seed=seed + 20_000)
        saved.append(SavedMeasurement(f"{seed:03d}", particles, {}, truth, observed))
    return saved


@pytest.mark.parametrize(("level", "count"), [(0.9, 9), (0.8, 20), (0.5, 3)])
def test_factor_is_the_least_that_controls_the_risk(level: float, count: int) -> None:
    ratios = [normal(50 + 10 * index, seed=index).abs() for index in range(count)]
    found = risk_controlled_factor(ratios, level)

    def bound(factor: float) -> float:
        loss = sum((each > factor).double().mean().item() for each in ratios) / count
        return count / (count + 1) * loss + 1 / (count + 1)

    assert bound(found) <= 1 - level + 1e-9
    below = max(each[each < found].max().item() for each in ratios)
    assert bound(below) > 1 - level


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_as_few_images_as_a_level_takes_need_the_largest_ratio(level: float) -> None:
    # sums of so many equal weights are rounded to less than one
    ratios = [normal(3 * 128 * 128, seed=seed).abs() for seed in range(fewest(level))]
    assert risk_controlled_factor(ratios, level) == torch.stack(ratios).max()


@pytest.mark.parametrize("level", [0.75, 0.8, 0.9])
def test_too_few_images_guarantee_nothing(level: float) -> None:
    assert risk_controlled_factor([normal(9).abs()] * (fewest(level) - 1), level) == float("inf")
    with pytest.raises(InputError, match=f"takes {fewest(level)} images"):
        conformal_calibration(measurements(fewest(level) - 1, 1.0), level)


@pytest.mark.parametrize("spread", [0.2, 1.0, 4.0])
def test_unused_images_are_covered_whether_particles_are_too_alike_or_too_wide(spread: float) -> None:
    found = conformal_calibration(measurements(60, spread))
    coverage = [interval(one, found).coverage for one in measurements(60, spread, first=500)]
    assert 0.88 <= sum(coverage) / len(coverage) <= 0.94
    assert 0.9 <= found.left_out <= 0.93
    nominal = [interval(one, found._replace(factor=1.0)).coverage for one in measurements(60, spread, first=500)]
    assert (sum(nominal) / len(nominal) < 0.8) == (spread < 1)
    assert (found.factor > 1.5) == (spread < 1)


@pytest.mark.parametrize("left_out", [0, 7, 19])
def test_left_out_coverage_is_that_of_a_calibration_on_the_others(left_out: int) -> None:
    saved = measurements(20, 0.5)
    found = interval(saved[left_out], conformal_calibration(saved[:left_out] + saved[left_out + 1 :]))
    assert left_out_coverage(saved)[left_out] == pytest.approx(found.coverage, abs=1e-3)
    assert conformal_calibration(saved).left_out == pytest.approx(sum(left_out_coverage(saved)) / 20)
    assert left_out_coverage(saved[: fewest(0.9)]) == []


@pytest.mark.parametrize(("level", "said"), [(0.9, "90%"), (0.975, "97.5%"), (0.995, "99.5%"), (0.07, "7%")])
def test_the_guarantee_is_no_higher_than_the_level(level: float, said: str) -> None:
    assert f"at least {said} of its values" in Conformal(1.0, level, 500, "all").guarantee


def test_only_hidden_values_count() -> None:
    observed = torch.zeros(SHAPE, dtype=torch.bool)
    observed[..., :8] = True
    exact = [
        one._replace(truth=torch.where(observed, one.images.mean(dim=0, keepdim=True), one.truth), observed=observed)
        for one in measurements(40, 0.5)
    ]
    assert conformal_calibration(exact).region == "unobserved"
    assert "hidden values" in conformal_calibration(exact).guarantee
    assert (
        conformal_calibration(exact).factor
        > 1.2 * conformal_calibration([one._replace(observed=None) for one in exact]).factor
    )


def run(folder: Path, saved: list[SavedMeasurement], truths: bool = True, **settings: object) -> Path:
    """A finished run as a folder."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(
        yaml.safe_dump({"num_particles": 4, "num_steps": 5, "data": {}, **settings})
    )
    for one in saved:
        place = folder / one.name
        place.mkdir()
        write_particles(place, {"x": one.images})
        if truths:
            to_pil(one.truth[0]).save(place / "truth.png")
        write_metrics(place, {"name": one.name, "psnr_mean": 20.0 if truths else None})
    return folder


def test_a_run_without_truths_gets_intervals(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    calibration = run(tmp_path / "calibration", measurements(20, 0.5))
    unknown = run(tmp_path / "unknown", measurements(3, 0.5, first=100), truths=False)
    assert conformal.main([str(calibration), str(unknown)]) == 0
    kept = json.loads((calibration / "conformal.json").read_text())
    assert kept["images"] == 20
    assert kept["guarantee"] in capsys.readouterr().out
    found = Conformal(*(kept[name] for name in Conformal._fields))
    for one in measurements(3, 0.5, first=100):
        metrics = read_metrics(unknown / one.name)
        assert metrics["interval_factor"] == kept["factor"]
        assert metrics["interval_width"] == pytest.approx(interval(one, found).width, rel=1e-5)
        assert metrics["interval_coverage"] is None
        assert {(unknown / one.name / f"{end}.png").is_file() for end in ("lower", "upper")} == {True}
    assert kept["guarantee"] in (unknown / "report.html").read_text()


@pytest.mark.parametrize("changed", [{"num_steps": 6}, {"num_particles": 8}, {"method": 1}])
def test_another_setting_is_refused(changed: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    calibration = run(tmp_path / "calibration", measurements(20, 0.5))
    other = run(tmp_path / "other", measurements(1, 0.5), **changed)
    assert conformal.main([str(calibration), str(other)]) == 1
    assert f"{next(iter(changed))} differ" in capsys.readouterr().err.replace("differs", "differ")
    assert not (other / "000" / "lower.png").exists()


@pytest.mark.parametrize("name", [name for name in (*INPUTS, *MAY_CHANGE) if not name.startswith("callbacks.")])
def test_runs_of_two_places_are_alike(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    group, _, last = name.rpartition(".")
    places = ("/one/a.npz:key", "/two/a.npz:key") if name in INPUTS else (None, 4)
    first, second = (run(tmp_path / str(i), measurements(10, 0.5), **{group: {last: places[i]}}) for i in range(2))
    assert conformal.main([str(first), str(second)]) == 0
    if name not in INPUTS or group == "data":
        return
    for index, other in enumerate(("/one/b.npz:key", "/one/a.npz:other", None)):
        another = run(tmp_path / f"other{index}", measurements(1, 0.5), **{group: {last: other}})
        assert conformal.main([str(first), str(another)]) == 1
        assert f"{group} differs" in capsys.readouterr().err


def test_models_of_two_owners_differ(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first, second = (
        run(tmp_path / owner, measurements(10, 0.5), prior={"pretrained": f"{owner}/model"}) for owner in ("one", "two")
    )
    assert conformal.main([str(first), str(second)]) == 1
    assert "prior differs" in capsys.readouterr().err


@pytest.mark.parametrize("older", OLDER)
def test_a_run_with_older_names_is_alike(older: str, tmp_path: Path) -> None:
    name, present = older.removeprefix("data."), OLDER[older].removeprefix("physics.")
    before = run(tmp_path / "before", measurements(10, 0.5), data={name: "/one/a.png"}, physics={})
    after = run(tmp_path / "after", measurements(1, 0.5), physics={present: "/two/a.png"})
    assert conformal.main([str(before), str(after)]) == 0


@pytest.mark.parametrize("level", ["0", "1", "1.5"])
def test_an_impossible_level_is_one_line(level: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    calibration = run(tmp_path / "calibration", measurements(10, 0.5))
    assert conformal.main([str(calibration), "--level", level]) == 1
    assert capsys.readouterr().err == f"error: level must be above 0 and below 1, got {float(level)}\n"


def test_a_calibration_without_truths_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    calibration = run(tmp_path / "calibration", measurements(10, 0.5), truths=False)
    assert conformal.main([str(calibration)]) == 1
    assert "the truth of every measurement is expected, but '000' has none" in capsys.readouterr().err
