"""Particles as they form."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from PIL import Image

from rlsd_lightning.errors import StoppedError
from rlsd_lightning.images import to_pil
from rlsd_lightning.methods.base import ParticleModule

__all__ = ["Watch"]

SECONDS = 0.5
"""Least time between two looks at the particles."""
SIDE = 256
"""Most pixels of a side of these pictures."""


class Watch(Callback):
    r"""Shows :math:`D(\hat z)` of all particles twice a second, and ends a run that is cancelled.

    Args:
        show: Takes the steps taken, all steps, and pictures or None.
        is_cancelled: Says between two steps whether the run is to end.

    Raises:
        StoppedError: If it is cancelled.
    """

    def __init__(
        self, show: Callable[[int, int, Sequence[Image.Image] | None], None], is_cancelled: Callable[[], bool]
    ) -> None:
        self._show, self._is_cancelled = show, is_cancelled
        self._last = 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: ParticleModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._is_cancelled():
            raise StoppedError("cancelled")
        pictures = None
        if time.monotonic() - self._last >= SECONDS:
            self._last = time.monotonic()
            seen = pl_module.intermediate_images()
            pictures = None if seen is None else [to_pil(image) for image in seen[1]]
            for picture in pictures or ():
                picture.thumbnail((SIDE, SIDE))
        self._show(batch_idx + 1, len(pl_module.timesteps), pictures)
