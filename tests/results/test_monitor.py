"""Curves and pictures in TensorBoard, and the filmstrip."""

import csv
import io
import re
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from safetensors.torch import load_file
from support.command import start_train, train, wait_for
from support.trainers import fit
from support.warm import TESTS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from rlsd_lightning import RLSD, LatentFeatures
from rlsd_lightning.evaluation.health import HealthMetrics
from rlsd_lightning.results.grid import thumbnails, write_filmstrip
from rlsd_lightning.results.monitor import Monitor, ResumableCSVLogger
from rlsd_lightning.results.writer import ImageResults, moments

STEPS = 6


def events_in(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()


# --- moments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3, 9, 10, 11, 95, 100, 999])
def test_moments_are_evenly_spread_and_end_with_the_run(steps: int) -> None:
    chosen = moments(steps)
    assert len(chosen) == min(10, steps)
    assert chosen[-1] == steps
    gaps = np.diff([0, *chosen])
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


# --- a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tiny_prior_folder: Path, tiny_features_folder: Path, tmp_path_factory) -> tuple[Path, str]:
    """A run over two measurements and what it printed."""
    folder = tmp_path_factory.mktemp("callbacks") / "run"
    code, printed = train(
        f"prior.pretrained={tiny_prior_folder}",
        f"num_steps={STEPS}",
        "num_particles=2",
        "data.limit=2",
        "trainer.log_every_n_steps=2",
        f"output_dir={folder}",
        "method.gamma=0.1",
        "method.repulsion_until=1",
        "method.refine_share=0.3",
    )
    assert code == 0, printed
    return folder, printed


@pytest.fixture(scope="module")
def events(run: tuple[Path, str]) -> EventAccumulator:
    return events_in(run[0] / "001")


@pytest.mark.parametrize(
    "name",
    [
        "loss/total",
        "loss/denoising",
        "loss/coupling",
        "loss/repulsion",
        "loss/refine_denoising",
        "loss/refine_coupling",
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


def test_the_repulsion_is_a_tenth_of_the_coupling_until_the_loop_ends(events: EventAccumulator) -> None:
    # the loop's last step and the refinement have none; Lightning would show the step before's again
    ratios = [point.value for point in events.Scalars("repulsion_ratio")]
    assert ratios == pytest.approx([0.1, 0.0, 0.0], rel=1e-3)


@pytest.mark.parametrize("name", ["seconds_per_step", "psnr/mean", "psnr/best"])
def test_monitored_figures_are_positive(events: EventAccumulator, name: str) -> None:
    assert all(np.isfinite(point.value) and point.value > 0 for point in events.Scalars(name))
    assert events.Scalars(name)


def test_there_is_no_curve_of_the_only_epoch(events: EventAccumulator) -> None:
    assert not {"epoch", "step"} & set(events.Tags()["scalars"])


@pytest.mark.parametrize("name", ["particles_and_std", "decoded"])
def test_pictures_show_the_particles_as_they_evolve(events: EventAccumulator, name: str) -> None:
    pictures = events.Images(f"pictures/{name}")
    assert [picture.step for picture in pictures] == list(range(STEPS))
    image = Image.open(io.BytesIO(pictures[-1].encoded_image_string))
    count = 3 if name == "particles_and_std" else 2
    assert image.size == (count * (32 + 2) + 2, 32 + 2 * 2)  # pictures and their borders
    assert pictures[0].encoded_image_string != pictures[1].encoded_image_string


def test_the_last_picture_is_the_result(run: tuple[Path, str], events: EventAccumulator) -> None:
    shown = np.asarray(Image.open(io.BytesIO(events.Images("pictures/particles_and_std")[-1].encoded_image_string)))[
        2:34, 2:34
    ]
    result = load_file(run[0] / "001" / "particles.safetensors")["x"][0].clamp(-1, 1)
    expected = (result / 2 + 0.5).permute(1, 2, 0).numpy() * 255
    assert np.abs(shown - expected).max() < 1.5


def test_the_particles_deviation_is_shown_too(run: tuple[Path, str], events: EventAccumulator) -> None:
    picture = events.Images("pictures/particles_and_std")[-1]
    shown = np.asarray(Image.open(io.BytesIO(picture.encoded_image_string)).convert("L"))[2:34, -34:-2]
    particles = load_file(run[0] / "001" / "particles.safetensors")["x"].clamp(-1, 1)
    expected = particles.var(dim=0, correction=0).mean(dim=0).sqrt().numpy() * 510  # white is a quarter of the range
    assert np.abs(shown - expected.clip(max=255)).max() < 1.5


def test_the_psnr_curve_has_a_point_per_picture_and_ends_at_the_result(events: EventAccumulator) -> None:
    curve = events.Scalars("psnr/mean")
    assert [point.step for point in curve] == list(range(STEPS))
    assert curve[-1].value == pytest.approx(events.Scalars("final/psnr_mean")[-1].value, abs=1e-4)


def test_hparams_stand_beside_the_final_metrics(events: EventAccumulator) -> None:
    metadata = {tag: events.SummaryMetadata(tag) for tag in (SESSION_START_INFO_TAG, EXPERIMENT_TAG)}
    session = HParamsPluginData.FromString(metadata[SESSION_START_INFO_TAG].plugin_data.content).session_start_info
    assert session.hparams["num_particles"].number_value == 2
    assert session.hparams["gamma"].number_value == pytest.approx(0.1)
    assert session.hparams["antithetic"].bool_value in (True, False)
    experiment = HParamsPluginData.FromString(metadata[EXPERIMENT_TAG].plugin_data.content).experiment
    shown = {metric.name.tag for metric in experiment.metric_infos}
    assert shown >= {"final/psnr_mean", "final/psnr_best", "final/vendi", "final/residual", "final/seconds"}
    for name in shown:
        assert [point.step for point in events.Scalars(name)] == [STEPS - 1]


@pytest.mark.parametrize(
    ("chart", "curves"),
    [
        ("terms of the loss", ["coupling", "denoising", "repulsion"]),
        ("terms of the refinement", ["refine_coupling", "refine_denoising"]),
        ("PSNR", ["best", "mean"]),
    ],
)
def test_curves_that_belong_together_are_on_one_chart(events: EventAccumulator, chart: str, curves: list[str]) -> None:
    (config,) = events.Tensors("custom_scalars__config__")
    (category,) = Layout.FromString(config.tensor_proto.string_val[0]).category
    (patterns,) = [list(each.multiline.tag) for each in category.chart if each.title == chart]
    names = events.Tags()["scalars"]
    shown = [name for name in names if any(re.match(pattern, name) for pattern in patterns)]
    assert sorted(name.rpartition("/")[2] for name in shown) == curves


def test_the_filmstrip_has_a_row_a_particle_and_ends_with_the_result(run: tuple[Path, str]) -> None:
    with Image.open(run[0] / "001" / "filmstrip.png") as file:
        strip = np.asarray(file.convert("RGB")).astype(float)
    assert strip.shape == (22 + 2 * 102, 6 + STEPS * 102, 3)
    for row in range(2):
        with Image.open(run[0] / "001" / "particles" / f"{row:02d}.png") as file:
            particle = np.asarray(file.convert("RGB")).repeat(3, axis=0).repeat(3, axis=1)  # 32 to 96 pixels
        frames = [strip[22 + row * 102 :][:96, 6 + column * 102 :][:, :96] for column in range(STEPS)]
        distances = [np.abs(frame - particle).mean() for frame in frames]
        assert distances[-1] < 1
        assert min(distances[:-1]) > distances[-1]


# --- a module ------------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr("rlsd_lightning.results.monitor.time", clock)
    module = RLSD(tiny_prior, measurement, tiny_features, num_steps=STEPS, num_particles=2)
    fit(module, tmp_path, Monitor(), clock, logger=TensorBoardLogger(tmp_path, "", ""), log_every_n_steps=2)
    points = events_in(tmp_path).Scalars("seconds_per_step")
    assert [(point.step, point.value) for point in points] == [(1, 3), (3, 3), (5, 3)]


def test_without_a_truth_there_is_no_psnr_curve(tiny_prior, tiny_features, measurement, tmp_path: Path) -> None:
    module = RLSD(tiny_prior, measurement._replace(truth=None), tiny_features, num_steps=3, num_particles=2)
    logger = TensorBoardLogger(tmp_path, "", "")
    fit(module, tmp_path, Monitor(), ImageResults(tmp_path), logger=logger, log_every_n_steps=1)
    tags = events_in(tmp_path).Tags()
    assert not [name for name in tags["scalars"] if "psnr" in name]
    assert "pictures/particles_and_std" in tags["images"]
    assert "seconds_per_step" in tags["scalars"]


def test_health_metrics_are_curves(tiny_prior, measurement, tmp_path: Path) -> None:
    module = RLSD(tiny_prior, measurement, LatentFeatures(), num_steps=STEPS, num_particles=3)
    fit(module, tmp_path, ImageResults(tmp_path), logger=TensorBoardLogger(tmp_path, "", ""), log_every_n_steps=2)
    events = events_in(tmp_path)
    for name in HealthMetrics._fields:
        points = events.Scalars(f"health/{name}")
        assert [point.step for point in points] == list(range(STEPS))
        assert np.isfinite([point.value for point in points]).all()


def test_a_step_that_decodes_nothing_has_no_picture(tiny_prior, measurement, tmp_path: Path) -> None:
    class Blind(RLSD):
        def intermediate_images(self) -> None:
            """Decodes nothing."""

    module = Blind(tiny_prior, measurement, LatentFeatures(), num_steps=STEPS, num_particles=2)
    fit(module, tmp_path, Monitor(), ImageResults(tmp_path), logger=TensorBoardLogger(tmp_path, "", ""))
    assert [picture.step for picture in events_in(tmp_path).Images("pictures/particles_and_std")] == [STEPS - 1]
    with Image.open(tmp_path / "noise" / "filmstrip.png") as strip:
        assert strip.size == (6 + 102, 22 + 2 * 102)


@pytest.mark.parametrize(("count", "title"), [(16, ""), (17, "16 of 17 particles")])
def test_a_filmstrip_has_at_most_sixteen_rows_and_says_so(
    count: int, title: str, tiny_prior, measurement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = []
    monkeypatch.setattr(
        "rlsd_lightning.results.grid.write_filmstrip",
        lambda path, columns, title: [titles.append(title), write_filmstrip(path, columns, title)],
    )
    module = RLSD(tiny_prior, measurement, LatentFeatures(), num_steps=2, num_particles=count)
    results = ImageResults(tmp_path)
    fit(module, tmp_path, results)
    assert titles[-1] == title  # the first is that of the principal directions
    assert [len(images) for _, images in results.state_dict()["moments"]["noise"]] == [16, 16]
    with Image.open(tmp_path / "noise" / "filmstrip.png") as strip:
        assert strip.size == (6 + 2 * 102, (44 if title else 22) + 16 * 102)


def test_large_particles_have_small_thumbnails() -> None:
    images = torch.linspace(-1, 1, 256).expand(2, 3, 128, 256)
    small = thumbnails(images)
    assert small.shape == (2, 3, 48, 96) and small.dtype == torch.uint8
    assert small[0, 0, 0].tolist() == pytest.approx(np.linspace(0, 255, 96), abs=3)


@pytest.mark.parametrize("size", [(1, 512), (512, 4), (8, 1024)])
def test_thumbnails_of_narrow_images_have_a_pixel(size: tuple[int, int]) -> None:
    assert thumbnails(torch.zeros(1, 3, *size)).shape[-2:] == tuple(max(1, 96 * length // max(size)) for length in size)


# --- a run that was killed -----------------------------------------------------------------------------------------


def last_step(folder: Path) -> int:
    """The last step of the loss that event files hold so far; -1 without one."""
    events = events_in(folder)
    return events.Scalars("loss/total")[-1].step if "loss/total" in events.Tags()["scalars"] else -1


def test_a_killed_run_has_every_step_once_in_order_and_the_whole_filmstrip(small: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start_train(
        *[*small, "data.limit=1", "num_steps=40", "trainer.log_every_n_steps=1", f"output_dir={folder}"],
        "+callbacks.slow._target_=support.faults.Slow",
        PYTHONPATH=TESTS,
    )
    wait_for(
        lambda: (folder / "000").exists() and last_step(folder / "000") >= 18, process
    )  # the last checkpoint is that of step 15
    process.kill()
    process.wait()
    assert train(f"resume={folder}")[0] == 0
    events = events_in(folder / "000")
    tags = events.Tags()
    for name in tags["scalars"]:
        steps = [point.step for point in events.Scalars(name)]
        assert steps == sorted(set(steps)), name
    assert [point.step for point in events.Scalars("loss/total")] == list(range(40))
    for name in tags["images"]:
        assert [picture.step for picture in events.Images(name)] == [3, 7, 11, 15, 19, 23, 27, 31, 35, 39]
    with Image.open(folder / "000" / "filmstrip.png") as strip:
        assert strip.size == (6 + 10 * 102, 22 + 2 * 102)


def test_a_resumed_table_keeps_the_rows_before_the_first_new_step(tmp_path: Path) -> None:
    def log(*rows: tuple[int, dict[str, float]]) -> list[dict[str, str]]:
        logger = ResumableCSVLogger(tmp_path, name="", version="")
        for step, figures in rows:
            logger.log_metrics(figures, step)
        logger.save()
        with (tmp_path / "metrics.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    log((0, {"loss": 3.0}), (10, {"loss": 2.0}), (20, {"loss": 1.5}))
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("0.5")  # of a killed run
    rows = log((10, {"loss": 1.0}), (20, {"loss": 0.5, "psnr": 20.0}))
    assert [(row["step"], row["loss"], row["psnr"]) for row in rows] == [
        ("0", "3.0", ""),
        ("10", "1.0", ""),
        ("20", "0.5", "20.0"),
    ]
    assert [row["step"] for row in log((0, {"loss": 3.0}))] == ["0"]  # a new run in the folder
