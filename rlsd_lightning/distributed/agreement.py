"""Agreement of a group's processes on a failure, so that none waits for another that has failed."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rlsd_lightning.distributed.shard import Shard
from rlsd_lightning.errors import (
    FailedError,
    InputError,
    LostError,
    NonFiniteError,
    PeerError,
    StoppedError,
    first_line,
    is_of_storage,
    is_out_of_memory,
)

__all__ = ["together"]

log = logging.getLogger(__name__)

PASSING = (FailedError, LostError, NonFiniteError, StoppedError)
"""Errors that all processes of a group raise together, or that end the run."""

Value = TypeVar("Value")


def together(shard: Shard, work: Callable[[], Value], folder: Path | None = None, is_last: bool = False) -> Value:
    """Do work in all processes of a group; if it fails in one process, it fails in all.

    Any exception is a failure, whichever library raises it. Its traceback goes to the log at debug level.

    Args:
        shard: This process's place in its group.
        work: What every process of the group does, exchanges with the others included.
        folder: The run's folder; an error of its disk ends the run, and is not a failure of this work.
        is_last: Whether no work follows; the failure then keeps the exception, which holds memory. After one of memory the same
            work follows, with fewer particles at a time.

    Raises:
        FailedError: If the work has failed in any process.
    """
    reason, kept, no_memory = None, None, False
    try:
        value = work()
        shard.agree()  # processes that write results may fail after the last exchange
        return value
    except PASSING:
        raise
    except PeerError as error:
        no_memory = error.out_of_memory
    except Exception as error:
        if folder is not None and is_of_storage(error, folder):
            raise
        if isinstance(error.__cause__, InputError):  # Hydra's error around it says less
            error = error.__cause__
        reason, no_memory = _reason(error), is_out_of_memory(error)
        kept = error if is_last and not no_memory else None
        if not (no_memory or isinstance(error, InputError)):
            log.debug("%s", reason, exc_info=True)
        no_memory |= shard.announce_failure(no_memory)
    # not in the handler: the exception holds the frames of the failed step, and these its memory
    raise FailedError(shard.first_text(reason), no_memory, kept)


def _reason(error: Exception) -> str:
    """What an exception says in one line; one that is not the package's own with its kind."""
    if isinstance(error, InputError):
        return " ".join(str(error).split())
    if is_out_of_memory(error):
        return first_line(error)
    kind = type(error).__name__
    return f"{kind}: {first_line(error)}".removesuffix(f": {kind}") + " (the log has the traceback)"
