"""The terms of RLSD's loss, as TensorBoard and the progress bar show them."""

from pathlib import Path

import lightning as L
import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from support.trainers import fit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlsd_lightning import RLSD, LatentFeatures, Measurement, StableDiffusionPrior

LOGGED = [1, 3, 5, 7, 9]
TERMS = {
    "denoising": [True] * 3 + [False] * 2,
    "coupling": [True] * 3 + [False] * 2,
    "repulsion": [True] * 2 + [False] * 3,
    "refine_denoising": [False] * 3 + [True] * 2,
    "refine_coupling": [False] * 3 + [True] * 2,
}
"""Whether a term acts at every logged step of ten, of which the first four have repulsion and the last four refine."""


class Bar(L.Callback):
    """What the progress bar is given."""

    def __init__(self) -> None:
        self.shown: list[set[str]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: RLSD, outputs, batch, batch_idx: int) -> None:
        if batch_idx in LOGGED:
            self.shown.append(set(trainer.progress_bar_metrics))


@pytest.fixture
def bar() -> Bar:
    return Bar()


@pytest.fixture
def events(tiny_prior: StableDiffusionPrior, measurement: Measurement, bar: Bar, tmp_path: Path) -> EventAccumulator:
    settings = {"num_steps": 10, "num_particles": 2, "gamma": 0.5, "repulsion_until": 0.4, "refine_share": 0.4}
    module = RLSD(tiny_prior, measurement, LatentFeatures(), **settings)
    fit(module, tmp_path, bar, logger=TensorBoardLogger(tmp_path, "", ""), log_every_n_steps=2)
    return EventAccumulator(str(tmp_path)).Reload()


def test_every_term_is_shown_at_every_logged_step_and_zero_where_it_does_not_act(
    events: EventAccumulator, bar: Bar
) -> None:
    curves = {name: events.Scalars(f"loss/{name}") for name in ("total", *TERMS)}
    for name, curve in curves.items():
        assert [point.step for point in curve] == LOGGED, name
        assert np.isfinite([point.value for point in curve]).all(), name
    for name, acts in TERMS.items():
        assert [point.value != 0 for point in curves[name]] == acts, name
    total = np.array([point.value for point in curves["total"]])
    assert sum(np.array([point.value for point in curves[name]]) for name in TERMS) == pytest.approx(total, rel=1e-5)
    assert (total[:3] > 0).all()
    assert [shown >= {f"loss/{name}" for name in curves} for shown in bar.shown] == [True] * len(LOGGED)


def test_the_ratio_of_the_repulsion_is_a_curve_that_ends_at_zero(events: EventAccumulator) -> None:
    # Lightning would show the last value again where nothing is logged
    curve = events.Scalars("repulsion_ratio")
    assert [point.step for point in curve] == LOGGED
    ratio = 0.5 * LatentFeatures().gamma_scale
    assert [point.value for point in curve] == pytest.approx([ratio] * 2 + [0] * 3, rel=1e-3)


def test_the_noise_level_falls(events: EventAccumulator) -> None:
    levels = [point.value for point in events.Scalars("noise_level")]
    assert len(levels) == len(LOGGED)
    assert levels == sorted(levels, reverse=True)
    assert 0 < levels[-1] < levels[0] < 1
