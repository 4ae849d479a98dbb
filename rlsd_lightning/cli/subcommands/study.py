"""Gathers the runs of a study into one table and its plots.

rlsd study outputs/study/gamma_lambda

`rlsd experiment=study/gamma_lambda` does it at its end. A study's folder holds a run's folder for every
combination; runs without a result are left out, and the table has each run's number of measurements.
"""

import csv
import itertools
import logging
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from rlsd_lightning.cli.command import failed
from rlsd_lightning.cli.settings import read_yaml
from rlsd_lightning.cli.subcommands.parser import Parser, in_one_line
from rlsd_lightning.errors import InputError

__all__ = ["Study", "gather", "pareto_front"]

log = logging.getLogger("train")

FIGURES = ("psnr_mean", "psnr_best", "psnr_of_mean", "ssim_mean", "vendi", "residual_sigmas", "seconds")
SHOWN = ("psnr_mean", "psnr_best", "vendi")


def gather(folder: Path) -> list[dict[str, Any]]:
    """Write ``study.csv`` and ``study.png`` into a study's folder.

    Args:
        folder: The study's folder, whose ``multirun.yaml`` names the settings that were varied.

    Returns:
        The rows: the settings that were varied, the number of measurements, and the means over them of each run.

    Raises:
        InputError: If there is no study or no result in the folder.
    """
    plan = folder / "multirun.yaml"
    if not plan.is_file():
        raise InputError(f"a study's folder is expected, but '{folder}' has no multirun.yaml")
    varied = read_yaml(plan)
    axes = list(OmegaConf.select(varied, "hydra.sweeper.params") or ()) if isinstance(varied, DictConfig) else []
    rows = [row for summary in sorted(folder.glob("*/summary.csv")) if (row := _row(summary, axes))]
    if not axes or not rows:
        raise InputError(f"'{folder}' has no result of a study")
    # numbers by size, then words alphabetically
    order = {axis: {row[axis] for row in rows} for axis in axes}
    values = {axis: sorted(found, key=lambda value: (isinstance(value, str), value)) for axis, found in order.items()}
    rows.sort(key=lambda row: [values[axis].index(row[axis]) for axis in axes])
    with (folder / "study.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=[*axes, "measurements", *FIGURES])
        writer.writeheader()
        writer.writerows(rows)
    _plot(rows, values).savefig(folder / "study.png", dpi=110)
    return rows


def _row(summary: Path, axes: Sequence[str]) -> dict[str, Any]:
    """A run's varied settings and mean metrics; empty if it is no run of the study or has no result."""
    overrides = summary.parent / ".hydra" / "overrides.yaml"
    chosen = dict(line.partition("=")[::2] for line in (read_yaml(overrides) if overrides.is_file() else ()))
    with summary.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if len(rows) < 2 or not chosen.keys() >= set(axes):
        return {}
    *measurements, mean = rows
    figures = {name: float(mean[name]) if mean.get(name) else None for name in FIGURES}
    return {axis: _value(chosen[axis]) for axis in axes} | {"measurements": len(measurements)} | figures


def _value(word: str) -> float | str:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(word)
    return word


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the Pareto-optimal points (both coordinates maximised), from left to right."""
    front, best = [], float("-inf")
    for index in sorted(range(len(points)), key=lambda index: points[index], reverse=True):
        if points[index][1] > best:
            front.append(index)
            best = points[index][1]
    return front[::-1]


def _plot(rows: list[dict[str, Any]], values: dict[str, list]) -> Figure:
    """One panel for each figure (a line over one axis, a heat map over more), and the Pareto front."""
    figure = Figure(figsize=(4.2 * (len(SHOWN) + 1), 3.6), layout="constrained")
    *panels, last = figure.subplots(1, len(SHOWN) + 1)
    for panel, name in zip(panels, SHOWN, strict=True):
        panel.set_title(name)
        if len(values) == 1:
            _line(panel, rows, next(iter(values)), name)
        else:
            _heat_map(figure, panel, rows, values, name)
    tasks = values.get("task", [None])
    for task in tasks:  # diversities of different tasks do not compare
        _front(
            last, [row for row in rows if row.get("task") == task], [axis for axis in values if axis != "task"], task
        )
    last.set(title="Pareto front", xlabel="vendi", ylabel="psnr_best")
    if len(tasks) > 1:
        last.legend(fontsize=7)
    return figure


def _front(panel, rows: list[dict[str, Any]], axes: list[str], label: str | None) -> None:
    known = [row for row in rows if None not in (row["vendi"], row["psnr_best"])]
    points = [(row["vendi"], row["psnr_best"]) for row in known]
    if not points:
        return
    drawn = panel.scatter(*zip(*points, strict=True), label=label)
    front = pareto_front(points)
    panel.plot(*zip(*(points[i] for i in front), strict=True), linewidth=1, color=drawn.get_facecolor()[0])
    for i in front:
        panel.annotate(", ".join(str(known[i][axis]) for axis in axes), points[i], fontsize=7)


def _line(panel, rows: list[dict[str, Any]], axis: str, name: str) -> None:
    known = [(row[axis], row[name]) for row in rows if row[name] is not None]
    panel.plot(*zip(*known, strict=True), marker="o")
    panel.set_xlabel(axis)
    if all(isinstance(value, int | float) and value > 0 for value, _ in known):
        panel.set_xscale("log")


def _heat_map(figure: Figure, panel, rows: list[dict[str, Any]], values: dict[str, list], name: str) -> None:
    """Heat map over the first axis (rows) and all combinations of the others (columns)."""
    first, *others = values
    columns = list(itertools.product(*(values[axis] for axis in others)))
    found = {(row[first], tuple(row[axis] for axis in others)): row[name] for row in rows}
    cells = [[found.get((value, column)) for column in columns] for value in values[first]]
    filled = [[float("nan") if cell is None else cell for cell in line] for line in cells]
    figure.colorbar(panel.imshow(filled, aspect="auto"), ax=panel)
    panel.set(xlabel=", ".join(others), ylabel=first)
    panel.set_xticks(range(len(columns)), [", ".join(map(str, column)) for column in columns], rotation=45, ha="right")
    panel.set_yticks(range(len(values[first])), list(map(str, values[first])))


class Study(Callback):
    """Gathers a study when its last run has ended."""

    def on_multirun_end(self, config: DictConfig, **kwargs: object) -> None:
        code = main([config.hydra.sweep.dir])
        if code and not failed:  # the command itself ends with an error that names failed runs
            sys.exit(code)


@in_one_line
def main(arguments: list[str] | None = None) -> int:
    """Gather a study, print its files and return the exit code."""
    options = Parser("study", __doc__)
    options.add_argument("folder", type=Path, help="a study's folder, such as outputs/study/gamma_lambda")
    folder = options.parse_args(arguments).folder
    print(f"{len(gather(folder))} runs: {folder / 'study.csv'}, {folder / 'study.png'}")
    return 0
