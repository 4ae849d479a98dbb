"""Errors that a user can mend, told apart from bugs: the command line prints them in one line."""

import errno
import math
import os
import re
from collections.abc import Callable, Iterable
from numbers import Integral
from pathlib import Path
from typing import Any

__all__ = [
    "STORAGE",
    "FailedError",
    "InputError",
    "LostError",
    "NonFiniteError",
    "PeerError",
    "StoppedError",
    "fetch_remedy",
    "first_line",
    "is_of_storage",
    "is_out_of_memory",
    "printable",
    "require",
    "require_all_weights",
    "require_at_least_one",
    "require_at_least_zero",
    "require_fraction",
    "require_integer",
    "require_one_of",
    "require_positive",
    "require_positive_fraction",
]

STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOENT, errno.EIO, errno.ESTALE)
"""Error numbers of a full, read-only or vanished disk."""
NO_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
"""Words of libraries' errors for a failed allocation, which have no class of their own."""


def first_line(error: Exception) -> str:
    """The first line of an error's message without colours; its kind if it has none, or only a key."""
    kind = type(error).__name__
    if isinstance(error, LookupError):
        return f"{kind}: {error}"
    return next(iter(re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip().splitlines()), kind)


def require_all_weights(missing: Iterable[str], prefix: str = "") -> None:
    """Checks that a network's files have all weights that begin with a prefix; diffusers leaves others random.

    Raises:
        OSError: With the first names of those that are missing.
    """
    lacking = sorted(name for name in missing if name.startswith(prefix))
    if lacking:
        raise OSError(f"it lacks the weights {', '.join(lacking[:3])}")


def fetch_remedy(pretrained: str | Path) -> str:
    """What to do if a folder, or a model of the hub, can't be loaded: only a model's name can be fetched."""
    is_name = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", str(pretrained)) and not Path(pretrained).exists()
    return "check the path" + (f", or fetch it with `hf download {pretrained}`" if is_name else "")


def printable(text: object) -> str:
    """A text with its undecodable bytes as ``%F6``: a file's name that is not UTF-8 can't be written or printed."""
    return re.sub("[\ud800-\udfff]", lambda found: f"%{ord(found[0]) & 0xFF:02X}", str(text))


def is_of_storage(error: BaseException, folder: Path) -> bool:
    """Whether an error is of the disk that holds a folder, or of an unknown file."""
    if not isinstance(error, OSError) or error.errno not in STORAGE:
        return False
    if not isinstance(error.filename, str | bytes):  # none is named, or an open file's number
        return True
    return Path(os.fsdecode(error.filename)).resolve().is_relative_to(folder.resolve())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's or the machine's memory is full."""
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
    return said or isinstance(error, MemoryError)


class InputError(ValueError):
    """What the user gave can't be used; the message says what was expected, what was found and what to do.

    Args:
        message: One line; names of files need not be :func:`printable`.
    """

    def __init__(self, message: object) -> None:
        super().__init__(printable(message))


class LostError(Exception):
    """Another process of the run has ended or can't be reached; what is saved is good. The message is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class NonFiniteError(ArithmeticError):
    """A loss or a particle became infinite or not a number; the last checkpoint is still good.

    Args:
        message: What happened.
        measurements: Names of those it happened to.
    """

    def __init__(self, message: str, measurements: list[str]) -> None:
        super().__init__(message)
        self.measurements = measurements


class StoppedError(Exception):
    """A signal ended the run between two steps; what it had is saved."""


class PeerError(Exception):
    """Another process of the group has failed, and says why.

    Args:
        out_of_memory: Whether its device's memory is full.
    """

    def __init__(self, out_of_memory: bool = False) -> None:
        super().__init__("another process of the group has failed")
        self.out_of_memory = out_of_memory


class FailedError(Exception):
    """Reading, measuring or solving some measurements has failed, in one process of the group or more.

    Args:
        reason: One line.
        out_of_memory: Whether a smaller batch may succeed.
        error: The exception, if it was kept.
    """

    def __init__(self, reason: str, out_of_memory: bool = False, error: Exception | None = None) -> None:
        super().__init__(reason)
        self.out_of_memory, self.error = out_of_memory, error


def require(ok: Callable[[Any], bool], expected: str, **settings: Any) -> None:
    """Raise an InputError for a setting that is not as expected."""
    for name, value in settings.items():
        try:
            accepted = ok(value)
        except TypeError:  # a word in place of a number
            accepted = False
        if not accepted:
            raise InputError(f"{name} must be {expected}, got {value!r}")


def require_integer(**settings: int | None) -> None:
    """Raise an InputError for a setting that is no whole number; None is none either, and accepted."""
    require(lambda value: value is None or isinstance(value, Integral), "an integer", **settings)


def require_at_least_zero(**settings: float) -> None:
    """Raise an InputError for a setting that is negative or not a number."""
    require(lambda value: value >= 0, "at least 0", **settings)


def require_positive(**settings: float) -> None:
    """Raise an InputError for a setting that is not above 0."""
    require(lambda value: 0 < value < math.inf, "above 0", **settings)


def require_at_least_one(**settings: int | None) -> None:
    """Raise an InputError for a number below 1, or one with a fraction; None is no number."""
    require_integer(**settings)
    require(lambda value: value is None or value >= 1, "at least 1", **settings)


def require_fraction(**settings: float) -> None:
    """Raise an InputError for a setting that is not in [0, 1]."""
    require(lambda value: 0 <= value <= 1, "from 0 to 1", **settings)


def require_positive_fraction(**settings: float) -> None:
    """Raise an InputError for a setting that is not in (0, 1]."""
    require(lambda value: 0 < value <= 1, "above 0 and at most 1", **settings)


def require_one_of(choices: Iterable[str], **settings: str) -> None:
    """Raise an InputError for a setting that is none of the choices."""
    require(lambda value: value in choices, f"one of {', '.join(choices)}", **settings)
