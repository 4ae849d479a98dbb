"""Measured data without a truth."""

import logging
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from deepinv.physics import Physics
from PIL import Image
from torch import Tensor

from rlsd_lightning.data.files import FileMeasurements
from rlsd_lightning.data.sizes import AnySize
from rlsd_lightning.data.sources import Source
from rlsd_lightning.errors import InputError
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.operators.likelihood import MASKED, last_operator, noise_std
from rlsd_lightning.operators.medical import Scan
from rlsd_lightning.operators.pixels import PerPicture, observed_in_picture, seen_by
from rlsd_lightning.reading.arrays import TakesArrays, read_array
from rlsd_lightning.reading.frames import Frame
from rlsd_lightning.reading.paths import is_array
from rlsd_lightning.reading.pictures import read_picture
from rlsd_lightning.reading.stacks import Stack
from rlsd_lightning.reading.values import Range, check_finite, measured_range, scaled
from rlsd_lightning.signatures import typed

__all__ = ["MeasuredData", "load_measured"]

log = logging.getLogger(__name__)

SLOW = 2.0
"""Pixels of an image over those of the largest that a picture becomes, from which a warning says so."""


class MeasuredData(FileMeasurements):
    """Measured files, read on access: pictures and arrays of pictures if the operator measures images, else its arrays.

    Args:
        image_shape: Shape of the prior's images.
        physics: The operator for images of this shape, or for any size; its mask is applied, and a grey picture gets as many
            channels as :math:`A(x)` has. Images have the size that the measurement implies, continued to the next multiples
            that the prior takes. Pictures that are too large are reduced where the operator measures pixels one by one.
        measurement: A file, folder or glob. An array has the shape of :math:`A(x)`, where leading axes of length one may
            lack, or holds several of them along its first axis.
        limit: Number of measurements to use; all by default.
        sequence: Whether they are frames or slices in order.
        range: Values of an image that mean black and white, like ``axes`` as in :class:`~rlsd_lightning.images.Reader`.
        axes: Order of an array's axes.

    Raises:
        InputError: If nothing is found; on access, if a file can't be read or does not fit the operator.
    """

    @typed
    def __init__(
        self,
        image_shape: tuple[int, ...],
        physics: Physics | AnySize,
        measurement: str | Path,
        limit: int | None = None,
        sequence: bool = False,
        range: str | Sequence[float] | None = None,
        axes: str | None = None,
    ) -> None:
        super().__init__(image_shape, physics, limit, sequence, range, axes)
        self._arrays: tuple[Path, str | None, Tensor | np.ndarray] | None = None
        self.physics, self.expected, self.factor, self.of_images = None, self.image_shape, 1, True
        if not self.operators.measures_pixels:
            self._try_operator()
        if not self.of_images and (range or axes):
            raise InputError("range and axes are of images, which this operator does not measure; leave both out")
        self.find(measurement, "measurement", self._count)

    def _try_operator(self) -> None:
        """Find out by trial whether the operator measures images, and of which shape."""
        self.physics, shape = self.operators.physics(), self.operators.typical_shape
        if isinstance(self.physics, PerPicture):
            return
        self.expected = _shape_of(self.physics, shape)
        self.of_images = _measures_images(self.physics, shape)
        if self.of_images:
            factors = {length / measured for length, measured in zip(shape[1:], self.expected[1:], strict=True)}
            factor = factors.pop()
            self.factor = int(factor) if not factors and factor == int(factor) else None

    def __getitem__(self, index: int) -> Measurement:
        source = self.source(index)
        if not self.of_images:
            return Measurement(source.name, *self._values(source), series=self.series, image_shape=self.image_shape)
        y, physics, frame, limits = self._image(source)
        shape, original = (self.image_shape[0], *frame.image_size), self.original(source, frame, self.factor, limits)
        return Measurement(source.name, y, physics, series=self.series, image_shape=shape, original=original)

    def _count(self, path: Path, key: str | None) -> int:
        return len(self._stack(path, key) if self.of_images else self._of_instrument(path, key))

    def _stack(self, path: Path, key: str | None) -> Stack:
        return self._reader.stack(path, key, self.expected)

    def _image(self, source: Source) -> tuple[Tensor, Physics, Frame, Range]:
        """A measured image in the units of an image in [-1, 1], its operator, its picture's place in the image, and range."""
        stack = self._stack(source.path, source.key)
        values = np.asarray(stack.page(source.page))
        frame = self._frame(source, values.shape[:2])
        physics = self.physics_of(source, frame)
        place = frame.reduced(self.factor) if (self.factor or 1) > 1 else frame  # of the measurement in its image
        seen = _seen(physics, place.image_size)
        counted = seen if frame.is_trivial else _seen_in_picture(last_operator(physics), place)
        decide = partial(
            measured_range,
            asked=self._reader.asked or stack.range,
            what=source.path,
            noise_std=noise_std(physics.noise_model, torch.ones(1)),
        )
        limits = stack.limits(decide, values, None if counted is None else _seen_values(counted, values.shape[-1]))
        self._reader.notes(source.path, limits.note)
        if frame.fitted_size != frame.picture_size:
            self._reader.notes(source.path, frame.describe())
        elif (ratio := math.prod(frame.image_size) / math.prod(self.operators.largest)) > SLOW:
            (height, width), (usual_height, usual_width) = frame.image_size, self.operators.largest
            said = f"solved at {width}x{height}, as this measurement can't be reduced; that takes about {ratio:.0f} times as long"
            self._reader.notes(
                source.path, f"{said} as {usual_width}x{usual_height}; crop it if it is too long", logging.WARNING
            )
        y = torch.from_numpy(scaled(values, limits)).movedim(-1, 0)[None]
        y = self._with_channels(y, source)
        if not frame.is_trivial:
            y = _in_image(y, counted, frame.reduced(self.factor))
        return y if seen is None else torch.where(seen, y, 0), physics, frame, limits

    def _frame(self, source: Source, size: tuple[int, int]) -> Frame:
        """Where the picture of a measurement lies in the image: as it is, unless it is too large and may be reduced."""
        if self.factor is not None:
            return self.operators.measured_frame(tuple(length * self.factor for length in size))
        (height, width), expected = self.operators.typical_shape[1:], self.expected[1:]
        if size != expected:
            raise InputError(
                f"a measurement of {expected[1]}x{expected[0]} pixels is expected from images of {width}x{height}, but "
                f"'{source.path}' has {size[1]}x{size[0]}; crop and resize it, or set image_size"
            )
        return Frame.whole((height, width), (height, width))

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


@typed
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
    last = last_operator(physics)
    if not isinstance(last, MASKED) or last.mask is None or last.mask.shape[-2:] != size:
        return None
    return seen_by(last.mask)


def _seen_in_picture(physics: Physics, frame: Frame) -> Tensor | None:
    """Pixels of a picture that are measured, with shape :math:`(1, H, W)`; None if all are."""
    seen = observed_in_picture(physics, frame)
    if seen is None:
        return None
    whole = Image.new("L", frame.picture_size[::-1])
    whole.paste(seen, frame.pixel_box)
    return torch.from_numpy(np.array(whole) > 0)[None]


def _in_image(y: Tensor, seen: Tensor | None, frame: Frame) -> Tensor:
    """A measured picture at the size of the image; where it is reduced, the mean of the pixels that are seen."""
    if frame.fitted_size == frame.picture_size:
        return frame.of_values(y)
    seen = torch.ones(1, *frame.picture_size) if seen is None else seen.float()

    def mean(values: Tensor) -> Tensor:
        return torch.from_numpy(np.array(frame.of_picture(Image.fromarray(values.numpy()), Image.Resampling.BOX)))

    share = mean(seen[0])
    channels = [mean(torch.where(seen[0] > 0, each, 0)) / share.clamp_min(1e-6) for each in y[0]]
    return torch.stack(channels)[None]


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
    # a camera's black is not quite black: its curve has no slope at zero
    return bool(seen.any() and (white[seen] - 1).abs().max() < 0.02 and (black[seen] + 1).abs().max() < 0.05)
