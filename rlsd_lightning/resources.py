"""Files that come with the package: configs and embedded data."""

from pathlib import Path

from rlsd_lightning.errors import InputError
from rlsd_lightning.signatures import typed

__all__ = ["CONFIGS", "PROJECT", "embedded"]

_PACKAGE = Path(__file__).resolve().parent
PROJECT = installed if (installed := _PACKAGE / "_project").is_dir() else _PACKAGE.parent
"""Folder of ``configs/`` and ``data/``: inside an installed package, else the repository."""
CONFIGS = PROJECT / "configs"


@typed
def embedded(name: str) -> Path:
    """Path of an embedded file or folder, such as ``priors/faces``, ``faces/heldout/000.png`` or ``photos``.

    Args:
        name: Path below ``data/`` in the repository.

    Raises:
        InputError: If there is no such file.
    """
    path = PROJECT / "data" / name
    if not path.exists():
        parent = next(folder for folder in path.parents if folder.is_dir())
        known = ", ".join(sorted(each.name for each in parent.iterdir()))
        raise InputError(f"an embedded file is expected, got '{name}'; '{parent}' has {known}")
    return path
