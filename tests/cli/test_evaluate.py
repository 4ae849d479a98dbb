"""Saved runs scored again: against closed forms, against what the runs wrote, and with damaged folders."""

import csv
import hashlib
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.command import train
from torch import nn

from rlsd_lightning.cli.subcommands import evaluate
from rlsd_lightning.evaluation.attributes import ATTRIBUTES, SHARES
from rlsd_lightning.evaluation.distances import frechet_distance, kernel_distance, vit_network
from rlsd_lightning.evaluation.figures import Networks, attribute_figures, image_figures, paper_image_figures
from rlsd_lightning.evaluation.scores import Solved, score
from rlsd_lightning.measurement import Measurement, SavedMeasurement
from rlsd_lightning.operators import NullOperator, denoising, inpainting, mri, phase_retrieval
from rlsd_lightning.operators.likelihood import data_fit, observed_pixels
from rlsd_lightning.results.result import image_result
from rlsd_lightning.results.store import load_run, read_metrics

NAME = "tiny"


# --- distances of sets ---------------------------------------------------------------------------------------------

PIXELS = vit_network("pixels", lambda images: images.flatten(1), 12)


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return 0.6 * torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(seed)) - 0.3


def test_the_frechet_distance_of_a_set_to_itself_is_zero() -> None:
    assert frechet_distance(PIXELS, pictures(50), pictures(50)) == pytest.approx(0, abs=1e-4)


def test_the_frechet_distance_of_a_shift_is_its_square() -> None:
    assert frechet_distance(PIXELS, pictures(50), pictures(50) + 0.5) == pytest.approx(12 * 0.25, rel=1e-3)


def test_the_kernel_distance_is_the_unbiased_discrepancy() -> None:
    a, b = pictures(20), pictures(20, seed=1) + 0.2
    f, g = a.flatten(1), b.flatten(1)

    def kernel(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        return (one @ two.T / 12 + 1) ** 3

    within = [(kernel(v, v).sum() - kernel(v, v).trace()) / (20 * 19) for v in (f, g)]
    expected = within[0] + within[1] - 2 * kernel(f, g).mean()
    assert kernel_distance(PIXELS, a, b) == pytest.approx(expected.item(), rel=1e-3)


def test_the_kernel_distance_of_a_set_to_itself_is_not_above_zero_and_draws_nothing() -> None:
    before = torch.random.get_rng_state()
    assert kernel_distance(PIXELS, pictures(40), pictures(30)) < 1e-2
    assert kernel_distance(PIXELS, pictures(40), pictures(40)) <= 0
    assert kernel_distance(PIXELS, pictures(40), pictures(30)) == kernel_distance(PIXELS, pictures(40), pictures(30))
    assert torch.equal(torch.random.get_rng_state(), before)


# --- what operators see --------------------------------------------------------------------------------------------

SHAPE = (3, 32, 32)


def test_a_mask_says_what_is_observed_and_others_do_not() -> None:
    seen = observed_pixels(inpainting(SHAPE, "half"), SHAPE)
    assert seen.shape == SHAPE
    assert seen[:, :16].all()
    assert not seen[:, 16:].any()
    assert observed_pixels(denoising(SHAPE), SHAPE) is None


@pytest.mark.parametrize(
    "make", [lambda s: inpainting(s, "half", 0.1), lambda s: denoising(s, 0.1), lambda s: mri(s, sigma=0.1)]
)
@pytest.mark.parametrize("noise", ["gaussian", "laplace"])
def test_the_truth_is_one_sigma_from_its_measurement(make, noise: str) -> None:
    torch.manual_seed(0)
    physics, truth = make(SHAPE), torch.rand(1, *SHAPE) * 2 - 1
    if noise == "laplace":
        physics.noise_model = denoising(SHAPE, 0.1, noise).noise_model
    fit = data_fit(physics, truth, physics(truth))
    assert fit["residual_sigmas"] == pytest.approx(1, rel=0.1)
    assert fit["within_3_sigmas"] > 0.97


def test_poisson_noise_counts_by_its_mean_variance() -> None:
    torch.manual_seed(0)
    physics, truth = denoising(SHAPE, 0.2, "poisson"), torch.rand(1, *SHAPE) * 2 - 1
    assert data_fit(physics, truth, physics(truth))["residual_sigmas"] == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("physics", [NullOperator(SHAPE), denoising(SHAPE, 0)])
def test_without_noise_there_are_no_sigmas(physics) -> None:
    assert data_fit(physics, torch.zeros(2, *SHAPE), physics.A(torch.zeros(1, *SHAPE)))["residual_sigmas"] is None


# --- figures of one measurement ------------------------------------------------------------------------------------


class Difference(nn.Module):
    """In the place of LPIPS."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean()


@pytest.fixture
def networks(tiny_features) -> Networks:
    return Networks(NAME, tiny_features, PIXELS, Difference())


class OfColours(Difference):
    """As LPIPS, for larger images of three channels only."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        assert a.shape[1:] == b.shape[1:] == SHAPE
        return super().forward(a, b)


def test_grey_images_have_lpips_and_small_ones_have_none(networks: Networks) -> None:
    for shape, known in (((1, *SHAPE[1:]), True), ((1, 16, 16), False), ((3, 16, 16), False)):
        images, truth = torch.stack([torch.full(shape, 0.1), torch.full(shape, 0.3)]), torch.zeros(1, *shape)
        saved = SavedMeasurement("a", images, {}, truth)
        with_lpips = networks._replace(lpips=OfColours())
        figures = image_figures(saved, with_lpips) | paper_image_figures(saved, with_lpips)
        figures |= score(
            Solved(Measurement("a", truth, denoising(shape), truth), images, images, images),
            images.flatten(1),
            OfColours(),
        )
        names = {"lpips_mean": 0.2, "lpips_best": 0.1, "lpips_pairs": 0.2, "paper_lpips_min": 0.05}
        assert {name: figures[name] for name in names} == (pytest.approx(names) if known else dict.fromkeys(names))


def constant(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, *SHAPE).clone()


def test_mean_best_and_of_mean_of_known_images(networks: Networks) -> None:
    saved = SavedMeasurement("a", constant(0.1, -0.3), {"residual": 2.0}, constant(0.0))
    figures = image_figures(saved, networks)
    decibels = [10 * torch.log10(torch.tensor(4 / e**2)).item() for e in (0.1, 0.3)]
    assert figures["psnr_mean"] == pytest.approx(sum(decibels) / 2, abs=1e-4)
    assert figures["psnr_best"] == pytest.approx(decibels[0], abs=1e-4)
    assert figures["psnr_of_mean"] == pytest.approx(decibels[0], abs=1e-4)
    assert figures["lpips_best"] == pytest.approx(0.1)
    assert figures["lpips_mean"] == pytest.approx(0.2)
    assert figures["lpips_pairs"] == pytest.approx(0.4)
    assert figures["pixel_std"] == pytest.approx(0.4 / 2**0.5)
    assert figures["spread_to_error"] == pytest.approx((1.5 * 0.08 / 0.01) ** 0.5)
    assert figures["region"] == "all"
    assert figures["residual"] == 2
    assert figures["residual_sigmas"] is None


def test_the_hidden_region_counts_where_there_is_a_mask(networks: Networks) -> None:
    images, truth, observed = constant(0.0, 0.0), constant(0.0), torch.ones(SHAPE, dtype=torch.bool)
    observed[:, 16:] = False
    images[0, :, 16:] += 0.5
    figures = image_figures(SavedMeasurement("a", images, {}, truth, observed), networks)
    assert figures["region"] == "unobserved"
    assert figures["pixel_std_unobserved"] == pytest.approx(0.5 / 2**0.5)
    assert figures["pixel_std"] == pytest.approx(0.25)


def test_a_mask_that_hides_nothing_leaves_no_nan(networks: Networks) -> None:
    images = torch.rand(3, 3, 16, 16)
    saved = SavedMeasurement("a", images, {}, images[:1], observed=torch.ones(3, 16, 16, dtype=torch.bool))
    figures = image_figures(saved, networks)
    assert not any(isinstance(value, float) and math.isnan(value) for value in figures.values())


def test_forms_nearest_to_the_truth_count(networks: Networks) -> None:
    saved = SavedMeasurement("a", constant(-0.5), {}, constant(0.5), aligned=constant(0.5))
    assert image_figures(saved, networks)["lpips_best"] == 0


def test_without_truth_or_weights_nothing_is_made_up(networks: Networks) -> None:
    figures = image_figures(SavedMeasurement("a", constant(0.1, 0.2), {}), networks._replace(lpips=None))
    known = {name for name, value in figures.items() if value is not None}
    assert known == {"particles", f"vendi_{NAME}", "pixel_std"}


def test_shares_of_attributes_are_held_against_the_generator() -> None:
    class Classifier:
        def predict(self, images: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(images), len(ATTRIBUTES), dtype=torch.long)

    figures = attribute_figures(constant(0.0, 0.0), constant(0.0), Classifier())
    for name, shares in SHARES.items():
        assert figures[f"{name}_shares"] == figures[f"{name}_shares_truth"] == [1.0, *[0.0] * (len(shares) - 1)]
        assert figures[f"{name}_error"] == pytest.approx(1 - shares[0])


# --- the command line ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tiny_prior_folder: Path, tiny_features_folder: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    code, printed = train(
        f"prior.pretrained={tiny_prior_folder}",
        "num_steps=3",
        "num_particles=3",
        "data.limit=2",
        f"output_dir={folder}",
    )
    assert code == 0, printed
    return folder


def digest(folder: Path) -> dict[str, str]:
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture
def scored(run: Path, tiny_features_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """Scores the run; returns what was printed and written."""

    def score(*arguments: object) -> tuple[str, dict, list[dict]]:
        files = ["--json", str(tmp_path / "a.json"), "--csv", str(tmp_path / "a.csv")]
        before = digest(run)
        code = evaluate.main([str(run), "--features", str(tiny_features_folder), *map(str, arguments), *files])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        assert digest(run) == before
        rows = list(csv.DictReader((tmp_path / "a.csv").open(newline="")))
        return printed.out, json.loads((tmp_path / "a.json").read_text()), rows

    return score


def test_a_run_is_scored_as_it_scored_itself(run: Path, scored, tiny_features_folder: Path) -> None:
    printed, written, rows = scored()
    network = f"vit_{tiny_features_folder.name}"
    assert [row["name"] for row in rows] == ["000", "001"]
    for row in rows:
        metrics = read_metrics(run / row["name"])
        for name in ("psnr_mean", "psnr_best", "psnr_of_mean", "ssim_mean", "residual_sigmas", "within_3_sigmas"):
            assert float(row[name]) == pytest.approx(metrics[name], rel=2e-3)  # the truth is a picture of 8 bits
    figures = written["runs"]["run"]["figures"]
    assert figures["measurements"] == 2
    assert figures["region"] == "unobserved"
    assert figures["psnr_mean"] == pytest.approx(sum(float(row["psnr_mean"]) for row in rows) / 2)
    assert figures[f"fid_{network}"] > 0
    assert figures[f"kid_{network}"] is not None
    assert figures["within_2_std_expected"] == pytest.approx((3 / 5) ** 0.5)
    assert f"| psnr_mean | {figures['psnr_mean']:.4g} |" in printed.splitlines()
    assert "| lpips_mean | \N{EN DASH} |" in printed.splitlines()
    assert "no LPIPS: AlexNet's weights" in printed


def test_the_papers_figures_have_names_of_their_own(run: Path, scored, tiny_features_folder: Path) -> None:
    network = f"vit_{tiny_features_folder.name}"
    _, written, rows = scored("--protocol", "paper")
    figures = written["runs"]["run"]["figures"]
    assert figures.keys() == {
        "measurements",
        "particles",
        "paper_psnr_max",
        "paper_lpips_min",
        f"paper_diversity_{network}",
        f"paper_fid_{network}_one_particle",
    }
    for row in rows:
        assert float(row["paper_psnr_max"]) == pytest.approx(read_metrics(run / row["name"])["psnr_best"], rel=1e-3)


def test_the_papers_best_images_are_those_of_the_least_lpips(scored, tiny_features_folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(evaluate, "load_lpips", Difference)
    _, written, rows = scored("--protocol", "paper")
    assert f"paper_fid_vit_{tiny_features_folder.name}_best_lpips" in written["runs"]["run"]["figures"]
    assert all(0 < float(row["paper_lpips_min"]) < 1 for row in rows)  # half of what it is in [-1, 1]
    _, usual, _ = scored()
    assert usual["runs"]["run"]["measurements"][0]["lpips_best"] == pytest.approx(2 * float(rows[0]["paper_lpips_min"]))


def test_runs_stand_side_by_side(run: Path, tmp_path: Path, scored) -> None:
    shutil.copytree(run, tmp_path / "other")
    printed, written, _ = scored(tmp_path / "other")
    assert printed.splitlines()[0] == "| | run | other |"
    assert written["runs"]["run"] == written["runs"]["other"]


def test_a_run_that_left_nothing_is_left_out_beside_others(tmp_path: Path, scored) -> None:
    refused = tmp_path / "refused"
    refused.mkdir()
    printed, written, _ = scored(refused)
    assert list(written["runs"]) == ["run"]
    assert f"left out '{refused}': no finished measurement is in it" in printed


def test_one_measurement_and_a_reference_of_ones_own(run: Path, scored, tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    reference.mkdir()
    for index in range(2):
        shutil.copy(run / "000" / "truth.png", reference / f"{index}.png")
    _, written, _ = scored(run / "001", "--reference", reference)
    assert written["runs"]["001"]["figures"]["measurements"] == 1
    assert written["runs"]["001"]["figures"][f"fid_{written['features']}"] > 0


def test_a_run_of_before_is_still_scored(run: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(run / "000", old)
    tensors = load_file(old / "particles.safetensors")
    tensors.pop("observed")
    save_file(tensors, old / "particles.safetensors")
    (saved,) = load_run(old)
    assert saved.observed is None


def test_columns_of_different_measurements_are_said_not_to_compare(run: Path, tmp_path: Path, scored) -> None:
    fewer = shutil.copytree(run, tmp_path / "fewer")
    assert "don't compare" not in scored(fewer)[0]
    shutil.rmtree(fewer / "000")
    kept = len(load_run(fewer))
    assert f"the runs have different measurements, {kept} of them in common" in scored(fewer)[0]


def test_images_of_several_sizes_have_their_own_figures_but_none_of_the_set(
    run: Path, tmp_path: Path, scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, one_size, rows = scored()
    mixed = shutil.copytree(run, tmp_path / "mixed")
    load = evaluate.load_run

    def cropped(folder: Path) -> list[SavedMeasurement]:
        """The second measurement of a run is half as wide."""
        first, second = load(folder)
        half = second.images.shape[-1] // 2
        return [first, second._replace(**{k: v[..., :half] for k, v in second._asdict().items() if torch.is_tensor(v)})]

    monkeypatch.setattr(evaluate, "load_run", lambda folder: cropped(folder) if folder == mixed else load(folder))
    printed, written, both = scored(mixed)
    assert "'mixed' has images of 2 sizes: it has no FID, KID and attributes" in printed
    assert written["runs"]["run"] == one_size["runs"]["run"]
    found = written["runs"]["mixed"]["figures"]
    assert found["psnr_mean"] != one_size["runs"]["run"]["figures"]["psnr_mean"]
    assert any(key.startswith("fid") for key in one_size["runs"]["run"]["figures"])
    assert not any(key.startswith(("fid", "kid")) for key in found)
    assert next(row["psnr_mean"] for row in both if row["run"] == "mixed") == rows[0]["psnr_mean"]


def test_a_measured_run_without_truth_is_scored_by_default_only(run: Path, tmp_path: Path, scored, capsys) -> None:
    measured = tmp_path / "measured"
    shutil.copytree(run / "000", measured / "000")
    (measured / "000" / "truth.png").unlink()
    metrics = json.loads((measured / "000" / "metrics.json").read_text())
    (measured / "000" / "metrics.json").write_text(json.dumps(metrics | {"psnr_mean": None}))
    _, written, _ = scored(measured)
    assert written["runs"]["measured"]["figures"]["psnr_mean"] is None
    assert evaluate.main([str(measured), "--protocol", "paper"]) == 1
    assert "needs the truth of every measurement, but '000' has none" in capsys.readouterr().err


def spoil_particles(folder: Path) -> None:
    (folder / "000" / "particles.safetensors").write_bytes(b"0123456789")


def spoil_truth(folder: Path) -> None:
    (folder / "000" / "truth.png").write_bytes(b"no picture")


def lose_truth(folder: Path) -> None:
    (folder / "000" / "truth.png").unlink()


def spoil_metrics(folder: Path) -> None:
    (folder / "000" / "metrics.json").write_text('{"name"')


def unfinish(folder: Path) -> None:
    for file in folder.glob("*/metrics.json"):
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (spoil_particles, "is incomplete or damaged"),
        (spoil_metrics, "is incomplete or damaged"),
        (spoil_truth, "can't be read as an image"),
        (lose_truth, "truth.png' is missing, though the run had a truth"),
        (unfinish, "no finished measurement"),
        (shutil.rmtree, "there is no such folder"),
    ],
)
def test_what_cannot_be_read_is_one_line(damage, said: str, run: Path, tmp_path: Path, capsys) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    damage(copy)
    assert evaluate.main([str(copy)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line


@pytest.mark.parametrize("arguments", [[], ["run", "--protocol", "other"], ["run", "--nonsense"]])
def test_a_wrong_command_line_is_one_line(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        evaluate.main(arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


@pytest.mark.parametrize("option", ["--reference", "--features"])
def test_folders_with_nothing_in_them_are_named(option: str, run: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    assert evaluate.main([str(run), option, str(tmp_path / "empty")]) == 1
    assert str(tmp_path / "empty") in capsys.readouterr().err


def test_points_are_no_images(tmp_path: Path, capsys) -> None:
    save_file({"x": torch.zeros(4, 2)}, tmp_path / "particles.safetensors")
    (tmp_path / "metrics.json").write_text("{}")
    assert evaluate.main([str(tmp_path)]) == 1
    assert "particles of shape (N, C, H, W) are expected" in capsys.readouterr().err


def test_phase_retrieval_keeps_the_forms_nearest_to_the_truth(tmp_path: Path) -> None:
    physics = phase_retrieval(SHAPE)
    truth = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    turned = truth.flip(-2, -1)
    images, measurement = torch.cat([turned, truth]), Measurement("a", physics.A(truth), physics, truth)
    image_result(Solved(measurement, images, images, torch.zeros(2, 4, 8, 8))).save(tmp_path)
    saved = load_file(tmp_path / "particles.safetensors")
    assert torch.equal(saved["x"][0], turned[0])
    torch.testing.assert_close(saved["aligned"], truth.expand(2, -1, -1, -1))
    measured = measurement._replace(truth=None)  # then those nearest to the first particle
    image_result(Solved(measured, images, images, torch.zeros(2, 4, 8, 8))).save(tmp_path)
    torch.testing.assert_close(load_file(tmp_path / "particles.safetensors")["aligned"], turned.expand(2, -1, -1, -1))


@pytest.mark.parametrize("option", ["--csv", "--json"])
def test_a_table_that_can_not_be_written_is_known_before_the_work(option: str, tmp_path: Path, capsys) -> None:
    assert evaluate.main(["nowhere", option, str(tmp_path / "no" / "table")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"there is no '{tmp_path / 'no'}'" in line


def test_files_beside_runs_are_left_out(tmp_path: Path, scored) -> None:
    """As ``multirun/DATE/TIME/*`` has multirun.yaml among its runs."""
    (tmp_path / "multirun.yaml").write_text("hydra: {}")
    printed, written, _ = scored(tmp_path / "multirun.yaml")
    assert list(written["runs"]) == ["run"]
    assert "left out" in printed and "multirun.yaml': no finished measurement is in it" in printed
