"""Files of a run: what is written, and how finished measurements are read back."""

import csv
import io
import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from rlsd_lightning.errors import InputError, first_line, printable
from rlsd_lightning.images import load_image, with_channels
from rlsd_lightning.measurement import SavedMeasurement
from rlsd_lightning.signatures import typed

__all__ = [
    "METRICS_FILE",
    "PARTICLES_FILE",
    "clear_failure",
    "finished",
    "in_short",
    "is_damaged",
    "last_particles",
    "load_run",
    "mean_figures",
    "mean_line",
    "read_failures",
    "read_metrics",
    "remove_result",
    "table",
    "write_atomically",
    "write_failure",
    "write_failures",
    "write_json",
    "write_metrics",
    "write_particles",
    "write_summary",
]

METRICS_FILE = "metrics.json"
PARTICLES_FILE = "particles.safetensors"
FAILED_FILE = "failed.csv"
"""Names of a run's failed measurements, and the reasons."""
PICTURES = (
    *("truth", "measurement", "pseudo_inverse", "mean", "std", "grid", "directions", "filmstrip", "lower", "upper"),
    *("particles/[0-9]*", "full_size/[0-9]*", "full_size/mean"),
)
"""Names of a measurement's pictures."""
REASONS = ".failed"
"""Folder of the reasons while a run goes on; its files have numbers, as a name may be what has failed."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file that is either complete or absent, whoever else writes it at the same time."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as file:
            file.write(printable(content).encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):  # the first error says what is wrong
            partial.unlink(missing_ok=True)
        raise


def write_particles(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write particles.safetensors on the CPU; tensors may share memory."""
    copies = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
    }
    write_atomically(folder / PARTICLES_FILE, save(copies))


def write_metrics(folder: Path, metrics: Mapping) -> None:
    """Write metrics.json, the mark of a finished measurement."""
    write_json(folder / METRICS_FILE, metrics)


def remove_result(folder: Path) -> None:
    """Remove an earlier result of a measurement, so that none mixes with it; other files stay."""
    if not any((folder / name).exists() for name in (METRICS_FILE, PARTICLES_FILE)):
        return
    (folder / METRICS_FILE).unlink(missing_ok=True)  # first, as it marks a finished one
    (folder / PARTICLES_FILE).unlink(missing_ok=True)
    for name in PICTURES:
        for file in folder.glob(f"{name}.png"):
            file.unlink()


def write_json(path: Path, values: Mapping) -> None:
    """Write values as strict JSON: NaN and infinity, which other readers refuse, become null."""
    strict = json.loads(json.dumps(dict(values)), parse_constant=lambda constant: None)
    write_atomically(path, json.dumps(strict, indent=2) + "\n")


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


@typed
def load_run(folder: str | Path) -> list[SavedMeasurement]:
    """Load the finished measurements of a run, or one measurement.

    Args:
        folder: The run's folder, or a measurement's. Unfinished measurements are left out.

    Raises:
        InputError: If nothing is finished, or a file is missing or damaged.
    """
    folder = Path(folder)
    folders = finished(folder)
    if not folders:
        what = "no finished measurement (*/metrics.json) is in it" if folder.is_dir() else "there is no such folder"
        raise InputError(f"the folder of a run is expected, but for '{folder}' {what}; give the run's output_dir")
    return [_load(measurement) for measurement in folders]


def _load(folder: Path) -> SavedMeasurement:
    try:
        metrics = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
        tensors = load_file(folder / PARTICLES_FILE)
        images = tensors["x"].float()
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(
            f"'{folder}' is incomplete or damaged ({first_line(error)}); resume=<the run> makes it again"
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
        with_channels(load_image(truth, *images.shape[-2:]), images.shape[1]) if truth.is_file() else None,
        tensors["observed"].bool() if "observed" in tensors else None,
        tensors["aligned"].float() if "aligned" in tensors else None,
        tensors["shared_variance"].float() if "shared_variance" in tensors else None,
    )


def in_short(figures: Mapping) -> str:
    """The most important figures in one line; empty if there are none."""
    names = ("psnr_mean", "psnr_best", "psnr_of_mean", "mode_total_variation", "vendi", "residual_sigmas")
    known = {name: figures.get(name) for name in names}
    return ", ".join(f"{name} {float(value):.4g}" for name, value in known.items() if value not in (None, ""))


def mean_line(summary: Path) -> str:
    """The most important figures, means over a run's measurements; empty if there are none."""
    if not summary.is_file():
        return ""
    with summary.open(encoding="utf-8") as file:
        return in_short(list(csv.DictReader(file))[-1])


def mean_figures(rows: Sequence[Mapping]) -> dict[str, float]:
    """Mean of each numeric figure over the rows that have it."""
    known: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                known.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in known.items()}


def write_summary(folder: Path, rows: Sequence[Mapping]) -> None:
    """Write summary.csv: one row per measurement, then the means; lists are left out. An old one goes if there are no rows."""
    if not rows:
        (folder / "summary.csv").unlink(missing_ok=True)
        return
    rows = [{key: value for key, value in row.items() if not isinstance(value, list)} for row in rows]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_atomically(folder / "summary.csv", table(columns, [*rows, {"name": "mean", **mean_figures(rows)}]))


def write_failure(folder: Path, index: int, name: str, reason: str) -> None:
    """Keep why a measurement of a run has failed."""
    (folder / REASONS).mkdir(exist_ok=True)
    write_atomically(folder / REASONS / f"{index}.json", json.dumps({"name": printable(name), "reason": reason}))


def clear_failure(folder: Path, index: int) -> None:
    """Forget that a measurement has failed, before it is tried again."""
    (folder / REASONS / f"{index}.json").unlink(missing_ok=True)


def write_failures(folder: Path, missing: Iterable[str]) -> list[dict[str, str]]:
    """Write failed.csv from what was kept during a run, or remove an old one; returns its rows.

    Args:
        folder: The run's folder.
        missing: Names of the measurements without a result; a resumed run may have other data than the one before.
    """
    kept = sorted((folder / REASONS).glob("*.json"), key=lambda path: int(path.stem))
    read, names = [json.loads(path.read_text(encoding="utf-8")) for path in kept], {printable(name) for name in missing}
    rows = [row for row in read if row["name"] in names]
    if rows:
        write_atomically(folder / FAILED_FILE, table(["name", "reason"], rows))
    else:
        (folder / FAILED_FILE).unlink(missing_ok=True)
    return rows


def read_failures(folder: Path) -> list[dict[str, str]]:
    """Names of a run's failed measurements and the reasons; empty if none has failed."""
    if not (folder / FAILED_FILE).is_file():
        return []
    with (folder / FAILED_FILE).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table(columns: Sequence[str], rows: Sequence[Mapping]) -> str:
    """Rows as the text of a CSV file."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
