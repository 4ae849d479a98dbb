"""Sequences: each item starts from the particles of the one before, and all become a film."""

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import interpolate

from rlsd_lightning.images import load_image, to_pil

__all__ = ["last_particles", "write_sequence"]

LEAST_HEIGHT = 128
"""Smaller frames are enlarged to about this many pixels: players blur what is smaller."""


def last_particles(folder: Path) -> tuple[Tensor, Tensor] | None:
    """Latents and images of a finished measurement, with shape :math:`(N, ...)`; None if it is not finished."""
    file = folder / "particles.safetensors"
    if not file.is_file() or not (folder / "metrics.json").is_file():
        return None
    saved = load_file(file)
    return saved["z"], saved["x"]


def write_sequence(folder: Path, names: Sequence[str], frames_per_second: int = 8) -> None:
    """Writes sequence.mp4, and sequence.npy with all particles.

    A frame of the film shows the truth if there is one, every particle, and their mean. The array is in [-1, 1] and has
    the shape :math:`(N, T, C, H, W)`: particle i is one coherent story.

    Args:
        folder: The run's folder.
        names: Its finished measurements, in their order.
        frames_per_second: The film's speed.
    """
    stories, film = [], []
    for name in names:
        particles = load_file(folder / name / "particles.safetensors")["x"].clamp(-1, 1)
        stories.append(particles)
        truth = folder / name / "truth.png"
        panels = [load_image(truth, *particles.shape[-2:])[0]] if truth.is_file() else []
        row = torch.cat([*panels, *particles, particles.mean(dim=0)], dim=-1)
        scale = max(1, round(LEAST_HEIGHT / row.shape[-2]))
        film.append(np.asarray(to_pil(interpolate(row[None], scale_factor=scale, mode="nearest")[0])))
    np.save(folder / "sequence.npy", torch.stack(stories, dim=1).numpy())
    _write_film(folder / "sequence.mp4", film, frames_per_second)


def _write_film(path: Path, frames: list[np.ndarray], frames_per_second: int) -> None:
    height, width = (side - side % 2 for side in frames[0].shape[:2])  # the codec halves the colours' resolution
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=frames_per_second, options={"crf": "16"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in frames:
            pixels = np.ascontiguousarray(frame[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
