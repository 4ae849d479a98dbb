"""The pictures and arrays of a file, folder or pattern, each with a name."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rlsd_lightning.errors import InputError, printable
from rlsd_lightning.reading.paths import find_images, name_of, split_key

__all__ = ["Source", "find_sources"]


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
    that holds several.

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
    taken = Counter(source.name for source in sources)
    return [
        source if taken[source.name] == 1 else source._replace(name=f"{source.name}_{number}")
        for number, source in enumerate(sources)
    ]


def _unique_names(files: list[Path]) -> list[str]:
    """Unique names of files: the stem; for shared stems suffix and number are appended."""
    stems = [name_of(file) for file in files]
    shared = Counter(stems)
    taken = {stem for stem, count in shared.items() if count == 1}
    names = []
    for file, stem in zip(files, stems, strict=True):
        name = stem
        if shared[name] > 1:
            base = name = printable(file.name).replace(".", "_")
            number = 2
            while name in taken:
                name, number = f"{base}_{number}", number + 1
            taken.add(name)
        names.append(name)
    return names
