"""What measurements from files have in common: where they are, how they are read, and an operator for each."""

import operator
from collections.abc import Callable, Sequence
from pathlib import Path

from deepinv.physics import Physics
from deepinv.physics.forward import ComposedPhysics

from rlsd_lightning.data.original import FilePicture
from rlsd_lightning.data.sizes import AnySize, OneSize
from rlsd_lightning.data.sources import Source, find_sources
from rlsd_lightning.errors import require_at_least_one
from rlsd_lightning.images import Reader
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.operators.pixels import MaskedPixels, PerPicture
from rlsd_lightning.reading.frames import Frame
from rlsd_lightning.reading.values import Range

__all__ = ["FileMeasurements"]


class FileMeasurements(Sequence[Measurement]):
    """Measurements from files, read on access; subclasses call :meth:`find` and read one.

    Args:
        image_shape: Shape of the prior's images, :math:`(C, H, W)`.
        physics: The operator for images of this shape; or :class:`~rlsd_lightning.data.sizes.AnySize`.
        limit: Number of measurements to use; all by default.
        sequence: Whether they are frames or slices in order.
        range: Values that mean black and white, like ``axes`` as in :class:`~rlsd_lightning.images.Reader`.
        axes: Order of an array's axes.

    Attributes:
        names: Names of the measurements that are used.
        available: Number of measurements before the limit.

    Raises:
        InputError: If an argument is out of range.
    """

    names: list[str]
    available: int

    def __init__(
        self,
        image_shape: tuple[int, ...],
        physics: Physics | AnySize,
        limit: int | None,
        sequence: bool,
        range: str | Sequence[float] | None,
        axes: str | None,
    ) -> None:
        require_at_least_one(limit=limit)
        self.operators = physics if isinstance(physics, AnySize) else OneSize(image_shape, physics)
        self.image_shape, self.sequence, self._limit = tuple(image_shape), sequence, limit
        self.series = "sequence" if sequence else None
        """Key of the particles' noise, which a sequence shares."""
        self._reader = Reader(range, axes)

    def find(self, where: str | Path, what: str, count: Callable[[Path, str | None], int]) -> None:
        """Find the files; arguments as in :func:`~rlsd_lightning.data.sources.find_sources`."""
        self.sources = find_sources(where, what, count)
        # names are keys of the noise; they depend on all files, not on the limit
        self.names, self.available = [source.name for source in self.sources][: self._limit], len(self.sources)

    def __len__(self) -> int:
        return len(self.names)

    def source(self, index: int) -> Source:
        """The place of a measurement."""
        return self.sources[: len(self)][operator.index(index)]

    def physics_of(self, source: Source, frame: Frame | None) -> Physics:
        """The operator of a picture."""
        physics = self.operators.physics(frame)
        if isinstance(physics, PerPicture):
            return physics.for_picture([source.name, source.stem], frame)
        for each in physics.physics_list if isinstance(physics, ComposedPhysics) else ():
            if isinstance(each, MaskedPixels):  # raises an error for a mask of another size
                each.for_picture([source.name], each.frame or frame)
        return physics

    def original(
        self, source: Source, frame: Frame | None, factor: int = 1, limits: Range | None = None
    ) -> FilePicture | None:
        """The picture at its own size; None if that is the image's, or there is no such picture."""
        if frame is None or frame.is_trivial:
            return None
        return FilePicture(self._reader, source.path, source.key, source.page, frame, factor, limits)
