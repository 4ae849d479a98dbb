"""Film of a sequence of measurements."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import interpolate

from rlsd_lightning.images import load_image, to_pil, with_channels
from rlsd_lightning.results.store import PARTICLES_FILE

__all__ = ["write_sequence"]

log = logging.getLogger(__name__)

MIN_HEIGHT = 128
"""Approximate minimum height of a frame in pixels; players blur smaller frames."""
MAX_SIDE = 16384
"""Largest width and height in pixels that the codec takes."""
FRAME_RATE = 8
"""Frames a second."""
QUALITY = "16"
"""Constant rate factor of H.264: lower is better and larger, 0 is lossless."""


def write_sequence(folder: Path, names: Sequence[str]) -> None:
    """Write sequence.mp4, and sequence.npy with all particles, from a run's finished measurements in temporal order.

    A frame shows the truth, if known for all of them, every particle, and their mean. The array is in [-1, 1] and has shape
    :math:`(N, T, C, H, W)`; particle i is one coherent sequence.
    """
    film_file, array_file = folder / "sequence.mp4", folder / "sequence.npy"
    for old in (film_file, array_file):  # there may be no new one
        old.unlink(missing_ok=True)
    if not names:
        return
    sequences, film = [], []
    has_truth = all((folder / name / "truth.png").is_file() for name in names)
    for name in names:
        particles = load_file(folder / name / PARTICLES_FILE)["x"].clamp(-1, 1)
        if sequences and particles.shape != sequences[0].shape:
            log.warning("%s has another size than the first, so there is no film; crop all to one size", name)
            return
        sequences.append(particles)
        panels = [*particles, particles.mean(dim=0)]
        if has_truth:
            truth = load_image(folder / name / "truth.png", *particles.shape[-2:])
            panels.insert(0, with_channels(truth, particles.shape[1])[0])
        scale = max(1, round(MIN_HEIGHT / particles.shape[-2]))
        film.append(
            np.asarray(to_pil(interpolate(_in_rows(panels, scale)[None], scale_factor=scale, mode="nearest")[0]))
        )
    np.save(array_file, torch.stack(sequences, dim=1).numpy())
    _write_film(film_file, film)


def _in_rows(panels: Sequence[Tensor], scale: int) -> Tensor:
    """Panels side by side, in as many rows as a film's width takes; the last one ends in black."""
    columns = min(len(panels), max(1, MAX_SIDE // (scale * panels[0].shape[-1])))
    black = [torch.full_like(panels[0], -1)] * (-len(panels) % columns)
    every = [*panels, *black]
    return torch.cat([torch.cat(every[i : i + columns], dim=-1) for i in range(0, len(every), columns)], dim=-2)


def _write_film(path: Path, frames: list[np.ndarray]) -> None:
    import av  # only sequences need it

    height, width = (side - side % 2 for side in frames[0].shape[:2])  # the codec subsamples colours by two
    if height > MAX_SIDE:
        log.warning(
            "no film is written: %d pixels are higher than a film's %d; solve fewer particles", height, MAX_SIDE
        )
        return
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE, options={"crf": QUALITY})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in frames:
            pixels = np.ascontiguousarray(frame[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
