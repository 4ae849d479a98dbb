"""Finished measurements as they lie on disk; nothing here writes."""

import json
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rlsd_lightning.errors import InputError
from rlsd_lightning.images import load_image
from rlsd_lightning.results.writer import METRICS_FILE, PARTICLES_FILE

__all__ = ["SavedMeasurement", "finished", "load_run"]


class SavedMeasurement(NamedTuple):
    """What a run has left of one measurement.

    Attributes:
        name: Its folder's name.
        images: The particles, about in [-1, 1], with shape :math:`(N, C, H, W)`.
        metrics: What metrics.json holds.
        truth: The clean image, if it was known, with shape :math:`(1, C, H, W)`.
        observed: Which values the operator passes on as they are, with shape :math:`(C, H, W)`, if it is a mask.
        aligned: The particles in their forms nearest to the truth, where the operator can't tell forms apart.
        shared_variance: That of the error that all particles share, with shape :math:`(C, H, W)`, where it was estimated.
    """

    name: str
    images: Tensor
    metrics: dict
    truth: Tensor | None = None
    observed: Tensor | None = None
    aligned: Tensor | None = None
    shared_variance: Tensor | None = None


def finished(folder: Path) -> list[Path]:
    """The folders of a run's finished measurements, or the one whose own folder is given."""
    own = [folder] if (folder / METRICS_FILE).is_file() else []
    return own or sorted(path.parent for path in folder.glob(f"*/{METRICS_FILE}"))


def load_run(folder: Path) -> list[SavedMeasurement]:
    """The finished measurements of a run, or the one whose own folder is given.

    Args:
        folder: The run's folder; what is unfinished in it is left out.

    Raises:
        InputError: If there is none, or a file of one is missing or damaged.
    """
    folders = finished(folder)
    if not folders:
        what = "no finished measurement (*/metrics.json) is in it" if folder.is_dir() else "there is no such folder"
        raise InputError(f"the folder of a run is expected, but for '{folder}' {what}; give what output_dir was")
    return [_load(measurement) for measurement in folders]


def _load(folder: Path) -> SavedMeasurement:
    try:
        metrics = json.loads((folder / METRICS_FILE).read_text())
        tensors = load_file(folder / PARTICLES_FILE)
        images = tensors["x"].float()
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"'{folder}' is incomplete or damaged ({reason}); python train.py resume=<the run> makes it again"
        ) from error
    if images.ndim != 4:
        raise InputError(f"particles that are images are expected, but those in '{folder}' are of shape {images.shape}")
    truth = folder / "truth.png"
    if not truth.is_file() and metrics.get("psnr_mean") is not None:
        raise InputError(f"'{truth}' is missing, though the run knew it; put the clean image back")
    return SavedMeasurement(
        folder.resolve().name,
        images,
        metrics,
        load_image(truth, *images.shape[-2:]) if truth.is_file() else None,
        tensors["observed"].bool() if "observed" in tensors else None,
        tensors["aligned"].float() if "aligned" in tensors else None,
        tensors["shared_variance"].float() if "shared_variance" in tensors else None,
    )
