"""Gives finished runs intervals with a guaranteed expected coverage, calibrated on a run with truths.

rlsd conformal outputs/inpaint/CALIBRATION
rlsd conformal outputs/inpaint/CALIBRATION outputs/inpaint/RUN --level 0.9

The first run is the calibration: its conformal.json keeps the intervals' factor. The other runs need no truths. They must
have the calibration's settings and files of the same names, and get lower.png and upper.png, figures in metrics.json, and
a new report.html.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rlsd_lightning.cli.literal import INPUTS
from rlsd_lightning.cli.resume import MAY_CHANGE
from rlsd_lightning.cli.settings import move_older, read_settings
from rlsd_lightning.cli.subcommands.parser import Parser, in_one_line
from rlsd_lightning.errors import InputError
from rlsd_lightning.evaluation.checks.intervals import Conformal, conformal_calibration, interval
from rlsd_lightning.images import to_pil
from rlsd_lightning.reading.paths import split_key
from rlsd_lightning.results.report import write_report
from rlsd_lightning.results.store import (
    finished,
    load_run,
    read_failures,
    read_metrics,
    write_json,
    write_metrics,
)

__all__ = ["calibrate_intervals", "give_intervals", "main"]

FILE = "conformal.json"
ALIKE = ("physics", "prior", "method", "features", "num_particles", "num_steps")
"""Settings that a calibration holds for."""


def calibrate_intervals(folder: Path, level: float) -> Conformal:
    """Calibrate on a run's measurements, and keep what was found in the run's folder.

    Raises:
        InputError: If nothing is finished, a truth is missing, or there are too few images.
    """
    found = conformal_calibration(load_run(folder), level)
    written = found._asdict() | {"guarantee": found.guarantee, "settings": _settings(folder)}
    write_json(folder / FILE, written)
    return found


def give_intervals(folder: Path, found: Conformal) -> tuple[int, float, float | None]:
    """Write intervals into a run's folder; returns the number of images, their mean width and mean coverage, if known."""
    every = []
    folders = finished(folder)
    for measurement, saved in zip(folders, load_run(folder), strict=True):
        one = interval(saved, found)
        for name in ("lower", "upper"):
            to_pil(getattr(one, name)).save(measurement / f"{name}.png")
        figures = {"interval_level": found.level, "interval_factor": found.factor}
        figures |= {"interval_width": one.width, "interval_coverage": one.coverage, "guarantee": found.guarantee}
        write_metrics(measurement, {**read_metrics(measurement), **figures})
        every.append(one)
    if folders != [folder]:
        write_report(folder, [read_metrics(measurement) for measurement in folders], read_failures(folder))
    known = [one.coverage for one in every if one.coverage is not None]
    width = sum(one.width for one in every) / len(every)
    return len(every), width, sum(known) / len(known) if known else None


def _settings(folder: Path) -> dict[str, Any]:
    """Settings of a run that a calibration holds for: files by their names, without ways of computing the same results."""
    settings = read_settings(folder)
    move_older(settings)
    for name in MAY_CHANGE:
        group, _, last = name.rpartition(".")
        chosen = OmegaConf.select(settings, group)
        if name not in INPUTS and isinstance(chosen, DictConfig):
            chosen.pop(last, None)
    for name in INPUTS:
        value = OmegaConf.select(settings, name, throw_on_resolution_failure=False)
        if isinstance(value, str) and Path(value).is_absolute():  # another one is a model to be fetched
            file, key = split_key(value)
            OmegaConf.update(settings, name, f"{file.name}:{key}" if key else file.name)
    whole = OmegaConf.to_container(settings, resolve=False)
    return {name: whole.get(name) for name in ALIKE}


def check_alike(calibration: Path, run: Path) -> None:
    """Check that a run has the calibration's settings.

    Raises:
        InputError: If one differs, with its name.
    """
    first, second = _settings(calibration), _settings(run)
    differing = [name for name in ALIKE if first[name] != second[name]]
    if differing:
        raise InputError(
            f"'{run}' must have the settings of the calibration '{calibration}', but {', '.join(differing)} differ{'s' if len(differing) == 1 else ''}; "
            "calibrate on a run with the same settings"
        )


@in_one_line
def main(arguments: list[str] | None = None) -> int:
    """Calibrate, write intervals and return the exit code, 1 for an unusable input."""
    options = Parser("conformal", __doc__)
    options.add_argument("calibration", type=Path, help="folder of a finished run with truths")
    options.add_argument("runs", type=Path, nargs="*", help="folders of runs that get intervals")
    options.add_argument("--level", type=float, default=0.9, help="expected coverage, above 0 and below 1")
    args = options.parse_args(arguments)
    for run in args.runs:
        check_alike(args.calibration, run)
    found = calibrate_intervals(args.calibration, args.level)
    print(f"factor {found.factor:.4g}, kept in {args.calibration / FILE}\n{found.guarantee}")
    if found.left_out is not None:
        print(f"mean coverage of an image by a calibration on the others: {found.left_out:.1%}")
    for run in args.runs:
        count, width, coverage = give_intervals(run, found)
        known = "" if coverage is None else f", mean coverage {coverage:.1%}"
        print(f"{run}: intervals of {count} images, mean width {width:.3g}{known}")
    return 0
