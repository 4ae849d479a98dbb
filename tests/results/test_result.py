"""The result of solve(): the same as that of the command, and shown in notebooks."""

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.command import train

from rlsd_lightning import GaussianMixturePrior, InputError, PixelFeatures, Result, StableDiffusionPrior, solve
from rlsd_lightning.images import load_image
from rlsd_lightning.operators import denoising, inpainting
from rlsd_lightning.results.store import load_run

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


@pytest.fixture(scope="module")
def both(tiny_prior_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Result]:
    """Folders of the same measurement from the command and from Python, and the latter's result."""
    base = tmp_path_factory.mktemp("both")
    pixels = torch.randint(256, (32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    # the name is the key of the noise
    Image.fromarray(pixels.numpy()).save(base / "measurement.png")
    code, printed = train(
        f"prior.pretrained={tiny_prior_folder}",
        "features=pixels",
        "callbacks.results.features=null",
        "callbacks.results.prior_diversity=null",
        "num_steps=12",
        "num_particles=2",
        "method.gamma=2",
        f"data.images={base / 'measurement.png'}",
        f"output_dir={base / 'run'}",
    )
    assert code == 0, printed
    command = base / "run" / "measurement"
    prior = StableDiffusionPrior(str(tiny_prior_folder), local_files_only=True)
    result = solve(
        load_file(command / "particles.safetensors")["y"],
        inpainting(prior.image_shape, mask="half"),
        prior,
        truth=load_image(base / "measurement.png", 32, 32),
        num_particles=2,
        num_steps=12,
        features=PixelFeatures(),
        gamma=2.0,
        trainer=QUIET,
    )
    result.save(base / "saved")
    return command, base / "saved", result


def metrics_in(folder: Path) -> dict:
    """Metrics without the time, which no two runs share."""
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics.pop("seconds") > 0
    return metrics


def test_python_writes_what_the_command_writes(both: tuple[Path, Path, Result]) -> None:
    command, saved, _ = both
    own = ("events.", "checkpoints", "hparams.yaml")

    def files(folder: Path) -> set[str]:
        paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        return {str(path) for path in paths if not str(path).startswith(own)}

    assert files(saved) == files(command)
    assert {"truth.png", "particles/01.png", "std.png", "grid.png", "filmstrip.png", "metrics.json"} <= files(saved)
    assert metrics_in(saved) == metrics_in(command)
    here, there = (load_file(folder / "particles.safetensors") for folder in (saved, command))
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)
    for name in files(saved):
        if name.endswith(".png"):
            with Image.open(saved / name) as one, Image.open(command / name) as other:
                assert one.tobytes() == other.tobytes(), name


def test_a_result_has_what_its_files_show(both: tuple[Path, Path, Result]) -> None:
    _, saved, result = both
    tensors, metrics = load_file(saved / "particles.safetensors"), json.loads((saved / "metrics.json").read_text())
    assert result.particles.shape == result.decoded.shape == (2, 3, 32, 32)
    assert torch.equal(result.particles, tensors["x"])
    assert torch.equal(result.mean, result.particles.clamp(-1, 1).mean(dim=0))
    variance = result.particles.clamp(-1, 1).var(dim=0, correction=0) + tensors["shared_variance"]
    torch.testing.assert_close(result.std, variance.mean(dim=0).sqrt())
    with Image.open(saved / "std.png") as picture:
        shown = torch.tensor(list(picture.convert("L").tobytes())).view(32, 32) / 255
    torch.testing.assert_close(shown, (result.std / 0.5).clamp(max=1), atol=0.003, rtol=0)
    assert result.metrics == metrics and metrics["psnr_mean"] > 0
    assert result.decoder_error == metrics["decoder_error"] > 0
    assert any("repulsion is" in sentence for sentence in result.warnings)


def test_a_notebook_shows_the_grid_and_the_figures(both: tuple[Path, Path, Result]) -> None:
    _, saved, result = both
    shown = Image.open(io.BytesIO(result._repr_png_()))
    with Image.open(saved / "grid.png") as grid:
        assert shown.tobytes() == grid.tobytes()
    words = repr(result)
    assert words.startswith(f"Result: 2 particles of shape (3, 32, 32); psnr_mean {result.metrics['psnr_mean']:.4g}")
    assert f"warning: {result.warnings[0]}" in words


def test_other_processes_than_the_first_write_nothing(both: tuple[Path, Path, Result], tmp_path: Path) -> None:
    fields = {name: getattr(both[2], name) for name in Result.__dataclass_fields__}
    Result(**{**fields, "is_first": False}).save(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_without_a_truth_there_is_no_psnr(tiny_prior: StableDiffusionPrior, tmp_path: Path) -> None:
    physics = denoising(tiny_prior.image_shape)
    y = torch.zeros(1, *tiny_prior.image_shape)
    result = solve(y, physics, tiny_prior, num_particles=1, num_steps=2, trainer=QUIET)
    assert result.metrics["psnr_mean"] is None and result.metrics["residual_sigmas"] > 0
    assert result.std.isfinite().all()
    result.save(tmp_path / "deep" / "folder")
    assert not (tmp_path / "deep" / "folder" / "truth.png").exists()


@pytest.mark.parametrize(
    ("truth", "said"),
    [
        (torch.zeros(3, 32, 32), r"truth must have shape \(1, 3, 32, 32\).* got \(3, 32, 32\)"),
        (torch.zeros(1, 3, 64, 64), r"got \(1, 3, 64, 64\)"),
        (torch.full((1, 3, 32, 32), torch.nan), "truth must be finite"),
    ],
)
def test_a_truth_that_is_none_is_refused(truth: torch.Tensor, said: str, tiny_prior: StableDiffusionPrior) -> None:
    y = torch.zeros(1, *tiny_prior.image_shape)
    with pytest.raises(InputError, match=said):
        solve(y, denoising(tiny_prior.image_shape), tiny_prior, truth=truth, num_steps=2, trainer=QUIET)


def test_points_have_a_result_without_pictures(tmp_path: Path) -> None:
    prior = GaussianMixturePrior([[3.0, -2.0]], std=0.3)
    result = solve(torch.tensor([[3.0]]), lambda x: x[:, :1], prior, num_particles=5, num_steps=5, trainer=QUIET)
    assert result.particles.shape == (5, 2)
    assert result.mean.shape == result.std.shape == (2,)
    assert result._repr_png_() is None and "5 particles of shape (2,)" in repr(result)
    result.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "particles.safetensors"}


@pytest.mark.parametrize("early", [{"max_steps": 1}, {"fast_dev_run": True}, {"limit_train_batches": 2}])
def test_a_trainer_that_stops_early_has_no_result_and_says_so(early: dict, tiny_prior: StableDiffusionPrior) -> None:
    y = torch.zeros(1, *tiny_prior.image_shape)
    with pytest.raises(
        InputError, match=r"all 5 steps are expected, but the Trainer stopped after [12]; leave max_steps"
    ):
        solve(y, denoising(tiny_prior.image_shape), tiny_prior, num_steps=5, trainer=QUIET | early)


def test_a_later_result_in_the_same_folder_replaces_the_earlier_one(
    both: tuple[Path, Path, Result], tiny_prior: StableDiffusionPrior, tmp_path: Path
) -> None:
    saved, folder = both[2], tmp_path / "out"
    saved.save(folder)
    (folder / "lower.png").touch()
    (folder / "notes.png").touch()
    physics = denoising(tiny_prior.image_shape)
    y = torch.zeros(1, *tiny_prior.image_shape)
    solve(y, physics, tiny_prior, num_particles=1, num_steps=2, trainer=QUIET).save(folder)
    (found,) = load_run(folder)
    assert found.truth is None and len(found.images) == 1
    assert [file.name for file in (folder / "particles").iterdir()] == ["00.png"]
    assert (folder / "notes.png").exists() and not (folder / "lower.png").exists()


def test_pictures_of_a_folder_without_results_stay(both: tuple[Path, Path, Result], tmp_path: Path) -> None:
    own = [tmp_path / "upper.png", tmp_path / "full_size" / "00.png", tmp_path / "particles" / "9.png"]
    for file in own:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    both[2].save(tmp_path)
    assert all(file.exists() for file in own)
