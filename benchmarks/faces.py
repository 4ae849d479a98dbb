"""The face tables and pictures of docs/results.md."""

import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from pictures import table_of_images
from runs import PROJECT, Run, kept_figures, run_folder
from tables import NAMES

from rlsd_lightning.evaluation.checks.intervals import left_out_coverage
from rlsd_lightning.results.store import load_run

__all__ = ["EVERY", "PICTURES", "WEIGHTS", "draw", "make"]

WEIGHTS = (PROJECT / "data" / "priors" / "faces",)
TASKS_PICTURE, FACES_PICTURE = PROJECT / "docs" / "tasks.png", PROJECT / "docs" / "half_face.png"
PICTURES = (TASKS_PICTURE, FACES_PICTURE)
COVERAGE = ("total_coverage_50", "total_coverage_90", "total_spread_to_error")
"""Figures of ``evaluate`` for the default's runs."""
TASKS = (
    "inpaint",
    "super_resolution",
    "inpaint_random",
    "colorize",
    "motion_deblur",
    "hdr",
    "phase_retrieval",
)
EVERY = (*TASKS, "toy")
COMPARED = TASKS[:2]
COLUMNS = {
    "ground truth": "truth.png",
    "measurement": "measurement.png",
    **{f"particle {n + 1}": f"particles/{n:02}.png" for n in range(4)},
    "mean": "mean.png",
    "uncertainty": "std.png",
}
"""Files of the pictures by title."""
SIDE = 128
"""Side in pixels at which the pictures show a face."""
METHODS = {
    "independent": ["method=independent"],
    "dps": ["method=dps", "num_steps=100"],
    "daps": ["method=daps", "num_steps=20"],  # five network evaluations a step
    "rlsd_paper": ["method=rlsd_paper", "num_steps=100"],
}
GAMMAS = {f"gamma {gamma}": [f"method.gamma={gamma}"] for gamma in (0, 1, 2)}
POINTS = {
    "distilled": ["num_particles=500"],  # what the task chooses
    "distilled, gamma 0": ["num_particles=500", "method.gamma=0"],
    "twisted": ["num_particles=500", "method=twisted", "method.decoder_std=0", "method.image_std=1"],
}


def default(task: str, options: tuple[str, ...] = ()) -> Run:
    """The default's run on a task."""
    return Run("tasks", task, "default", options)


def all_runs(faces: int) -> list[Run]:
    """The runs of all tables, the most important first; comparisons take a quarter of the faces."""
    limit = f"data.limit={faces}"
    runs = [default(task, (limit,)) for task in TASKS]
    runs += [Run("points", "toy", form, tuple(options)) for form, options in POINTS.items()]
    limit = f"data.limit={max(2, faces // 4)}"
    runs += [Run("repulsion", "inpaint", form, (limit, *options)) for form, options in GAMMAS.items()]
    for task in COMPARED:
        runs += [Run("methods", task, form, (limit, *options)) for form, options in METHODS.items()]
    return runs


def coverage(out: Path, tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    """Coverage of the default's uncertainty by task, from ``train.py evaluate``."""
    folders = {task: run_folder(default(task), out) for task in tasks}
    file = out / "coverage.json"
    command = [sys.executable, str(PROJECT / "train.py"), "evaluate", *map(str, folders.values()), "--json", str(file)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    runs = json.loads(file.read_text())["runs"]
    return {task: {key: runs[folder.name]["figures"][key] for key in COVERAGE} for task, folder in folders.items()}


def make(args: Namespace) -> dict[str, dict]:
    """Figures of all runs, or of those of ``args.only``'s tasks, which are made if they are not there."""
    chosen = args.only or EVERY
    found = kept_figures([run for run in all_runs(args.faces) if run.task in chosen], args)
    tasks = [task for task in TASKS if task in chosen]
    intervals = {task: left_out_coverage(load_run(run_folder(default(task), args.out))) for task in tasks}
    return {"faces": args.faces, "runs": found, "coverage": coverage(args.out, tasks), "intervals": intervals}


def draw(args: Namespace) -> None:
    """The first face in each task, and the first six in one."""
    folders = {task: run_folder(default(task), args.out) for task in TASKS}
    rows = [(NAMES[task], min(folder.glob("*/truth.png")).parent) for task, folder in folders.items()]
    table_of_images(rows, COLUMNS, SIDE).save(TASKS_PICTURE, optimize=True)
    faces = sorted(file.parent for file in folders["inpaint"].glob("*/truth.png"))[:6]
    table_of_images([("", face) for face in faces], COLUMNS, SIDE).save(FACES_PICTURE, optimize=True)
