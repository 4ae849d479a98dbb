"""Checkpoints that a kill, a full disk or a flipped bit does not cost a run."""

import io
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from rlsd_lightning.errors import InputError, first_line

__all__ = ["LAST", "PREVIOUS", "AtomicCheckpointIO", "checkpoint_to_resume", "put_aside"]

log = logging.getLogger(__name__)

LAST = "last.ckpt"
"""The newest checkpoint of a folder."""
PREVIOUS = "previous.ckpt"
"""The one before it, in case that can't be used."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target and renames it; the one that was there becomes ``previous.ckpt``.

    So at every instant one of the two is complete. The file's checksums are verified when it is read. The strategy
    calls it in the first process of a group only.

    Raises:
        InputError: When a checkpoint to resume from can't be read, or is damaged.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        path = Path(path)
        path.parent.mkdir(exist_ok=True)  # but not its parents: a run's folder that was deleted stays so
        partial = path.with_name(path.name + ".partial")
        content = io.BytesIO()  # a full disk then says so; torch would speak of positions
        torch.save(checkpoint, content)
        with partial.open("wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        if path.name == LAST and path.exists():
            os.replace(path, path.with_name(PREVIOUS))
        os.replace(partial, path)
        if os.name == "nt":
            return  # Windows opens no folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def load_checkpoint(self, path: str | Path, *arguments: Any, **options: Any) -> dict[str, Any]:
        try:
            with zipfile.ZipFile(path) as file:  # torch reads damaged numbers without a word
                damaged = file.testzip()
            if damaged:
                raise EOFError(f"'{damaged}' in it does not agree with its checksum")
            return super().load_checkpoint(path, *arguments, **options)
        except OSError:
            raise  # the disk's fault, not the file's
        except Exception as error:  # the unpickler raises whatever the damage leads it to
            raise InputError(
                f"'{path}' can't be read as a checkpoint ({first_line(error)}); remove it to start the measurement again"
            ) from error


def put_aside(path: Path) -> None:
    """Rename a checkpoint that can't be used, so that the next save does not keep it as the previous one."""
    if path.is_file():
        os.replace(path, path.with_name("unusable.ckpt"))


def checkpoint_to_resume(path: Path, check: Callable[[dict], None] = lambda _: None) -> Path | None:
    """A checkpoint, or where that can't be used the one before it; None if there is neither.

    ``check`` is called with its content, and raises an InputError if that belongs to another run.

    Raises:
        InputError: If there are some, and none can be used.
    """
    candidates = [path, path.with_name(PREVIOUS)] if path.name == LAST else [path]
    problem = None
    for candidate in filter(Path.is_file, candidates):
        try:
            check(AtomicCheckpointIO().load_checkpoint(candidate, map_location="cpu", weights_only=True))
        except InputError as error:
            problem = problem or error
            continue
        if problem is not None:
            log.warning("%s. Going on from the one before it", problem)
        return candidate
    if problem is not None:
        raise problem
    return None
