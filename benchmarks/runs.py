"""Runs of the command whose figures docs/results.md shows, each in its own folder, made once."""

import ast
import csv
import hashlib
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml

__all__ = [
    "PROJECT",
    "Run",
    "checksum",
    "code_digest",
    "hold_one_version",
    "kept_figures",
    "rows_of",
    "run_folder",
    "threads",
]

PROJECT = Path(__file__).resolve().parents[1]
DIGITS = 12
"""Digits of a checksum that are kept."""
KEPT = (
    "psnr_pseudo_inverse",
    "psnr_mean",
    "psnr_best",
    "psnr_of_mean",
    "ssim_mean",
    "vendi",
    "crps",
    "residual_sigmas",
    "mode_total_variation",
    "seconds",
)
"""Columns of summary.csv that docs/results.json keeps."""


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


def run_folder(run: Run, out: Path) -> Path:
    """Folder of a run below ``out``."""
    return out / run.key.replace("/", "-").replace(", ", "_").replace(" ", "_")


def threads(jobs: int) -> int:
    """Threads of each of ``jobs`` runs side by side."""
    return max(1, (os.cpu_count() or 1) // jobs)


def rows_of(run: Run, args: Namespace) -> list[dict[str, str]]:
    """Rows of summary.csv, one an image, of a run, which is made or resumed if it is not finished.

    Raises:
        SystemExit: If the command fails.
    """
    folder = run_folder(run, args.out)
    if not (folder / "summary.csv").is_file():
        command = [sys.executable, str(PROJECT / "train.py"), f"task={run.task}", f"output_dir={folder}", *run.options]
        if (folder / ".hydra").is_dir():
            command = [sys.executable, str(PROJECT / "train.py"), f"resume={folder}"]
        file = folder.with_name(f"{folder.name}.log")
        with file.open("w") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads(args.jobs))}
            done = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}; see {file}")
    return list(csv.DictReader((folder / "summary.csv").open()))[:-1]  # the last is the mean


def kept_figures(runs: Sequence[Run], args: Namespace) -> dict[str, list[dict]]:
    """Figures of each image of all runs by the runs' keys; ``args.jobs`` runs are made side by side."""

    def figures(run: Run) -> list[dict]:
        rows = rows_of(run, args)
        return [{"name": row["name"], **{key: float(row[key]) for key in KEPT if row.get(key)}} for row in rows]

    with ThreadPoolExecutor(args.jobs) as pool:
        return dict(zip((run.key for run in runs), pool.map(figures, runs), strict=True))


def checksum(*paths: Path) -> str:
    """First digits of the SHA-256 of files, and of the weights in folders."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:DIGITS]


def code_digest(project: Path = PROJECT) -> str:
    """First digits of the SHA-256 of the package's code and settings; comments and docstrings don't count."""
    digest = hashlib.sha256()
    for file in sorted((project / "rlsd_lightning").rglob("*.py")):
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                node.body = [part for part in node.body if not _is_text(part)]
        digest.update(f"{file.relative_to(project)}\n{ast.dump(tree)}\n".encode())
    for file in sorted((project / "configs").rglob("*.yaml")):
        digest.update(f"{file.relative_to(project)}\n{yaml.safe_load(file.read_text())}\n".encode())
    return digest.hexdigest()[:DIGITS]


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def hold_one_version(out: Path, made_by: dict[str, object]) -> None:
    """Keeps what the runs of a folder have in common, so that no table mixes versions.

    Raises:
        SystemExit: If the folder has runs of another code, other weights, or other settings.
    """
    file = out / "made_by.txt"
    now = "".join(f"{key}: {value}\n" for key, value in made_by.items())
    if file.is_file() and file.read_text() != now:
        raise SystemExit(
            f"'{out}' has runs of\n{file.read_text()}but now there is\n{now}Remove the folder, or choose another with --out."
        )
    file.write_text(now)
