"""One run at a time in a folder."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlsd_lightning.errors import InputError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

__all__ = ["only_run_in"]

log = logging.getLogger(__name__)


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which ends with the process, however it ends; a warning where files can't be locked.

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
        try:
            if fcntl is None:
                raise OSError("this system has no fcntl")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"another run is working in '{folder}'; wait for it to end, or choose another output_dir"
            ) from error
        except OSError as error:  # such as a network's disk without locks
            log.warning("can't lock files in '%s' (%s); start no second run there", folder, error.strerror or error)
        yield
