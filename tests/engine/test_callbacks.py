"""The guard, the curves and pictures in TensorBoard, and the progress bar."""

import io
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from safetensors.torch import load_file
from support.command import train
from support.trainers import fit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from rlsd_lightning import RLSD, LatentFeatures, Measurement, NonFiniteError
from rlsd_lightning.engine.callbacks import FiniteGuard, ImageResults, Monitor
from rlsd_lightning.operators import inpainting

STEPS = 6

# --- guard ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def measurement(tiny_prior) -> Measurement:
    physics = inpainting(tiny_prior.image_shape, "half")
    truth = torch.rand(1, *tiny_prior.image_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Measurement("noise", physics.A(truth), physics, truth)


class Spoil(L.Callback):
    def __init__(self, particles: str, step: int, value: float) -> None:
        self.particles, self.step, self.value = particles, step, value

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        if batch_idx == self.step:
            getattr(pl_module, self.particles).data.view(-1)[0] = self.value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("spoiled", "noticed"), [(1, 4), (3, 4), (5, 6)])
def test_the_guard_stops_at_its_next_look_and_at_the_end(
    value: float, spoiled: int, noticed: int, tiny_prior, tiny_features, measurement, tmp_path: Path
) -> None:
    # where particles are sampled their latents are made anew in every step
    module = RLSD(tiny_prior, measurement, tiny_features, num_steps=STEPS, num_particles=2, sampling_share=0.0)
    with pytest.raises(NonFiniteError, match=f"'noise' are no longer finite at step {noticed}; lower"):
        fit(module, tmp_path, Spoil("z", spoiled, value), FiniteGuard(every_n_steps=4), ImageResults(tmp_path / "out"))
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_the_guard_looks_at_the_auxiliaries_too(tiny_prior, tiny_features, measurement, tmp_path: Path) -> None:
    module = RLSD(
        tiny_prior, measurement, tiny_features, num_steps=STEPS, num_particles=2, x_update="adam", sampling_share=0.0
    )
    with pytest.raises(NonFiniteError, match="at step 2"):
        fit(module, tmp_path, Spoil("x", 1, float("nan")), FiniteGuard(every_n_steps=2))


def test_the_guard_looks_at_the_noisy_latents_too(tiny_prior, tiny_features, measurement, tmp_path: Path) -> None:
    module = RLSD(tiny_prior, measurement, tiny_features, num_steps=STEPS, num_particles=2, sampling_share=1.0)
    with pytest.raises(NonFiniteError, match="at step 2"):
        fit(module, tmp_path, Spoil("z_t", 1, float("nan")), FiniteGuard(every_n_steps=2))


# --- TensorBoard ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tiny_prior_folder: Path, tiny_features_folder: Path, tmp_path_factory) -> tuple[Path, str]:
    """A run over two measurements and what it printed."""
    folder = tmp_path_factory.mktemp("callbacks") / "run"
    code, printed = train(
        f"prior.pretrained={tiny_prior_folder}",
        f"callbacks.results.features.pretrained={tiny_features_folder}",
        f"num_steps={STEPS}",
        "num_particles=2",
        "data.limit=2",
        "trainer.log_every_n_steps=2",
        "callbacks.monitor.every_n_steps=4",
        "callbacks.progress.refresh_rate=1",
        f"output_dir={folder}",
        "method.gamma=0.1",
        "method.sigma_break=1000",
        "method.sampling_share=0.5",
    )
    assert code == 0, printed
    return folder, printed


@pytest.fixture(scope="module")
def events(run: tuple[Path, str]) -> EventAccumulator:
    return EventAccumulator(str(run[0] / "001"), size_guidance={"images": 0, "scalars": 0}).Reload()


@pytest.mark.parametrize(
    "name",
    [
        "loss/total",
        "loss/guidance",
        "loss/coupling",
        "loss/distillation",
        "loss/repulsion",
        "noise_level",
        "repulsion_ratio",
    ],
)
def test_curves_have_a_point_on_every_logged_step(events: EventAccumulator, name: str) -> None:
    curve = events.Scalars(name)
    assert [point.step for point in curve] == [1, 3, 5]
    assert np.isfinite([point.value for point in curve]).all()


def test_the_total_is_the_sum_of_the_terms(events: EventAccumulator) -> None:
    names = [name for name in events.Tags()["scalars"] if name.startswith("loss/") and name != "loss/total"]
    terms = sum(np.array([point.value for point in events.Scalars(name)]) for name in names)
    assert terms == pytest.approx([point.value for point in events.Scalars("loss/total")], rel=1e-5)


def test_the_noise_level_falls(events: EventAccumulator) -> None:
    levels = [point.value for point in events.Scalars("noise_level")]
    assert levels == sorted(levels, reverse=True)
    assert 0 < levels[-1] < levels[0] < 1


def test_the_repulsion_is_a_tenth_of_the_score_until_the_last_step(events: EventAccumulator) -> None:
    # sigma_break leaves the last step without repulsion; Lightning would show the step before's again
    ratios = [point.value for point in events.Scalars("repulsion_ratio")]
    assert ratios == pytest.approx([0.1, 0.1, 0.0], rel=1e-3)


@pytest.mark.parametrize("name", ["seconds_per_step", "psnr/mean", "psnr/best"])
def test_monitored_figures_are_there(events: EventAccumulator, name: str) -> None:
    assert all(np.isfinite(point.value) and point.value > 0 for point in events.Scalars(name))
    assert events.Scalars(name)


class Clock(L.Callback):
    """A time that goes on by three seconds in every step."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        self.now += 3


def test_the_step_time_is_that_of_one_step(
    tiny_prior, tiny_features, measurement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("rlsd_lightning.engine.callbacks.time", clock)
    module = RLSD(tiny_prior, measurement, tiny_features, num_steps=STEPS, num_particles=2)
    fit(module, tmp_path, clock, Monitor(), logger=TensorBoardLogger(tmp_path, "", ""), log_every_n_steps=2)
    points = EventAccumulator(str(tmp_path)).Reload().Scalars("seconds_per_step")
    assert [(point.step, point.value) for point in points] == [(1, 3), (3, 3), (5, 3)]


@pytest.mark.parametrize("name", ["particles", "decoded"])
def test_pictures_show_the_particles_as_they_evolve(events: EventAccumulator, name: str) -> None:
    pictures = events.Images(name)
    assert [picture.step for picture in pictures] == [4, STEPS]
    image = Image.open(io.BytesIO(pictures[-1].encoded_image_string))
    assert image.size == (2 * (32 + 2) + 2, 32 + 2 * 2)  # two pictures and their borders
    assert pictures[0].encoded_image_string != pictures[1].encoded_image_string


def test_the_last_picture_is_the_result(run: tuple[Path, str], events: EventAccumulator) -> None:
    shown = np.asarray(Image.open(io.BytesIO(events.Images("particles")[-1].encoded_image_string)))[2:34, 2:34]
    result = load_file(run[0] / "001" / "particles.safetensors")["x"][0].clamp(-1, 1)
    expected = (result / 2 + 0.5).permute(1, 2, 0).numpy() * 255
    assert np.abs(shown - expected).max() < 1.5


def test_the_particles_deviation_is_shown_too(run: tuple[Path, str], events: EventAccumulator) -> None:
    pictures = events.Images("particles_std")
    assert [picture.step for picture in pictures] == [4, STEPS]
    shown = np.asarray(Image.open(io.BytesIO(pictures[-1].encoded_image_string)).convert("L"))
    particles = load_file(run[0] / "001" / "particles.safetensors")["x"].clamp(-1, 1)
    expected = particles.var(dim=0, correction=0).mean(dim=0).sqrt().numpy() * 510  # white is a quarter of the range
    assert np.abs(shown - expected.clip(max=255)).max() < 1.5


def test_the_psnr_curve_has_a_point_per_picture(run: tuple[Path, str], events: EventAccumulator) -> None:
    assert [point.step for point in events.Scalars("psnr/mean")] == [4, STEPS]


def test_the_psnr_curve_ends_at_the_result(run: tuple[Path, str], events: EventAccumulator) -> None:
    final = events.Scalars("final/psnr_mean")[-1].value
    assert events.Scalars("psnr/mean")[-1].value == pytest.approx(final, abs=0.3)


def test_hparams_stand_beside_the_final_metrics(run: tuple[Path, str], events: EventAccumulator) -> None:
    metadata = {tag: events.SummaryMetadata(tag) for tag in (SESSION_START_INFO_TAG, EXPERIMENT_TAG)}
    session = HParamsPluginData.FromString(metadata[SESSION_START_INFO_TAG].plugin_data.content).session_start_info
    assert session.hparams["num_particles"].number_value == 2
    assert session.hparams["gamma"].number_value == pytest.approx(0.1)
    assert session.hparams["x_update"].string_value == "prox"
    experiment = HParamsPluginData.FromString(metadata[EXPERIMENT_TAG].plugin_data.content).experiment
    shown = {metric.name.tag for metric in experiment.metric_infos}
    assert shown >= {"final/psnr_mean", "final/psnr_best", "final/diversity", "final/residual", "final/seconds"}
    for name in shown:
        assert events.Scalars(name)


def test_without_a_truth_there_is_no_psnr_curve(tiny_prior, tiny_features, measurement, tmp_path: Path) -> None:
    module = RLSD(tiny_prior, measurement._replace(truth=None), tiny_features, num_steps=3, num_particles=2)
    fit(module, tmp_path, Monitor(every_n_steps=1), logger=TensorBoardLogger(tmp_path, "", ""), log_every_n_steps=1)
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()
    assert not [name for name in tags["scalars"] if "psnr" in name]
    assert "particles" in tags["images"]
    assert "seconds_per_step" in tags["scalars"]


# --- progress ------------------------------------------------------------------------------------------------------


def test_the_bar_names_the_measurement_and_shows_live_losses(run: tuple[Path, str]) -> None:
    _, printed = run
    bars = printed.replace("\r", "\n").splitlines()
    for position, name in (("[1/2]", "000"), ("[2/2]", "001")):
        (*_, last) = [line for line in bars if line.startswith(f"{position} {name}: ")]
        assert f"{STEPS}/{STEPS}" in last
        for loss in ("total=", "coupling=", "distillation="):
            assert loss in last


def test_the_closing_line_says_where_the_results_are(run: tuple[Path, str]) -> None:
    folder, printed = run
    assert printed.splitlines()[-1] == f"results of 2 of 2 measurements: {folder / 'report.html'}"


# --- results -------------------------------------------------------------------------------------------------------


def test_results_are_compared_a_chunk_at_a_time(tiny_prior, tiny_features, measurement, tmp_path: Path) -> None:
    seen: list[int] = []
    tiny_features.register_forward_hook(lambda _, inputs, output: seen.append(len(output)))
    module = RLSD(tiny_prior, measurement, LatentFeatures(), num_steps=2, num_particles=3, particle_chunk=2)
    fit(module, tmp_path, ImageResults(tmp_path, tiny_features))
    assert seen == [2, 1]
