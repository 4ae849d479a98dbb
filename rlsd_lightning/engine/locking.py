"""One run at a time in a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlsd_lightning.errors import InputError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

__all__ = ["only_run_in"]


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Holds a folder's lock, which ends with the process, however it ends.

    Raises:
        InputError: If another run holds it, or the folder can't be written to.
    """
    try:
        file = (folder / ".lock").open("wb")
    except OSError as error:
        raise InputError(
            f"the run's folder '{folder}' can't be written to ({error.strerror}); choose another"
        ) from error
    with file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"another run is working in '{folder}'; wait for it to end, or choose another output_dir"
                ) from error
        yield
