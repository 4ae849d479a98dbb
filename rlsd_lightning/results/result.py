"""Result of one measurement: particles, mean, uncertainty, metrics and pictures."""

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from deepinv.physics import Physics
from PIL import Image
from torch import Tensor

from rlsd_lightning.data.original import FullSize
from rlsd_lightning.errors import InputError, require_at_least_one
from rlsd_lightning.evaluation.checks import principal_directions
from rlsd_lightning.evaluation.scores import Solved, aligned, pseudo_inverse
from rlsd_lightning.functional.sets.clustering import k_medoids
from rlsd_lightning.images import to_pil
from rlsd_lightning.operators.likelihood import NOT_PICTURES, HasEquivalents, last_operator, observed_pixels
from rlsd_lightning.results.grid import write_directions, write_evolution, write_grid
from rlsd_lightning.results.store import in_short, remove_result, write_metrics, write_particles
from rlsd_lightning.signatures import typed

log = logging.getLogger(__name__)

__all__ = [
    "FULL_SIZE",
    "WHITE_STD",
    "Panel",
    "Representative",
    "Result",
    "image_result",
    "representatives",
]

WHITE_STD = 0.5
"""Standard deviation that std.png shows as white: a quarter of the range [-1, 1]."""

FULL_SIZE = "full_size"
"""Folder of the pictures at the size of the user's own."""
SHARES = "direction_shares"
"""Key of the shares of the principal directions."""
PARTICLES = "particles/"
"""Folder of the particles' pictures."""
MANY = 8
"""Particles from which on representatives are shown first."""

Panel = tuple[str, str, Image.Image]
"""File name without its suffix, title and picture."""


class Representative(NamedTuple):
    """A particle that stands for those nearest to it.

    Attributes:
        particle: Its index.
        share: Share of the particles that it stands for, itself included, in (0, 1].
    """

    particle: int
    share: float


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    r"""Particles of one measurement, with their mean, uncertainty and metrics; tensors are float32 on the CPU.

    A notebook shows the grid: measurement, particles, mean and ``std``.

    Attributes:
        particles: Images :math:`x`, about in [-1, 1] and not clipped, with shape :math:`(N, C, H, W)`.
        mean: Mean of the clipped particles, in [-1, 1], with shape :math:`(C, H, W)`.
        std: Standard deviation of the truth around ``mean``, with shape :math:`(H, W)`: the root of the particles' variance
            plus the autoencoder's estimated error variance, averaged over colours. std.png shows it, white at 0.5 and above.
        decoded: Decoded latents :math:`D(z)`, with the shape of ``particles``.
        metrics: Content of metrics.json: ``residual_sigmas``, ``vendi``, with a truth ``psnr_mean``, and others.
        panels: Pictures of the grid.
        tensors: Content of particles.safetensors.
        moments: Numbers of steps taken, and thumbnails after them; the filmstrip.
        full_size: Pictures of the particles and their mean at the size of the user's own picture, by their file names, made
            from the user's file when they are asked for; empty if that is the size that was solved.
        alike: Particles in their equivalent forms nearest to the first one; None: ``particles``.
        is_first: Whether :meth:`save` writes; False in all processes but the first of a group.
    """

    particles: Tensor
    mean: Tensor
    std: Tensor
    decoded: Tensor
    metrics: dict[str, Any]
    panels: Sequence[Panel] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    moments: Sequence[tuple[int, Tensor]] = ()
    full_size: Mapping[str, Image.Image] = field(default_factory=dict)
    alike: Tensor | None = None
    is_first: bool = True

    @property
    def decoder_error(self) -> float | None:
        """Root mean square of the autoencoder's error, for images in [-1, 1]; None if it was not estimated."""
        return self.metrics.get("decoder_error")

    @property
    def warnings(self) -> list[str]:
        """One sentence for each problem, with remedies; empty for a healthy result."""
        return self.metrics.get("warnings", [])

    @typed
    def save(self, folder: str | Path) -> None:
        """Write the files that the command writes for a measurement, without TensorBoard events and checkpoints.

        In a script of several processes the first one writes.

        Args:
            folder: Folder of the files, which is made if it is missing.
        """
        if not self.is_first:
            return
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.panels:
            remove_result(folder)
        for name, _, picture in self.panels:
            (folder / name).parent.mkdir(exist_ok=True)
            picture.save(folder / f"{name}.png")
        if self.panels:
            to_pil((2 * self.std / WHITE_STD - 1)[None]).save(folder / "std.png")
            self._draw(folder / "grid.png")
        if "directions" in self.tensors:
            write_directions(folder / "directions.png", self.mean, self.tensors["directions"], self.metrics[SHARES])
        if self.moments:
            write_evolution(folder / "filmstrip.png", self.moments, len(self.particles))
        _write_full_size(folder, self.full_size)
        write_particles(folder, self.tensors)
        write_metrics(folder, self.metrics)  # last: it marks a finished measurement

    def _draw(self, file: Path | io.BytesIO) -> None:
        panels = {name: (title, picture) for name, title, picture in self.panels}
        others = []
        if len(self.particles) >= MANY:
            particles = [name for name in panels if name.startswith(PARTICLES)]
            mean = panels.pop("mean")
            below = {name: panels.pop(name) for name in particles}
            for index, share in representatives(self):
                title, picture = below.pop(particles[index])
                panels[particles[index]] = (f"{title}: {share:.0%}", picture)
            panels["mean"], others = mean, list(below.values())
        write_grid(file, list(panels.values()), self.std.numpy(), others)

    def _repr_png_(self) -> bytes | None:
        """The grid as a notebook shows it; None for points."""
        if not self.panels:
            return None
        content = io.BytesIO()
        self._draw(content)
        return content.getvalue()

    def __repr__(self) -> str:
        count, *shape = self.particles.shape
        lines = [f"Result: {count} particles of shape {tuple(shape)}; {in_short(self.metrics)}".rstrip("; ")]
        return "\n".join([*lines, *(f"warning: {sentence}" for sentence in self.warnings)])


@typed
def representatives(particles: Tensor | Result, k: int = 4) -> list[Representative]:
    r"""Particles that stand for all, those of most particles first: k-medoids of squared distances of images.

    Args:
        particles: Images, about in [-1, 1], with shape :math:`(N, \dots)`, or a result.
        k: Number of representatives, at least 1; at most all particles are returned.

    Raises:
        InputError: If ``k`` is below 1, or there are no particles.
    """
    require_at_least_one(k=k)
    if isinstance(particles, Result):
        particles = particles.particles if particles.alike is None else particles.alike
    if not len(particles):
        raise InputError("particles must hold at least one, got none")
    points = particles.detach().cpu().double().flatten(1)
    chosen, nearest = k_medoids(torch.cdist(points, points).square(), min(k, len(points)))
    counts = nearest.bincount(minlength=len(chosen)).tolist()
    return [Representative(index, count / len(points)) for index, count in zip(chosen.tolist(), counts, strict=True)]


def image_result(
    solved: Solved,
    shared: Tensor | None = None,
    metrics: Mapping[str, Any] | None = None,
    moments: Sequence[tuple[int, Tensor]] = (),
) -> Result:
    """Result of particles that are images.

    Mean and ``std`` use the equivalent forms nearest to the first particle. A measurement that is no picture is shown by
    its pseudo-inverse.

    Args:
        solved: The measurement and its particles.
        shared: Variance of the error that all particles share, with shape :math:`(C, H, W)`, if it was estimated; see
            :func:`~rlsd_lightning.uncertainty.decoder_error`.
        metrics: Figures of the particles.
        moments: Numbers of steps taken, and thumbnails after them.
    """
    measurement, images = solved.measurement, solved.images.detach()
    alike = aligned(images, images[:1], measurement.physics).float().cpu().clamp(-1, 1)
    mean = alike.mean(dim=0)
    # the population's variance: zero, not undefined, for one particle
    variance = alike.var(dim=0, correction=0)
    std = (variance if shared is None else variance + shared.detach().cpu()).mean(dim=0).sqrt()
    chosen = {"representatives": [each._asdict() for each in representatives(alike)]} if len(alike) >= MANY else {}
    tensors = {"x": images, "z": solved.z, "y": measurement.y, "mean": mean, "std": std}
    tensors |= _optional_tensors(solved, shared)
    directions = principal_directions(alike)
    if directions is not None:
        tensors["directions"] = directions.deviations
        chosen[SHARES] = [round(share, 4) for share in directions.shares.tolist()]
    particles = images.float().cpu()
    return Result(
        particles=particles,
        mean=mean,
        std=std,
        decoded=solved.decoded.detach().float().cpu(),
        metrics={**(metrics or {}), **chosen},
        panels=_panels(solved, mean),
        full_size=FullSize(measurement, {**{f"{i:02d}": image for i, image in enumerate(particles)}, "mean": mean}),
        tensors={name: value.detach().cpu() for name, value in tensors.items()},
        moments=moments,
        alike=alike,
    )


def _panels(solved: Solved, mean: Tensor) -> list[Panel]:
    """Truth, measurement, particles and their mean."""
    physics, y, truth = solved.measurement.physics, solved.measurement.y, solved.measurement.truth
    pictures = [] if truth is None else [("truth", "truth", truth[0])]
    if _is_picture(y, physics):
        pictures.append(("measurement", "measurement", y[0]))
    elif (without_prior := pseudo_inverse(physics, y)) is not None:
        pictures.append(("pseudo_inverse", "pseudo-inverse", without_prior[0]))
    pictures += [(f"{PARTICLES}{i:02d}", f"particle {i}", image) for i, image in enumerate(solved.images)]
    return [(name, title, to_pil(pixels)) for name, title, pixels in [*pictures, ("mean", "mean", mean)]]


def _write_full_size(folder: Path, pictures: Mapping[str, Image.Image]) -> None:
    """Write pictures one at a time; a file that can't be read any more costs these pictures only, and is logged."""
    try:
        for name, picture in pictures.items():
            (folder / FULL_SIZE).mkdir(exist_ok=True)
            picture.save(folder / FULL_SIZE / f"{name}.png", compress_level=1)  # of many pixels: fast before small
    except InputError as error:
        log.warning("%s: there are no results of the picture's own size, as %s", folder.name, error)


def _is_picture(y: Tensor, physics: Physics) -> bool:
    return y.ndim == 4 and y.shape[1] in (1, 3) and not isinstance(last_operator(physics), NOT_PICTURES)


def _optional_tensors(solved: Solved, shared: Tensor | None) -> dict[str, Tensor]:
    """``shared_variance``, ``observed`` and ``aligned`` of :class:`~rlsd_lightning.measurement.SavedMeasurement`."""
    physics, y, truth = solved.measurement.physics, solved.measurement.y, solved.measurement.truth
    tensors = {} if shared is None else {"shared_variance": shared}
    observed = observed_pixels(physics, solved.images.shape[1:])
    if observed is not None:
        tensors["observed"] = observed
    if isinstance(physics, HasEquivalents):
        images = solved.images.detach().to(y.device)
        tensors["aligned"] = aligned(images, images[:1] if truth is None else truth.to(y.device), physics)
    return tensors
