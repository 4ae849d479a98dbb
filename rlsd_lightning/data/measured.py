"""Measured data without a truth."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from deepinv.physics import Physics
from PIL import Image
from torch import Tensor

from rlsd_lightning.data.simulated import check_limit
from rlsd_lightning.data.sources import Source, find_sources
from rlsd_lightning.errors import InputError
from rlsd_lightning.images import Reader
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.operators.likelihood import MASKED, noise_std
from rlsd_lightning.operators.medical import Scan
from rlsd_lightning.operators.pixels import PerPicture
from rlsd_lightning.reading import (
    Stack,
    TakesArrays,
    check_finite,
    is_array,
    measured_range,
    read_array,
    read_picture,
    scaled,
)

__all__ = ["MeasuredData", "load_measured"]

log = logging.getLogger(__name__)


class MeasuredData(Sequence[Measurement]):
    """Measured files, read on access: pictures and arrays of pictures if the operator measures images, else its arrays.

    Args:
        image_shape: Shape of the prior's images.
        physics: The operator; its mask is applied, and a grey picture gets as many channels as :math:`A(x)` has.
        measurement: A file, folder or glob. An array has the shape of :math:`A(x)`, where leading axes of length one may
            lack, or holds several of them along its first axis.
        limit: Number of measurements to use; all by default.
        sequence: Whether they are frames or slices in order.
        range: Values of an image that mean black and white, like ``axes`` as in :class:`~rlsd_lightning.images.Reader`.
        axes: Order of an array's axes.

    Raises:
        InputError: If nothing is found; on access, if a file can't be read or does not fit the operator.
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        physics: Physics,
        measurement: str | Path,
        limit: int | None = None,
        sequence: bool = False,
        range: str | Sequence[float] | None = None,
        axes: str | None = None,
    ) -> None:
        check_limit(limit)
        self.image_shape, self.physics, self.sequence = image_shape, physics, sequence
        self._reader = Reader(range, axes)
        self._arrays: tuple[Path, str | None, Tensor | np.ndarray] | None = None
        self.expected = tuple(image_shape) if isinstance(physics, PerPicture) else _shape_of(physics, image_shape)
        self.of_images = isinstance(physics, PerPicture) or _measures_images(physics, image_shape)
        if not self.of_images and (range or axes):
            raise InputError("range and axes are of images, which this operator does not measure; leave both out")
        self.sources = find_sources(measurement, "measurement", self._count)
        self.names, self.available = [source.name for source in self.sources][:limit], len(self.sources)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Measurement:
        source = self.sources[: len(self)][index]
        y, physics = self._image(source) if self.of_images else self._values(source)
        return Measurement(source.name, y, physics, series="sequence" if self.sequence else None)

    def _count(self, path: Path, key: str | None) -> int:
        return len(self._stack(path, key) if self.of_images else self._of_instrument(path, key))

    def _stack(self, path: Path, key: str | None) -> Stack:
        return self._reader.stack(path, key, self.expected)

    def _image(self, source: Source) -> tuple[Tensor, Physics]:
        """A measured image, in the units of an image in [-1, 1], and its operator."""
        stack = self._stack(source.path, source.key)
        values = np.asarray(stack.page(source.page))
        physics = self.physics
        if isinstance(physics, PerPicture):
            physics = physics.for_picture([source.name, source.stem], values.shape[:2])
        self._check_size(source, values.shape[:2])
        seen = _seen(physics, values.shape[:2])
        decide = partial(
            measured_range,
            asked=self._reader.asked or stack.range,
            what=source.path,
            noise_std=noise_std(physics.noise_model, torch.ones(1)),
        )
        limits = stack.limits(decide, values, None if seen is None else _seen_values(seen, values.shape[-1]))
        self._reader.notes(source.path, limits.said)
        y = torch.from_numpy(scaled(values, limits)).movedim(-1, 0)[None]
        y = self._with_channels(y, source)
        return y if seen is None else torch.where(seen, y, 0), physics

    def _check_size(self, source: Source, size: tuple[int, int]) -> None:
        (rows, columns), (height, width), expected = size, self.image_shape[-2:], self.expected
        if size == expected[1:]:
            return
        whole = rows * height / expected[1], columns * width / expected[2]
        factor = f" measured x{height / expected[1]:g}" if expected[1] != height else ""
        advice = f"{columns}x{rows}{factor} is an image of {whole[1]:g}x{whole[0]:g}: "
        fits = all(side == int(side) for side in whole)
        advice += f"set image_size=[{whole[0]:g},{whole[1]:g}]" if fits else "crop it"
        raise InputError(
            f"a measurement of {expected[2]}x{expected[1]} pixels is expected from the prior's images of {width}x{height}, "
            f"but '{source.path}' has {columns}x{rows}. {advice}, or crop and resize it yourself"
        )

    def _with_channels(self, y: Tensor, source: Source) -> Tensor:
        channels = self.expected[0]
        if channels == y.shape[1]:
            return y
        if y.shape[1] == 1:
            return y.expand(-1, channels, -1, -1).clone()
        if channels == 1 and torch.equal(y, y[:, :1].expand_as(y)):
            return y[:, :1]
        raise InputError(
            f"a measurement of {channels} channels is expected, but '{source.path}' has {y.shape[1]} that differ; "
            "save it in grey"
        )

    def _values(self, source: Source) -> tuple[Tensor, Physics]:
        """Measured values that are no image, and their operator."""
        y = self._of_instrument(source.path, source.key)[source.page : source.page + 1]
        check_finite(y.numpy(), source.path)
        physics = self.physics.for_measurement(y) if isinstance(self.physics, Scan) else self.physics
        seen = _seen(physics, y.shape[-2:])
        return y if seen is None else y * seen, physics

    def _of_instrument(self, path: Path, key: str | None) -> Tensor:
        r"""Measurements of an operator that does not measure images, as they are, with shape :math:`(n, \dots)`."""
        if self._arrays is None or self._arrays[:2] != (path, key):
            takes = self.physics if isinstance(self.physics, TakesArrays) else None
            if is_array(path):
                values = read_array(path, key, complex_allowed=takes is not None).values
            else:
                values = _real_picture(path)
            try:
                own = self._in_own_shape(values) if takes is None else takes.from_array(values)
            except InputError as error:
                raise InputError(f"'{path}': {error}") from error
            self._arrays = (path, key, own)
        return self._arrays[2]

    def _in_own_shape(self, values: np.ndarray) -> Tensor:
        y = torch.from_numpy(np.array(values, dtype=np.float32))
        if self.expected is None:
            return y[None] if y.ndim < 2 else y  # the checkpoint identity reports the shapes
        return y[(None,) * (len(self.expected) + 1 - y.ndim)]


def load_measured(
    path: str | Path,
    physics: Physics,
    image_shape: tuple[int, ...],
    range: str | Sequence[float] | None = None,
    axes: str | None = None,
) -> Tensor:
    """The measurement of one file, as in :class:`MeasuredData`; missing pixels become zero.

    Raises:
        InputError: If the file is missing or can't be read, does not fit the operator, or holds several measurements.
    """
    data = MeasuredData(image_shape, physics, path, range=range, axes=axes)
    if len(data) != 1:
        raise InputError(f"one measurement is expected, but '{path}' has {len(data)}; use MeasuredData")
    return data[0].y


def _real_picture(path: Path) -> np.ndarray:
    """Real numbers of a picture for an operator that does not measure images."""
    picture = read_picture(path)
    if isinstance(picture, Image.Image) or picture.dtype.kind != "f":
        raise InputError(
            f"this operator does not measure images, but '{path}' holds the integers of a picture, whose unit is not "
            "known; save the measurement as real numbers with numpy.save"
        )
    return picture


def _seen(physics: Physics, size: tuple[int, ...]) -> Tensor | None:
    """Values that are measured; with shape :math:`(C, H, W)`; None if all are."""
    if not isinstance(physics, MASKED) or physics.mask is None or physics.mask.shape[-2:] != size:
        return None
    return physics.mask[0] > 0


def _seen_values(seen: Tensor, channels: int) -> np.ndarray:
    """Values of a picture that are measured, with shape :math:`(H, W, C)`, where C may be 1."""
    return (seen.movedim(0, -1) if len(seen) == channels else seen.any(0)[..., None]).numpy()


@torch.no_grad()
def _shape_of(physics: Physics, image_shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Shape of one measurement; None if the operator does not take images of this shape, which the identity reports."""
    try:
        return tuple(physics.A(torch.zeros(1, *image_shape)).shape[1:])
    except (RuntimeError, ValueError, IndexError) as error:
        log.debug("%s does not take a black image: %s", type(physics).__name__, error)
        return None


@torch.no_grad()
def _measures_images(physics: Physics, image_shape: tuple[int, ...]) -> bool:
    """Whether black and white stay black and white where they are measured: then measurements are images too."""
    if isinstance(physics, TakesArrays) or len(_shape_of(physics, image_shape) or ()) != 3:
        return False
    black, white = (physics.A(torch.full((1, *image_shape), value)) for value in (-1.0, 1.0))
    seen = (white != 0) | (black != 0)
    return bool(seen.any() and (white[seen] - 1).abs().max() < 0.02 and (black[seen] + 1).abs().max() < 0.02)
