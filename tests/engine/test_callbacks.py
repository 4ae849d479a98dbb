"""Guard and progress bar."""

import sys
from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from support.trainers import fit

from rlsd_lightning import RLSD, Distilled, NonFiniteError, RLSDPaper
from rlsd_lightning.engine import callbacks
from rlsd_lightning.engine.callbacks import FiniteGuard, Progress
from rlsd_lightning.results.writer import ImageResults

STEPS = 6

# --- guard ---------------------------------------------------------------------------------------------------------


class Spoil(L.Callback):
    """Sets one value of a state after a step."""

    def __init__(self, particles: str, step: int, value: float) -> None:
        self.particles, self.step, self.value = particles, step, value

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        if batch_idx == self.step:
            getattr(pl_module, self.particles).data.view(-1)[0] = self.value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("spoiled", "noticed"), [(1, 4), (3, 4), (5, 6)])
def test_the_guard_stops_at_its_next_check_and_at_the_end(
    value: float, spoiled: int, noticed: int, tiny_prior, tiny_features, measurement, tmp_path: Path
) -> None:
    # a step of the loop makes the latents anew
    module = Distilled(tiny_prior, measurement, tiny_features, num_steps=STEPS, num_particles=2)
    with pytest.raises(NonFiniteError, match=f"'noise' are no longer finite at step {noticed}; lower"):
        fit(module, tmp_path, Spoil("z", spoiled, value), FiniteGuard(every_n_steps=4), ImageResults(tmp_path / "out"))
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_the_guard_checks_the_auxiliaries_too(tiny_prior, tiny_features, measurement, tmp_path: Path) -> None:
    module = RLSDPaper(tiny_prior, measurement, tiny_features, num_steps=STEPS, num_particles=2)
    with pytest.raises(NonFiniteError, match="at step 2"):
        fit(module, tmp_path, Spoil("x", 1, float("nan")), FiniteGuard(every_n_steps=2))


def test_the_guard_checks_the_noise_too(tiny_prior, tiny_features, measurement, tmp_path: Path) -> None:
    module = RLSD(tiny_prior, measurement, tiny_features, num_steps=STEPS, num_particles=2)
    with pytest.raises(NonFiniteError, match="at step 2"):
        fit(module, tmp_path, Spoil("e", 1, float("nan")), FiniteGuard(every_n_steps=2))


@pytest.mark.parametrize(("method", "settings", "every", "noticed"), [(Distilled, {}, 3, 3), (RLSDPaper, {}, 4, 2)])
def test_no_checkpoint_has_particles_that_are_not_finite(
    method: type, settings: dict, every: int, noticed: int, tiny_prior, tiny_features, measurement, tmp_path: Path
) -> None:
    # the published method takes two optimiser steps, which ModelCheckpoint counts, a timestep
    module = method(tiny_prior, measurement, tiny_features, num_steps=STEPS, num_particles=2, **settings)
    saved = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0, every_n_train_steps=every)
    with pytest.raises(NonFiniteError, match=f"at step {noticed};"):
        fit(
            module,
            tmp_path,
            Spoil("z", noticed - 1, float("nan")),
            FiniteGuard(every_n_steps=100),
            saved,
            enable_checkpointing=True,
        )
    assert not list(tmp_path.glob("*.ckpt"))


def test_a_step_is_checked_once(
    tiny_prior, tiny_features, measurement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[int] = []
    monkeypatch.setattr(callbacks, "not_finite", lambda module: checked.append(module.steps_done))
    module = RLSD(tiny_prior, measurement, tiny_features, num_steps=STEPS, num_particles=2)
    saved = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0, every_n_train_steps=3)
    fit(module, tmp_path, FiniteGuard(every_n_steps=2), saved, enable_checkpointing=True)
    assert checked == [2, 3, 4, 6]
    assert (tmp_path / "last.ckpt").is_file()


# --- progress ------------------------------------------------------------------------------------------------------


class Curves(L.Callback):
    """Names of all logged values."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.names = set(trainer.callback_metrics)


def test_the_bar_names_the_measurement_and_shows_every_term(
    tiny_prior,
    tiny_features,
    measurement,
    tmp_path: Path,
    capfd: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    settings = {"gamma": 0.1, "repulsion_until": 1.0, "refine_share": 0.5}
    module = RLSD(tiny_prior, measurement, tiny_features, num_steps=STEPS, num_particles=2, **settings)
    bar, curves = Progress(refresh_rate=1, position="[2/3] "), Curves()
    fit(module, tmp_path, bar, curves, log_every_n_steps=2, enable_progress_bar=True)
    (*_, last) = capfd.readouterr().out.replace("\r", "\n").strip().splitlines()
    assert last.startswith("[2/3] noise: ")
    assert f"{STEPS}/{STEPS}" in last
    terms = {name.removeprefix("loss/") for name in curves.names if name.startswith("loss/")}
    assert {"total", "repulsion"} < terms
    for term in terms:
        assert f"{term}=" in last
