"""The pictures and arrays of a file, folder or pattern, each with a name."""

import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rlsd_lightning.errors import InputError, printable
from rlsd_lightning.reading.paths import find_images, name_of, split_key

__all__ = ["Source", "find_sources"]


OF_THE_RUN = (
    *("report.html", "summary.csv", "failed.csv", "train.log", "chosen.json", "sequence.mp4", "sequence.npy"),
    *(".hydra", ".failed", ".lock", "multirun.yaml", "study.csv", "study.png", "metrics.json"),
)
"""Names in a run's folder that no measurement can have."""


class Source(NamedTuple):
    """One picture or array.

    Attributes:
        name: Name of the results' folder, and key of the noise.
        path: The file.
        key: The array in the file, if it holds several.
        page: The picture's place in the file.
        stem: Name of the file, which masks may share.
    """

    name: str
    path: Path
    key: str | None
    page: int
    stem: str


def find_sources(where: str | Path, what: str, count: Callable[[Path, str | None], int]) -> list[Source]:
    """Everything in a file, folder or pattern.

    Names depend on all files: the stem, with suffix and number for shared stems, and a number for each picture of a file
    that holds several. Stems that differ only in case are shared, as many disks make one folder of them.

    Args:
        where: The place; ``file.h5:key`` chooses one of several arrays.
        what: The argument's name, for messages.
        count: Number of pictures in a file.

    Raises:
        InputError: If nothing is found, or the only file can't be read.
    """
    file, key = split_key(where)
    files = find_images(where if key is None else file, what)
    sources: list[Source] = []
    for path, name in zip(files, _unique_names(files), strict=True):
        try:
            pages = count(path, key)
        except InputError:
            if len(files) == 1:
                raise
            pages = 1  # the error comes again where this one is read, and costs no other
        stem, first = name_of(path), "" if len(files) == 1 else f"{name}_"
        sources += [Source(f"{first}{page:04d}" if pages > 1 else name, path, key, page, stem) for page in range(pages)]
    taken = Counter(_folded(source.name) for source in sources)
    return [
        source if taken[_folded(source.name)] == 1 else source._replace(name=f"{source.name}_{number}")
        for number, source in enumerate(sources)
    ]


def _unique_names(files: list[Path]) -> list[str]:
    """Unique names of files: the stem; for shared stems, and names of the run's own files, suffix and number are appended."""
    stems = [name_of(file) for file in files]
    shared = Counter(map(_folded, (*stems, *OF_THE_RUN)))
    taken = {name for name, count in shared.items() if count == 1 or name in OF_THE_RUN}
    names = []
    for file, stem in zip(files, stems, strict=True):
        name = stem
        if shared[_folded(name)] > 1:
            base = name = printable(file.name).replace(".", "_")
            number = 2
            while _folded(name) in taken:
                name, number = f"{base}_{number}", number + 1
            taken.add(_folded(name))
        names.append(name)
    return names


def _folded(name: str) -> str:
    """What names have in common that are one folder on a disk that ignores case and the form of Unicode."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
