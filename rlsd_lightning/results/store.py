"""Files of a run: what is written, and how finished measurements are read back."""

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from rlsd_lightning.errors import InputError, first_line
from rlsd_lightning.images import load_image
from rlsd_lightning.measurement import SavedMeasurement

__all__ = [
    "METRICS_FILE",
    "PARTICLES_FILE",
    "finished",
    "is_damaged",
    "last_particles",
    "load_run",
    "mean_figures",
    "read_metrics",
    "write_atomically",
    "write_metrics",
    "write_particles",
    "write_summary",
]

METRICS_FILE = "metrics.json"
PARTICLES_FILE = "particles.safetensors"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file that is either complete or absent."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_particles(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write particles.safetensors on the CPU; tensors may share memory."""
    copies = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
    }
    write_atomically(folder / PARTICLES_FILE, save(copies))


def write_metrics(folder: Path, metrics: Mapping) -> None:
    """Write metrics.json, the mark of a finished measurement; NaN and infinity become null."""
    clean = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in metrics.items()
    }
    write_atomically(folder / METRICS_FILE, json.dumps(clean, indent=2) + "\n")


def read_metrics(folder: Path) -> dict | None:
    """Metrics of a finished measurement; None if it is unfinished or its particles are damaged."""
    try:
        metrics = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
        with safe_open(folder / PARTICLES_FILE, "pt"):  # compares the file's length with its header
            return metrics
    except (FileNotFoundError, ValueError, SafetensorError):
        return None


def is_damaged(folder: Path) -> bool:
    """Whether a finished measurement can no longer be read."""
    return (folder / METRICS_FILE).is_file() and read_metrics(folder) is None


def last_particles(folder: Path) -> tuple[Tensor, Tensor] | None:
    """Latents and images of a finished measurement, with shape :math:`(N, ...)`; None if it is unfinished."""
    if not ((folder / PARTICLES_FILE).is_file() and (folder / METRICS_FILE).is_file()):
        return None
    saved = load_file(folder / PARTICLES_FILE)
    return saved["z"], saved["x"]


def finished(folder: Path) -> list[Path]:
    """Folders of a run's finished measurements, or the folder itself if it holds one."""
    own = [folder] if (folder / METRICS_FILE).is_file() else []
    return own or sorted(path.parent for path in folder.glob(f"*/{METRICS_FILE}"))


def load_run(folder: Path) -> list[SavedMeasurement]:
    """Load the finished measurements of a run, or one measurement.

    Args:
        folder: The run's folder, or a measurement's. Unfinished measurements are left out.

    Raises:
        InputError: If nothing is finished, or a file is missing or damaged.
    """
    folders = finished(folder)
    if not folders:
        what = "no finished measurement (*/metrics.json) is in it" if folder.is_dir() else "there is no such folder"
        raise InputError(f"the folder of a run is expected, but for '{folder}' {what}; give what output_dir was")
    return [_load(measurement) for measurement in folders]


def _load(folder: Path) -> SavedMeasurement:
    try:
        metrics = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
        tensors = load_file(folder / PARTICLES_FILE)
        images = tensors["x"].float()
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(
            f"'{folder}' is incomplete or damaged ({first_line(error)}); python train.py resume=<the run> makes it again"
        ) from error
    if images.ndim != 4:
        raise InputError(f"particles of shape (N, C, H, W) are expected in '{folder}', got {tuple(images.shape)}")
    truth = folder / "truth.png"
    if not truth.is_file() and metrics.get("psnr_mean") is not None:
        raise InputError(f"'{truth}' is missing, though the run had a truth; put the clean image back")
    return SavedMeasurement(
        folder.resolve().name,
        images,
        metrics,
        load_image(truth, *images.shape[-2:]) if truth.is_file() else None,
        tensors["observed"].bool() if "observed" in tensors else None,
        tensors["aligned"].float() if "aligned" in tensors else None,
        tensors["shared_variance"].float() if "shared_variance" in tensors else None,
    )


def mean_figures(rows: Sequence[Mapping]) -> dict[str, float]:
    """Mean of each numeric figure over the rows that have it."""
    known: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                known.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in known.items()}


def write_summary(folder: Path, rows: Sequence[Mapping]) -> None:
    """Write summary.csv: one row a measurement, then the means; lists are left out."""
    if not rows:
        return
    rows = [{key: value for key, value in row.items() if not isinstance(value, list)} for row in rows]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows([*rows, {"name": "mean", **mean_figures(rows)}])
    write_atomically(folder / "summary.csv", text.getvalue())
