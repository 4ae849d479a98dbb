"""Pictures and tensors of a finished measurement."""

from collections.abc import Sequence
from pathlib import Path

import torch
from deepinv.physics import Physics
from torch import Tensor
from torch.nn.functional import interpolate

from rlsd_lightning.evaluation.scores import aligned, pseudo_inverse
from rlsd_lightning.images import to_pil
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.operators.likelihood import NOT_PICTURES, HasEquivalents, observed_pixels
from rlsd_lightning.results.grid import write_filmstrip, write_grid
from rlsd_lightning.results.store import write_particles

__all__ = ["FILMSTRIP_ROWS", "thumbnails", "write_evolution", "write_images"]

THUMBNAIL = 96
"""Most pixels of a thumbnail's longer side: checkpoints hold ten of a particle."""
FILMSTRIP_ROWS = 16
"""Most particles of a filmstrip, which bounds the picture and the checkpoints."""
WHITE_STD = 0.5
"""Standard deviation that std.png shows as white: a quarter of the range [-1, 1]."""


def thumbnails(images: Tensor) -> Tensor:
    """Small 8-bit copies on the CPU of images in [-1, 1], with shape :math:`(N, C, h, w)`."""
    images = images.detach().float().clamp(-1, 1)
    scale = THUMBNAIL / max(images.shape[-2:])
    if scale < 1:
        images = interpolate(images, scale_factor=scale, mode="bilinear", antialias=True)
    return ((images + 1) * 127.5).round().to("cpu", torch.uint8)


def write_evolution(path: Path, moments: Sequence[tuple[int, Tensor]], num_particles: int) -> None:
    """Write a filmstrip, one row a particle.

    Args:
        path: File to write.
        moments: Numbers of steps taken and the thumbnails after them, with shape :math:`(n, C, h, w)`.
        num_particles: Number of all particles; the title says so if there are more than rows.
    """
    columns = [(f"step {step}", [to_pil(image / 127.5 - 1) for image in images]) for step, images in moments]
    rows = len(columns[0][1])
    write_filmstrip(path, columns, f"{rows} of {num_particles} particles" if rows < num_particles else "")


def write_images(
    folder: Path, images: Tensor, z: Tensor, measurement: Measurement, shared: Tensor | None = None
) -> None:
    """Write the particles' pictures and tensors, their mean, the uncertainty ``std`` and a labelled grid.

    ``std`` is the root of the particles' variance plus the shared variance, averaged over colours. Mean and ``std`` use
    the equivalent forms nearest to the first particle. A measurement that is no picture is shown by its pseudo-inverse.

    Args:
        folder: The measurement's folder.
        images: Particles in [-1, 1], with shape :math:`(N, C, H, W)`.
        z: Latents, with shape :math:`(N, ...)`.
        measurement: Measurement that the particles explain.
        shared: Variance of the error that all particles share, with shape :math:`(C, H, W)`, if it was estimated; see
            :func:`~rlsd_lightning.uncertainty.decoder_error`.
    """
    (folder / "particles").mkdir(parents=True, exist_ok=True)
    alike = aligned(images, images[:1], measurement.physics).detach().cpu().clamp(-1, 1)
    mean = alike.mean(dim=0)
    # the population's variance: zero, not undefined, for one particle
    variance = alike.var(dim=0, correction=0)
    std = (variance if shared is None else variance + shared.detach().cpu()).mean(dim=0).sqrt()
    panels = []
    for name, title, pixels in _pictures(images, mean, measurement):
        picture = to_pil(pixels)
        picture.save(folder / f"{name}.png")
        panels.append((title, picture))
    to_pil((2 * std / WHITE_STD - 1)[None]).save(folder / "std.png")
    write_grid(folder / "grid.png", panels, std.numpy())
    tensors = {"x": images, "z": z, "y": measurement.y, "mean": mean, "std": std}
    write_particles(folder, tensors | _optional_tensors(images, measurement, shared))


def _pictures(images: Tensor, mean: Tensor, measurement: Measurement) -> list[tuple[str, str, Tensor]]:
    """File names, titles and pixels in [-1, 1] of the pictures in the grid."""
    physics, y, truth = measurement.physics, measurement.y, measurement.truth
    pictures = [] if truth is None else [("truth", "truth", truth[0])]
    if _is_picture(y, physics):
        pictures.append(("measurement", "measurement", y[0]))
    elif (without_prior := pseudo_inverse(physics, y)) is not None:
        pictures.append(("pseudo_inverse", "pseudo-inverse", without_prior[0]))
    pictures += [(f"particles/{i:02d}", f"particle {i}", image) for i, image in enumerate(images)]
    return [*pictures, ("mean", "mean", mean)]


def _is_picture(y: Tensor, physics: Physics) -> bool:
    return y.ndim == 4 and y.shape[1] in (1, 3) and not isinstance(physics, NOT_PICTURES)


def _optional_tensors(images: Tensor, measurement: Measurement, shared: Tensor | None) -> dict[str, Tensor]:
    """``shared_variance``, ``observed`` and ``aligned`` of :class:`~rlsd_lightning.measurement.SavedMeasurement`."""
    physics, y, truth = measurement.physics, measurement.y, measurement.truth
    tensors = {} if shared is None else {"shared_variance": shared}
    observed = observed_pixels(physics, images.shape[1:])
    if observed is not None:
        tensors["observed"] = observed
    if truth is not None and isinstance(physics, HasEquivalents):
        tensors["aligned"] = aligned(images.detach().to(y.device), truth.to(y.device), physics)
    return tensors
