"""Data sets of photographs that ``deepinv.datasets`` fetches."""

import re
from pathlib import Path

import deepinv
from deepinv.datasets import ImageFolder

from rlsd_lightning.errors import InputError, first_line

__all__ = ["folder_of"]

NAMED = re.compile(r"deepinv:(?P<name>\w+)(:(?P<mode>\w+))?")
"""A data set, and one of its parts, such as ``deepinv:DIV2K:val``."""


def folder_of(images: str | Path) -> str | Path:
    """Folder of the pictures of ``deepinv:NAME``, a class of ``deepinv.datasets``; any other place is returned unchanged.

    Raises:
        InputError: If there is no such data set, or it was not fetched.
    """
    named = NAMED.fullmatch(str(images))
    if named is None:
        return images
    every = {name: kind for name, kind in vars(deepinv.datasets).items() if _holds_pictures(kind)}
    name, mode = named["name"], named["mode"]
    if name not in every:
        raise InputError(f"images: deepinv:NAME is expected with one of {', '.join(sorted(every))}, got '{images}'")
    settings = {} if mode is None else {"mode": mode}
    given = "".join(f"{key}='{value}', " for key, value in settings.items())
    try:
        return every[name](**settings).root
    except RuntimeError as error:
        raise InputError(
            f"'{images}' is not here, or a file of it is missing; fetch it with: "
            f'python -c "import deepinv; deepinv.datasets.{name}({given}download=True)"'
        ) from error
    except (TypeError, ValueError) as error:
        raise InputError(f"'{images}' has no such part ({first_line(error)}); leave :{mode} out") from error


def _holds_pictures(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, ImageFolder) and kind is not ImageFolder
