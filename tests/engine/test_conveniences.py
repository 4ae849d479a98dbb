"""What a machine lacks without harm is a warning: file locks, a compiler, a terminal, TensorBoard."""

import contextlib
import csv
import errno
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger
from support.command import start_train, train
from support.trainers import fit

from rlsd_lightning import RLSD, LatentFeatures
from rlsd_lightning.engine import callbacks, locking
from rlsd_lightning.engine.callbacks import Progress
from rlsd_lightning.engine.compiling import compile_if_possible
from rlsd_lightning.engine.locking import only_run_in
from rlsd_lightning.errors import InputError
from rlsd_lightning.results.monitor import Monitor
from rlsd_lightning.results.writer import ImageResults

# --- locks ---------------------------------------------------------------------------------------------------------


def refusing(error: OSError) -> SimpleNamespace:
    """A module fcntl whose locks fail."""

    def flock(file, how) -> None:
        raise error

    return SimpleNamespace(flock=flock, LOCK_EX=2, LOCK_NB=4)


@pytest.mark.parametrize(
    ("fcntl", "said"),
    [
        (None, "this system has no fcntl"),
        (refusing(OSError(errno.ENOLCK, "No locks available")), "No locks available"),
        (refusing(OSError(errno.ENOSYS, "Function not implemented")), "Function not implemented"),
        (refusing(OSError(errno.EOPNOTSUPP, "Operation not supported")), "Operation not supported"),
    ],
    ids=["none", "ENOLCK", "ENOSYS", "EOPNOTSUPP"],
)
def test_without_file_locks_a_run_goes_on_with_a_warning(
    fcntl: object, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locking, "fcntl", fcntl)
    with only_run_in(tmp_path):
        (record,) = caplog.records
    assert record.levelname == "WARNING" and said in record.getMessage()


def test_a_lock_that_another_run_holds_is_still_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with only_run_in(tmp_path), pytest.raises(InputError, match="another run is working"), only_run_in(tmp_path):
        pass
    assert not caplog.records


# --- compiler ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find C compiler. Please specify via CC environment variable."),
        ImportError("cannot import name 'triton_key' from 'triton'"),
        OSError("No working C++ compiler found\nin torch._inductor.config.cpp.cxx"),
    ],
    ids=["C", "triton", "C++"],
)
def test_without_a_compiler_networks_stay_as_they_are_and_one_line_says_so(
    error: Exception, tiny_prior, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def raising(*arguments, **options):
        raise error

    monkeypatch.setattr(torch, "compile", raising)
    compile_if_possible(tiny_prior, torch.device("cpu"))
    (record,) = caplog.records
    assert record.getMessage().startswith("compile has no effect: torch.compile does not work here (")
    assert "\n" not in record.getMessage()
    assert tiny_prior.denoise(torch.zeros(1, *tiny_prior.latent_shape), 500)[0].isfinite().all()


@pytest.mark.slow
def test_a_run_without_a_compiler_has_its_results(small: list[str], tmp_path: Path) -> None:
    settings = [*small, "num_steps=2", "compile=true", f"output_dir={tmp_path}"]
    process = start_train(
        *settings, new=True, CXX="/nonexistent", CC="/nonexistent", TORCHINDUCTOR_CACHE_DIR=tmp_path / "cache"
    )
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert printed.count("compile has no effect") == 1
    assert "Traceback" not in printed


# --- progress ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "lines"), [(60.0, 1), (0.0, 6)])
def test_without_a_terminal_a_measurement_has_a_line_at_the_start_and_one_a_minute(
    seconds: float,
    lines: int,
    tiny_prior,
    measurement,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "rlsd_lightning")
    monkeypatch.setattr(callbacks, "SECONDS_PER_LINE", seconds)
    module = RLSD(tiny_prior, measurement, LatentFeatures(), num_steps=6, num_particles=2)
    fit(module, tmp_path, Progress(position="[2/3] "), enable_progress_bar=True, log_every_n_steps=1)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("rlsd_lightning")]
    assert len(said) == lines
    assert said[0] == "[2/3] noise: 6 steps, 2 particles"
    if lines > 1:
        assert said[1].startswith("[2/3] noise: step 1 of 6; total ")
    assert "it/s" not in capfd.readouterr().out


def test_refresh_rate_0_shows_nothing(tiny_prior, measurement, tmp_path: Path, caplog, capfd) -> None:
    caplog.set_level(logging.INFO, "rlsd_lightning")
    module = RLSD(tiny_prior, measurement, LatentFeatures(), num_steps=2, num_particles=1)
    fit(module, tmp_path, Progress(refresh_rate=0), enable_progress_bar=True)
    assert not [record for record in caplog.records if record.name.startswith("rlsd_lightning")]
    assert "noise" not in capfd.readouterr().out


# --- loggers -------------------------------------------------------------------------------------------------------


class Foreign(Logger):
    """A logger that knows neither pictures nor an experiment."""

    def __init__(self) -> None:
        super().__init__()
        self.figures: dict[str, float] = {}

    name, version = "foreign", 0

    def log_hyperparams(self, params, *arguments, **options) -> None:
        assert isinstance(params, dict)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.figures |= metrics


def test_a_logger_without_pictures_has_the_curves_and_the_final_figures(
    tiny_prior, measurement, tmp_path: Path
) -> None:
    foreign = Foreign()
    module = RLSD(tiny_prior, measurement, LatentFeatures(), num_steps=4, num_particles=2)
    loggers = [foreign, CSVLogger(tmp_path, "", "")]
    fit(module, tmp_path, Monitor(), ImageResults(tmp_path), logger=loggers, log_every_n_steps=1)
    with (tmp_path / "metrics.csv").open() as file:
        columns = set(next(csv.reader(file)))
    for name in ("loss/total", "seconds_per_step", "psnr/mean", "health/coupling", "final/psnr_mean"):
        assert name in foreign.figures and name in columns, name


def test_a_callback_that_is_null_is_switched_off(small: list[str], tmp_path: Path) -> None:
    off = [f"callbacks.{name}=null" for name in ("pace", "checkpoint", "progress", "stop", "monitor")]
    code, printed = train(*small, "num_steps=2", *off, f"output_dir={tmp_path}")
    assert code == 0, printed
    assert (tmp_path / "000" / "metrics.json").is_file()
    assert not (tmp_path / "000" / "checkpoints").exists()
    _, printed = train(*small, "num_steps=2", "callbacks.results=null", f"output_dir={tmp_path / 'none'}")
    assert "Traceback" not in printed, printed


@pytest.mark.parametrize(("logger", "written"), [("logger=null", []), ("logger=csv", ["metrics.csv"])])
def test_the_command_takes_other_loggers_and_none(
    logger: str, written: list[str], small: list[str], tmp_path: Path
) -> None:
    code, printed = train(*small, "num_steps=2", "trainer.log_every_n_steps=1", logger, f"output_dir={tmp_path}")
    assert code == 0, printed
    assert (tmp_path / "000" / "metrics.json").is_file()
    assert [path.name for path in (tmp_path / "000").glob("metrics.csv")] == written
    assert not list((tmp_path / "000").glob("events.*"))
    with contextlib.suppress(FileNotFoundError):
        assert "final/psnr_mean" in (tmp_path / "000" / "metrics.csv").read_text()
