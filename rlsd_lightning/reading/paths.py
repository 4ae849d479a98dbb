"""Files of a path, folder or glob pattern, and keys inside files."""

import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from rlsd_lightning.errors import InputError, first_line, printable

__all__ = [
    "ARRAYS",
    "PICTURES",
    "absolute",
    "conversion_of",
    "find_images",
    "is_array",
    "name_of",
    "reading",
    "split_key",
]

log = logging.getLogger(__name__)

PICTURES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".apng"),
    *(".jp2", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".avif"),
)
"""Suffixes of the files that Pillow reads."""
ARRAYS = (
    *(".npy", ".npz", ".pt", ".pth", ".safetensors", ".mat", ".h5", ".hdf5"),
    *(".dcm", ".dicom", ".nii", ".nii.gz"),
)
"""Suffixes of the files that hold arrays."""
CONVERSIONS = {
    (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v"): "take its frames out: ffmpeg -i FILE frames/%04d.png",
    (".heic", ".heif", ".jxl"): "save it as PNG: magick FILE picture.png",
    (".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2"): "develop it to a 16-bit PNG in a raw converter",
    (".psd", ".xcf", ".kra", ".ai"): "export it as PNG from the program that made it",
    (".svg", ".eps", ".pdf"): "draw it in pixels: magick -density 150 FILE picture.png",
    (
        *(".exr", ".hdr", ".fits", ".fit", ".czi", ".nd2", ".lif"),
        *(".svs", ".mha", ".mhd", ".nrrd", ".raw", ".bin", ".csv"),
    ): "load it in Python and save the array by numpy.save",
    (".zip", ".tar", ".gz", ".7z", ".rar"): "unpack it and give the folder",
}
"""What to do with files of other kinds, by their suffixes."""
KEYED = re.compile(r"(?P<file>.+\.(?:npz|pt|pth|safetensors|mat|h5|hdf5)):(?P<key>[^:\\]+)", re.IGNORECASE)
"""A file and the key of an array in it, such as ``scan.h5:group/kspace``."""


def split_key(where: str | Path) -> tuple[Path, str | None]:
    """The file and the key in it, of ``file.h5:key``; the key is None for any other path."""
    keyed = KEYED.fullmatch(str(where))
    return (Path(where), None) if keyed is None or Path(where).exists() else (Path(keyed["file"]), keyed["key"])


def is_array(path: Path) -> bool:
    """Whether a file holds an array rather than a picture."""
    name = path.name.lower()
    return name.endswith(ARRAYS) or ("." not in name and _is_dicom(path))


def _is_dicom(path: Path) -> bool:
    """Whether a file without a suffix is a DICOM file, as scanners write them."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def find_images(where: str | Path, what: str = "images") -> list[Path]:
    """Files of a file, folder or glob pattern, in natural order (frame2 before frame10).

    Hidden files are left out. Of a folder, the pictures are taken; its arrays if it has no pictures.

    Args:
        where: The file, folder or pattern.
        what: The argument's name, for messages.

    Raises:
        InputError: If no file is found.
    """
    path, is_folder = Path(where), bool(str(where)) and os.path.isdir(where)
    if is_folder:
        with reading(path, "a folder", "give another, or leave to read it"):
            files = [file for file in path.iterdir() if not file.name.startswith(".") and file.is_file()]
        found = [file for file in files if file.suffix.lower() in PICTURES] or [
            each for each in files if is_array(each)
        ]
        _log_skipped(path, files, found)
    elif os.path.isfile(where):
        found = [path]
    else:
        folder = next((each for each in path.parents if os.path.isdir(each)), Path())  # its name may have brackets
        pattern = os.path.join(glob.escape(str(folder)), path.relative_to(folder))
        found = [Path(file) for file in glob.glob(pattern, recursive=True)]
        found = [file for file in found if os.path.isfile(file) and not file.name.startswith(".")]
    if not found:
        kind = f"a folder with images ({', '.join(PICTURES)})" if is_folder else "an image, a folder or a pattern"
        advice = _folder_advice(path) if is_folder else ""
        raise InputError(f"{what} must be {kind}, but nothing was found at '{where}'{advice}")
    return sorted(found, key=_natural)


def _natural(path: Path) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]


def _log_skipped(folder: Path, files: list[Path], found: list[Path]) -> None:
    """Logs which pictures and arrays of a folder are left out."""
    known = {*ARRAYS, *(suffix for suffixes in CONVERSIONS for suffix in suffixes)}
    taken = set(found)
    left = Counter(file.suffix.lower() for file in files if file not in taken and file.suffix.lower() in known)
    if found and left:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(left.items()))
        log.info("%s: %d files are taken, others are left out (%s)", printable(folder), len(found), kinds)


def _folder_advice(folder: Path) -> str:
    advised = [(file, conversion_of(file)) for file in sorted(folder.iterdir()) if not file.name.startswith(".")]
    return next((f"; '{file.name}': {advice}" for file, advice in advised if advice), "")


def conversion_of(path: Path) -> str:
    """How to convert a file that is neither a picture nor an array that can be read; empty if it is one."""
    suffix = path.suffix.lower()
    return next((advice for suffixes, advice in CONVERSIONS.items() if suffix in suffixes), "")


@contextmanager
def reading(path: Path, what: str = "an image", advice: str = "remove it or save it again") -> Iterator[None]:
    """Turns whatever a library raises into an error that names the file.

    Raises:
        InputError: In place of any other exception.
    """
    try:
        yield
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(
            f"'{path}' has more than {2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} megapixels, which may be a decompression "
            "bomb; make it smaller"
        ) from error
    except UnidentifiedImageError as error:  # whose message names the open file
        raise InputError(
            f"'{path}' can't be read as {what} (no known format); {conversion_of(path) or advice}"
        ) from error
    except Exception as error:  # libraries raise nearly anything for broken bytes
        advice = conversion_of(path) or advice
        raise InputError(f"'{path}' can't be read as {what} ({first_line(error)}); {advice}") from error


def name_of(path: Path) -> str:
    """A file's name without suffix, as the name of a folder."""
    return printable(path.name[: -len(".nii.gz")] if path.name.lower().endswith(".nii.gz") else path.stem)


def absolute(where: str | Path) -> str:
    """An absolute path, with the key of an array if there is one."""
    file, key = split_key(where)
    return os.path.abspath(file) + (f":{key}" if key else "")
