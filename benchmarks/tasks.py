"""Tasks on held-out faces in several forms of the method, beside the operator's pseudo-inverse.

python benchmarks/tasks.py --limit 16 --jobs 2 --json docs/results.json

Runs train.py for each task and form in processes side by side, each on its share of the cores, and prints a table in
Markdown: PSNR in dB (mean over particles, best of them), SSIM, diversity and seconds per face of each form. Runs that are
finished are not run again, and figures go into the JSON file beside what it holds of other tasks and forms. `--gallery
FILE` makes one picture with the first face of every task in the last form.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, ImageDraw

PROJECT = Path(__file__).resolve().parents[1]
NOT_IMAGES = {"toy", "generate"}
TASKS = sorted(file.stem for file in (PROJECT / "configs" / "task").glob("*.yaml") if file.stem not in NOT_IMAGES)
FIGURES = (
    "psnr_pseudo_inverse",
    "psnr_mean",
    "psnr_best",
    "psnr_of_mean",
    "ssim_mean",
    "diversity",
    "residual_sigmas",
    "seconds",
)
FORMS = {
    "default": [],
    "no repulsion": ["method.gamma=0"],
    "independent": ["method=independent"],
    "not augmented": ["method=not_augmented"],
    "distilled": ["method=distilled"],
    "SDS": ["method=sds"],
    "DWGF": ["method=dwgf"],
    "DPS": ["method=dps"],
    "PSLD": ["method=psld"],
    "DAPS": ["method=daps", "num_steps=20"],  # each calls the denoiser five times
    "published": ["method=rlsd_paper"],
    "fast": ["num_steps=50"],
    "paper steps": ["num_steps=999"],
}
"""What a form sets."""


def run(task: str, form: str, args: argparse.Namespace) -> dict[str, float | None]:
    """The mean figures of one run, which is made if it is not there."""
    name = f"{task}_{form.replace(' ', '_')}"
    folder = args.out / name
    if not (folder / "summary.csv").is_file():
        command = [sys.executable, str(PROJECT / "train.py"), f"task={task}", f"data.limit={args.limit}"]
        command += [f"output_dir={folder}", f"data.images={args.faces.resolve()}"]
        command += [f"measurements_per_batch={args.batch}", *args.overrides, *FORMS[form]]
        threads = str(max(1, (os.cpu_count() or 1) // args.jobs))
        with (args.out / f"{name}.log").open("w") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": threads}
            done = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}; see {args.out / name}.log")
    row = list(csv.DictReader((folder / "summary.csv").open()))[-1]
    return {key: float(row[key]) if row.get(key) else None for key in FIGURES}


def table(results: dict[str, dict[str, dict]]) -> str:
    """The figures in Markdown, a row per task."""
    shown = [form for form in FORMS if any(form in forms for forms in results.values())]
    lines = [f"| task | pseudo-inverse | {' | '.join(shown)} |", "|---" * (2 + len(shown)) + "|"]
    for task, forms in sorted(results.items()):
        pinv = next(iter(forms.values()))["psnr_pseudo_inverse"]
        cells = [
            "" if pinv is None else f"{pinv:.1f}",
            *(_cell(forms[form]) if form in forms else "" for form in shown),
        ]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(figures: dict[str, float]) -> str:
    quality = f"{figures['psnr_mean']:.1f}, {figures['psnr_best']:.1f}, {figures['ssim_mean']:.2f}"
    return f"{quality}, {figures['diversity']:.3f}, {figures['seconds']:.0f} s"


def gallery(folders: dict[str, Path], path: Path) -> None:
    """Stacks the grids of the first face of every run, each with its task's name."""
    grids = {task: Image.open(min(folder.glob("*/grid.png"))) for task, folder in folders.items()}
    width, height = max(g.width for g in grids.values()) + 150, sum(g.height for g in grids.values())
    canvas, top = Image.new("RGB", (width, height), "white"), 0
    draw = ImageDraw.Draw(canvas)
    for task, grid in grids.items():
        draw.text((5, top + grid.height // 2), task, fill="black")
        canvas.paste(grid, (150, top))
        top += grid.height
    canvas.save(path)


def main() -> None:
    """Runs what is missing and prints the table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("overrides", nargs="*", help="further arguments of train.py")
    options.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS, metavar="TASK")
    options.add_argument("--forms", nargs="+", default=["SDS", "independent", "default"], choices=FORMS, metavar="FORM")
    options.add_argument("--faces", type=Path, default=PROJECT / "data" / "faces" / "heldout", help="clean images")
    options.add_argument("--limit", type=int, default=16, help="how many of them")
    options.add_argument("--batch", type=int, default=8, help="how many of them are solved side by side")
    options.add_argument("--jobs", type=int, default=2, help="processes side by side")
    options.add_argument("--out", type=Path, default=Path("outputs/tasks"), help="folder of the runs")
    options.add_argument("--json", type=Path, help="also write the figures to this file")
    options.add_argument("--gallery", type=Path, help="also draw the first face of every task")
    args = options.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        started = {(t, f): pool.submit(run, t, f, args) for t in args.tasks for f in args.forms}
        results = json.loads(args.json.read_text()) if args.json and args.json.is_file() else {}
        for (task, form), figures in started.items():
            results.setdefault(task, {})[form] = figures.result()
    print(table(results))
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")
    if args.gallery:
        form = args.forms[-1].replace(" ", "_")
        gallery({task: args.out / f"{task}_{form}" for task in args.tasks}, args.gallery)


if __name__ == "__main__":
    main()
