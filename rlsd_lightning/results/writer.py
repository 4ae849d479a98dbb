"""What a finished measurement leaves on disk, and how a run is summed up."""

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from deepinv.physics import LinearPhysics, Physics
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from rlsd_lightning.functional.metrics import diversity, psnr, residual_rms
from rlsd_lightning.images import to_pil
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.operators.compose import NullOperator
from rlsd_lightning.operators.likelihood import data_fit, observed_pixels
from rlsd_lightning.results.grid import write_grid

__all__ = [
    "METRICS_FILE",
    "PARTICLES_FILE",
    "aligned",
    "is_damaged",
    "means_where_known",
    "pseudo_inverse",
    "read_metrics",
    "score",
    "write_atomically",
    "write_images",
    "write_metrics",
    "write_summary",
]

METRICS_FILE = "metrics.json"
PARTICLES_FILE = "particles.safetensors"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file that is either complete or not there."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


@torch.no_grad()
def pseudo_inverse(physics: Physics, y: Tensor) -> Tensor | None:
    r"""The image :math:`A^+ y` that a linear operator alone would give, without any prior; None for other operators."""
    if not isinstance(physics, LinearPhysics) or isinstance(physics, NullOperator):
        return None
    return physics.A_dagger(y)


def aligned(images: Tensor, reference: Tensor, physics: Physics) -> Tensor:
    """Each particle in the form that is nearest to a reference, where the operator can't tell its forms apart.

    Args:
        images: The particles, with shape :math:`(N, C, H, W)`.
        reference: With shape :math:`(1, C, H, W)`.
        physics: The operator; if it has ``equivalents``, that is called with the particles and returns their forms,
            with shape :math:`(K, N, C, H, W)`.
    """
    if not hasattr(physics, "equivalents"):
        return images
    forms = physics.equivalents(images)
    nearest = (forms - reference).square().flatten(2).mean(dim=2).argmin(dim=0)
    return forms[nearest, torch.arange(len(images), device=images.device)]


@torch.no_grad()
def score(
    images: Tensor, y: Tensor, physics: Physics, truth: Tensor | None, features: Tensor, lpips: nn.Module | None
) -> dict[str, float | None]:
    """Figures of one measurement's particles.

    Args:
        images: The particles in [-1, 1], with shape :math:`(N, C, H, W)`.
        y: The measurement, with shape :math:`(1, ...)`.
        physics: The operator.
        truth: The clean image, if known, with shape :math:`(1, C, H, W)`.
        features: The particles' features, with shape :math:`(N, D)`.
        lpips: The metric, if its weights are at hand.

    Returns:
        ``psnr_mean``, ``psnr_best`` and ``psnr_of_mean`` in decibels, ``ssim_mean``, ``lpips_mean``, ``diversity``
        (one minus the mean cosine of features), ``residual`` (root mean square, in units of the measurement),
        ``residual_sigmas`` and ``within_3_sigmas`` (see :func:`~rlsd_lightning.operators.likelihood.data_fit`), and for
        a linear operator ``psnr_pseudo_inverse``. What needs the truth, a noise level, or weights that are missing, is
        None. Where the operator can't tell forms of an image apart, each particle counts in the form nearest to the
        truth.
    """
    names = ("psnr_mean", "psnr_best", "psnr_of_mean", "psnr_pseudo_inverse", "ssim_mean", "lpips_mean")
    scores: dict[str, float | None] = dict.fromkeys(names)
    scores["residual"] = residual_rms(physics.A(images), y).item()
    scores |= data_fit(physics, images, y)
    if truth is not None:
        images = aligned(images, truth, physics)
        without_prior = pseudo_inverse(physics, y)
        if without_prior is not None:
            scores["psnr_pseudo_inverse"] = psnr(without_prior, truth).item()
        each = psnr(images, truth)
        scores["psnr_mean"], scores["psnr_best"] = each.mean().item(), each.max().item()
        scores["psnr_of_mean"] = psnr(images.mean(dim=0, keepdim=True), truth).item()
        if min(images.shape[-2:]) >= 11:  # the size of the metric's window
            ssim = structural_similarity_index_measure(
                images.clamp(-1, 1), truth.expand_as(images).contiguous(), data_range=(-1.0, 1.0)
            )
            scores["ssim_mean"] = ssim.item()
        if lpips is not None:
            lpips = lpips.to(images.device)
            scores["lpips_mean"] = lpips(images.clamp(-1, 1), truth.expand_as(images).contiguous()).item()
    scores["diversity"] = diversity(features).item()
    return scores


def write_metrics(folder: Path, metrics: Mapping) -> None:
    """Writes metrics.json, the mark of a finished measurement; numbers that JSON has not become null."""
    clean = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in metrics.items()
    }
    write_atomically(folder / METRICS_FILE, json.dumps(clean, indent=2) + "\n")


def read_metrics(folder: Path) -> dict | None:
    """The metrics of a finished measurement, or None if it is not finished or its particles are damaged."""
    try:
        metrics = json.loads((folder / METRICS_FILE).read_text())
        with safe_open(folder / PARTICLES_FILE, "pt"):  # holds the file's length against its header
            return metrics
    except (FileNotFoundError, ValueError, SafetensorError):
        return None


def is_damaged(folder: Path) -> bool:
    """Whether a measurement was finished once, and its results can't be read any more."""
    return (folder / METRICS_FILE).is_file() and read_metrics(folder) is None


def _is_picture(y: Tensor, physics: Physics) -> bool:
    return y.ndim == 4 and y.shape[1] in (1, 3) and getattr(physics, "measures_images", True)


def write_images(
    folder: Path, images: Tensor, z: Tensor, measurement: Measurement, shared: Tensor | None = None
) -> None:
    """Writes the particles as pictures and tensors, their mean, the uncertainty, and a labelled grid.

    The uncertainty ``std`` is the root of the particles' variance and the decoder's together, a mean over the colours. Beside
    the particles' tensors lie ``shared_variance``, the decoder's part, ``observed``, which values of the image a mask passes on, and
    ``aligned``, the particles in their forms nearest to the truth where the operator can't tell forms apart and the truth is
    known.

    Where the operator can't tell forms of an image apart, mean and deviation are of the forms nearest to the first
    particle's. A measurement that is not a picture is shown as its pseudo-inverse if the operator is linear.

    Args:
        folder: The measurement's folder.
        images: The particles in [-1, 1], with shape :math:`(N, C, H, W)`.
        z: Their latents.
        measurement: What they explain.
        shared: The variance of the error that all particles share, with shape :math:`(C, H, W)`, if it is known; see
            :func:`~rlsd_lightning.uncertainty.decoder_error`.
    """
    (folder / "particles").mkdir(parents=True, exist_ok=True)
    physics, y, truth = measurement.physics, measurement.y, measurement.truth
    without_prior = pseudo_inverse(physics, y)
    alike = aligned(images, images[:1], physics).detach().cpu().clamp(-1, 1)
    images = images.detach().cpu()
    mean = alike.mean(dim=0)
    # the population's variance: zero, not undefined, for one particle
    variance = alike.var(dim=0, correction=0)
    if shared is not None:
        shared = shared.detach().cpu()
        variance = variance + shared
    std = variance.mean(dim=0).sqrt()
    pictures: dict[str, tuple[str, Tensor]] = {}  # their titles and pixels by the files' names
    if truth is not None:
        pictures["truth"] = ("truth", truth[0])
    if _is_picture(y, physics):
        pictures["measurement"] = ("measurement", y[0])
    elif without_prior is not None:
        pictures["pseudo_inverse"] = ("pseudo-inverse", without_prior[0])
    pictures |= {f"particles/{i:02d}": (f"particle {i}", image) for i, image in enumerate(images)}
    pictures["mean"] = ("mean", mean)
    panels = []
    for name, (title, pixels) in pictures.items():
        picture = to_pil(pixels)
        picture.save(folder / f"{name}.png")
        panels.append((title, picture))
    # full white is a standard deviation of a quarter of the range
    to_pil((std * 4 - 1)[None]).save(folder / "std.png")
    write_grid(folder / "grid.png", panels, std.numpy())
    tensors = {"x": images, "z": z.detach().cpu(), "y": y.detach().cpu(), "mean": mean, "std": std}
    if shared is not None:
        tensors["shared_variance"] = shared
    observed = observed_pixels(physics, images.shape[1:])
    if observed is not None:
        tensors["observed"] = observed.cpu()
    if truth is not None and hasattr(physics, "equivalents"):
        tensors["aligned"] = aligned(images.to(y.device), truth.to(y.device), physics).cpu()
    # copies: where the latent is the image, both may be one tensor
    copies = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    write_atomically(folder / PARTICLES_FILE, save(copies))


def means_where_known(rows: Sequence[Mapping]) -> dict[str, float]:
    """The mean of every figure over those rows that know it; what no row knows as a number is left out."""
    known: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                known.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in known.items()}


def write_summary(folder: Path, rows: list[dict]) -> None:
    """Writes summary.csv: a row per measurement, then the mean of every numeric column; lists of sentences stay out."""
    if not rows:
        return
    rows = [{key: value for key, value in row.items() if not isinstance(value, list)} for row in rows]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    mean = {"name": "mean", **means_where_known(rows)}
    partial = folder / "summary.csv.partial"
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows([*rows, mean])
    os.replace(partial, folder / "summary.csv")
