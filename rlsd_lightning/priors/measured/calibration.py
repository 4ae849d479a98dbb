r"""Scales of a prior that methods and warnings need, measured on pictures or on the prior's own samples.

They are kept in ``calibration.json`` beside the prior's settings, or in the user's cache where that folder can't be
written, one entry for each image size: fine pictures have less detail in a pixel, so an autoencoder's error falls with
the size.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rlsd_lightning.errors import InputError, first_line
from rlsd_lightning.functional.schedules import add_noise, ddim_timesteps

if TYPE_CHECKING:
    from rlsd_lightning.priors.base import Prior

__all__ = [
    "Calibration",
    "calibrations_in",
    "draw",
    "measure",
    "reconstruction_error",
    "save_calibration",
    "saved_calibration",
    "size_name",
]

log = logging.getLogger(__name__)

FILE = "calibration.json"
SAMPLES = 8
"""Own samples that a prior is measured on; more where they have few values."""
FEWEST_VALUES = 4096
"""Values of all own samples together."""
MOST_SAMPLES = 1024
SAMPLING_STEPS = 20
"""Steps of DDIM of an own sample."""
DETAIL_OF_PICTURES = 3.5
"""Ratio of reconstruction errors: pictures have details that the prior's own samples, outputs of its decoder, lack."""
EXACT_DECODER_STD = 0.08
"""``decoder_std`` of a prior that decodes exactly, such as one in pixels: the error of a method's last latents."""
WEIGHTS = (".safetensors", ".bin", ".ckpt")
TINY_DECODER = "tiny_decoder"
"""Folder of a decoder that is not measured."""
END = 65536
"""Bytes at the end of a weight file that tell one training from another."""
QUANTILES = (0.05, 0.95)
"""Of pictures that the prior knows; those beyond count as exceptions."""


class Calibration(NamedTuple):
    r"""Scales of a prior for images of one size, in [-1, 1].

    Attributes:
        decoder_std: Root mean square of the reconstruction error :math:`D(E(u)) - u`.
        largest_error: Its 95 % quantile over pictures.
        image_std: Standard deviation of images about their mean image, over all pixels.
        latent_std: Standard deviation of latents over all their values.
        latent_rms: The 5 % and 95 % quantiles over pictures of a latent's root mean square.
        count: Number of pictures or samples.
        measured_on: ``pictures``, or ``samples`` of the prior itself.
        weights: Digest of the weight files that were measured; empty where they are not known.
    """

    decoder_std: float
    largest_error: float
    image_std: float
    latent_std: float
    latent_rms: tuple[float, float]
    count: int
    measured_on: str
    weights: str = ""


def reconstruction_error(prior: Prior, images: Tensor) -> tuple[Tensor, Tensor]:
    """Root mean square of each image's reconstruction error, with shape (n,), and the reconstructions."""
    reconstructed = prior.decode(prior.encode(images))
    return _rms(reconstructed - images), reconstructed


@torch.no_grad()
def measure(prior: Prior, pictures: Iterable[Tensor] | None = None) -> Calibration:
    """Measures a prior where its networks are.

    Args:
        prior: The prior.
        pictures: Images that it knows, each with shape :math:`(1, C, H, W)`; its own samples if left out. The decoder
            reconstructs own samples better than pictures, so their errors count 3.5 times.

    Raises:
        InputError: If own samples are not finite, or no picture is given.
    """
    images, latents, errors = [], [], []
    for image in _samples(prior) if pictures is None else pictures:
        image = image.to(prior.alphas)
        z = prior.encode(image)
        errors.append(_rms(prior.decode(z) - image).cpu())
        images.append(image.cpu())
        latents.append(z.cpu())
    if not images:
        raise InputError("images: one picture at least is expected, got none")
    seen, encoded, error = torch.cat(images), torch.cat(latents), torch.cat(errors)
    error = error if pictures is not None else DETAIL_OF_PICTURES * error
    typical, (_, largest) = error.square().mean().sqrt().item(), _quantiles(error)
    return Calibration(
        decoder_std=_rounded(typical) if typical > 0 else EXACT_DECODER_STD,
        largest_error=_rounded(largest),
        image_std=_rounded(_deviation(seen)),
        latent_std=_rounded(encoded.std().item()),
        latent_rms=_quantiles(_rms(encoded)),
        count=len(seen),
        measured_on="samples" if pictures is None else "pictures",
    )


def _samples(prior: Prior) -> Iterator[Tensor]:
    """Own samples, one at a time, as a large prior's do not fit into the memory together."""
    number = max(SAMPLES, min(math.ceil(FEWEST_VALUES / math.prod(prior.latent_shape)), MOST_SAMPLES))
    together = number // SAMPLES
    for first in range(SAMPLES):
        images = prior.decode(draw(prior, together, seed=first))
        if not images.isfinite().all():
            raise InputError(
                "pretrained: a prior with finite samples is expected, got NaN or infinity; set weights=float32, or "
                "give decoder_std, image_std and latent_std"
            )
        yield images.clamp(-1, 1) if images.ndim == 4 else images


@torch.no_grad()
def draw(prior: Prior, count: int, seed: int = 0, steps: int = SAMPLING_STEPS) -> Tensor:
    """Latents of a prior's own samples by DDIM, with shape :math:`(n, ...)`."""
    noise = torch.randn(count, *prior.latent_shape, generator=torch.Generator().manual_seed(seed))
    z_t = noise.to(prior.alphas)
    timesteps = ddim_timesteps(prior.num_train_timesteps, min(steps, prior.num_train_timesteps), prior.timestep_offset)
    for t, s in zip(timesteps, [*timesteps[1:], None], strict=True):
        z, eps = prior.denoise(z_t, t)
        if s is not None:
            z_t = add_noise(z, eps, prior.alpha(s), prior.sigma(s))
    return z


def saved_calibration(origin: Path | None, image_shape: tuple[int, ...]) -> Calibration | None:
    """The entry of the nearest image size; None if the checkpoint at ``origin`` was never measured.

    Raises:
        InputError: If the file is damaged.
    """
    entries: dict[str, Calibration] = {}
    files = [file for file in _files(origin) if file.is_file()] if origin is not None else []
    for file in sorted(files, key=lambda file: file.stat().st_mtime):  # the newer one counts more
        entries |= _of_these_weights(_read(file), origin, file)
    area = math.log(math.prod(image_shape[-2:]))
    size = min(entries, key=lambda size: abs(math.log(math.prod(_lengths(size))) - area), default=None)
    return None if size is None else entries[size]


def save_calibration(origin: Path, image_shape: tuple[int, ...], calibration: Calibration) -> Path:
    """Writes the entry of one image size and returns the file: beside the settings, or in the user's cache."""
    beside, cached = _files(origin)
    file = beside if origin.is_dir() and os.access(origin, os.W_OK) else cached
    calibration = calibration._replace(weights=_digest(origin))
    entries = _of_these_weights(_read(file), origin, file) if file.is_file() else {}
    entries[size_name(image_shape)] = calibration
    written = {size: each._asdict() for size, each in sorted(entries.items(), key=lambda item: _lengths(item[0]))}
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, file)  # so that another run reads the old or the new one
    return file


def size_name(image_shape: tuple[int, ...]) -> str:
    """Size as HEIGHTxWIDTH, the key of a calibration in its file."""
    return "x".join(map(str, image_shape[-2:]))


def _files(origin: Path) -> tuple[Path, Path]:
    """Where a checkpoint's calibration may be: beside its settings, and in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlsd-lightning"
    name = origin.resolve() if origin.exists() else origin
    return origin / FILE, cache / "--".join(part for part in name.parts if part != name.anchor) / FILE


def calibrations_in(entries: dict[str, dict]) -> dict[str, Calibration]:
    """The calibrations of a parsed file, by size."""
    return {
        size: Calibration(**(entry | {"latent_rms": tuple(entry["latent_rms"])}))
        for size, entry in entries.items()
        if _lengths(size)
    }


def _read(file: Path) -> dict[str, Calibration]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        found = calibrations_in(entries)
        if not found:
            raise ValueError("it has no entry")
        return found
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(
            f"pretrained: '{file}' can't be read ({first_line(error)}); delete it, or run rlsd calibrate again"
        ) from error


def _of_these_weights(entries: dict[str, Calibration], origin: Path, file: Path) -> dict[str, Calibration]:
    """The entries that were measured on the weights that are there now; the others are named in a warning."""
    now = _digest(origin)
    kept = {size: entry for size, entry in entries.items() if not entry.weights or not now or entry.weights == now}
    if old := sorted(set(entries) - set(kept)):
        log.warning(
            "'%s' was measured on other weights at %s; this is left out. Run rlsd calibrate to measure the present ones.",
            file,
            ", ".join(old),
        )
    return kept


def _digest(origin: Path) -> str:
    """Digest of the ends of a folder's weight files, which another training changes; empty for a model hub's name."""
    digest = hashlib.sha256()
    found = [origin] if origin.is_file() else sorted(origin.rglob("*"))
    files = [f for f in found if f.suffix in WEIGHTS and TINY_DECODER not in f.parts and f.is_file()]
    for file in files:
        with file.open("rb") as weights:
            weights.seek(-min(file.stat().st_size, END), os.SEEK_END)
            digest.update(weights.read())
    return digest.hexdigest()[:16] if files else ""


def _lengths(size: str) -> list[int]:
    """Height and width of an entry such as ``64x64``."""
    return [int(length) for length in size.split("x")]


def _rms(values: Tensor) -> Tensor:
    return values.flatten(1).square().mean(dim=1).sqrt()


def _deviation(values: Tensor) -> float:
    """Standard deviation about the mean over the batch; about its own mean for one picture."""
    return (values.var(dim=0) if len(values) > 1 else values.var()).mean().sqrt().item()


def _quantiles(values: Tensor) -> tuple[float, float]:
    low, high = torch.quantile(values.cpu().double(), torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    return _rounded(low), _rounded(high)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
