"""All figures and pictures of docs/results.md, from the present code and weights.

python benchmarks/results.py                    # everything that is missing, then the page
python benchmarks/results.py --tables           # only write the page again, from docs/results.json

Each run is a command of train.py in its own folder below --out. A finished run is not made again, so the command resumes
after an interruption. docs/results.json keeps the figures of each image, docs/results.md gets the tables between its
markers, docs/tasks.png the first face in each task, and docs/half_face.png the first six in one.
"""

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from PIL import Image, ImageDraw
from tables import write_tables

PROJECT = Path(__file__).resolve().parents[1]
PAGE, FIGURES = PROJECT / "docs" / "results.md", PROJECT / "docs" / "results.json"
TASKS_PICTURE, FACES_PICTURE = PROJECT / "docs" / "tasks.png", PROJECT / "docs" / "half_face.png"
KEPT = (
    "psnr_pseudo_inverse",
    "psnr_mean",
    "psnr_best",
    "psnr_of_mean",
    "ssim_mean",
    "diversity",
    "residual_sigmas",
    "mode_total_variation",
    "seconds",
)
"""Columns of summary.csv that docs/results.json keeps."""
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
COMPARED = TASKS[:2]
METHODS = {
    "independent": ["method=independent"],
    "dps": ["method=dps"],
    "daps": ["method=daps", "num_steps=20"],  # five network evaluations a step
    "rlsd_paper": ["method=rlsd_paper"],
}
STEPS = {f"{steps} steps": [f"num_steps={steps}"] for steps in (25, 50)}
GAMMAS = {f"gamma {gamma}": [f"method.gamma={gamma}"] for gamma in (0, 1, 2)}
POINTS = {
    "distilled": ["num_particles=500"],  # what the task chooses
    "distilled, gamma 0": ["num_particles=500", "method.gamma=0"],
    "twisted": ["num_particles=500", "method=twisted", "method.decoder_std=0", "method.image_std=1"],
}
PHOTOS = ["prior=photos", "prior.image_size=128", f"data.images={PROJECT / 'data' / 'photos'}"]


@dataclass(frozen=True)
class Run:
    """One command: a table of the page, a task, what is compared, and the options that this sets."""

    table: str
    task: str
    form: str
    options: tuple[str, ...]

    @property
    def key(self) -> str:
        """Key in docs/results.json; the default's runs on faces belong to several tables."""
        return f"{self.table}/{self.task}/{self.form}"

    @property
    def folder(self) -> str:
        return self.key.replace("/", "-").replace(", ", "_").replace(" ", "_")


def all_runs(faces: int) -> list[Run]:
    """The runs of all tables, the cheapest and most important first; comparisons take half of the faces."""
    limit = f"data.limit={faces}"
    runs = [Run("tasks", task, "default", (limit,)) for task in TASKS]
    runs += [Run("points", "toy", form, tuple(options)) for form, options in POINTS.items()]
    limit = f"data.limit={faces // 2}"
    runs += [Run("repulsion", "inpaint", form, (limit, *options)) for form, options in GAMMAS.items()]
    for task in COMPARED:
        runs += [Run("methods", task, form, (limit, *options)) for form, options in METHODS.items()]
        runs += [Run("steps", task, form, (limit, *options)) for form, options in STEPS.items()]
    runs += [Run("photos", "super_resolution", "default", ("data.limit=null", *PHOTOS))]
    return runs


def rows_of(run: Run, args: argparse.Namespace) -> list[dict]:
    """Figures of each image of a run, which is made if it is not there."""
    folder = args.out / run.folder
    if not (folder / "summary.csv").is_file():
        command = [sys.executable, str(PROJECT / "train.py"), f"task={run.task}", f"output_dir={folder}", *run.options]
        if (folder / ".hydra").is_dir():
            command = [sys.executable, str(PROJECT / "train.py"), f"resume={folder}"]
        threads = str(max(1, (os.cpu_count() or 1) // args.jobs))
        with (args.out / f"{run.folder}.log").open("w") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": threads}
            done = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}; see {args.out / run.folder}.log")
    rows = list(csv.DictReader((folder / "summary.csv").open()))[:-1]  # the last is the mean
    return [{"name": row["name"], **{key: float(row[key]) for key in KEPT if row.get(key)}} for row in rows]


def coverage(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Coverage of the default's uncertainty by task, from ``train.py evaluate``."""
    folders = {task: args.out / Run("tasks", task, "default", ()).folder for task in TASKS}
    file = args.out / "coverage.json"
    command = [sys.executable, str(PROJECT / "train.py"), "evaluate", *map(str, folders.values()), "--json", str(file)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    runs = json.loads(file.read_text())["runs"]
    return {task: {key: runs[folder.name]["figures"][key] for key in COVERAGE} for task, folder in folders.items()}


def checksum(folder: Path) -> str:
    """First digits of the SHA-256 of a folder's weights."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def stack(grids: list[tuple[str, Path]], path: Path, margin: int = 0) -> None:
    """Puts grids above each other, each with its label in the left margin."""
    opened = [(label, Image.open(grid)) for label, grid in grids]
    width, height = max(grid.width for _, grid in opened) + margin, sum(grid.height for _, grid in opened)
    canvas, top = Image.new("RGB", (width, height), "white"), 0
    draw = ImageDraw.Draw(canvas)
    for label, grid in opened:
        draw.text((5, top + grid.height // 2), label, fill="black")
        canvas.paste(grid, (margin, top))
        top += grid.height
    canvas.save(path, optimize=True)


def draw(args: argparse.Namespace) -> None:
    """The first face in each task, and the first six in one."""
    folders = {task: args.out / Run("tasks", task, "default", ()).folder for task in TASKS}
    stack([(task, min(folder.glob("*/grid.png"))) for task, folder in folders.items()], TASKS_PICTURE, margin=150)
    stack([("", grid) for grid in sorted(folders["inpaint"].glob("*/grid.png"))[:6]], FACES_PICTURE)


def main() -> None:
    """Makes what is missing and writes the page."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--faces", type=int, default=16, help="number of held-out faces of the default's runs")
    options.add_argument("--jobs", type=int, default=2, help="runs side by side, each with its share of the cores")
    options.add_argument("--out", type=Path, default=Path("outputs/results"), help="folder of the runs")
    options.add_argument("--tables", action="store_true", help="only write the page, from docs/results.json")
    args = options.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.tables:
        runs = all_runs(args.faces)
        with ThreadPoolExecutor(args.jobs) as pool:
            figures = dict(zip((run.key for run in runs), pool.map(lambda run: rows_of(run, args), runs), strict=True))
        made = {
            "command": f"python benchmarks/results.py --faces {args.faces}",
            "version": version("rlsd-lightning"),
            "weights": {name: checksum(PROJECT / "data" / "priors" / name) for name in ("faces", "photos")},
            "runs": figures,
            "coverage": coverage(args),
        }
        FIGURES.write_text(json.dumps(made, indent=1) + "\n")
        draw(args)
    write_tables(PAGE, json.loads(FIGURES.read_text()))


if __name__ == "__main__":
    main()
