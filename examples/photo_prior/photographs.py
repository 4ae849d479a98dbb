"""Fetches the training photographs: ``python -m examples.photo_prior.photographs``.

The table in ``PHOTOGRAPHS.md`` names each picture's package, file, author, licence and use. Debian's packages come by
``apt-get download`` (run ``apt-get update`` first), scikit-image by ``pip download``; nothing is installed. Pictures are
scaled down, laid on white where they are transparent, and written to the subfolders ``training`` and ``validation``.
"""

import argparse
import bz2
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from rlsd_lightning.reading.pictures import open_picture

__all__ = ["Photograph", "read_table"]

TABLE = Path(__file__).with_name("PHOTOGRAPHS.md")
PYTHON_PACKAGES = ("scikit-image",)
RACCOON = ("face.dat", (1024, 768))
"""SciPy's photograph, raw pixels in bzip2, and its size."""


class Photograph(NamedTuple):
    """A row of the table."""

    name: str
    package: str
    file: str
    author: str
    licence: str
    use: str


def read_table(table: Path = TABLE) -> list[Photograph]:
    """Rows of a Markdown table, without its two head lines."""
    lines = [line for line in table.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return [Photograph(*(cell.strip() for cell in line.strip("|").split("|"))) for line in lines[2:]]


def fetch(package: str, downloads: Path) -> Path:
    """Downloads a package if it is not there yet, and returns the folder with its files."""
    folder = downloads / package
    if folder.is_dir():
        return folder
    archives = downloads / "archives" / package
    archives.mkdir(parents=True, exist_ok=True)
    if package in PYTHON_PACKAGES:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", package]
        subprocess.run(command, cwd=archives, check=True)
        with zipfile.ZipFile(next(archives.glob("*.whl"))) as wheel:
            wheel.extractall(folder)
    else:
        subprocess.run(["apt-get", "download", package], cwd=archives, check=True)
        subprocess.run(["dpkg-deb", "-x", str(next(archives.glob("*.deb"))), str(folder)], check=True)
    return folder


def load(path: Path) -> Image.Image:
    """An upright RGB picture."""
    file, size = RACCOON
    if path.name == file:
        return Image.frombytes("RGB", size, bz2.decompress(path.read_bytes()))
    return open_picture(path)


def save(image: Image.Image, path: Path, max_side: int, quality: int) -> None:
    """Writes a picture whose longer side is at most ``max_side`` pixels."""
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS, reducing_gap=None)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=quality, method=6)


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=Path("build/photographs"), help="folder that gets the pictures")
    options.add_argument("--downloads", type=Path, default=Path("build/packages"), help="folder of the packages")
    options.add_argument("--max-side", type=int, default=1600, help="longest side in pixels")
    options.add_argument("--quality", type=int, default=90, help="quality of the WebP files, from 0 to 100")
    args = options.parse_args(arguments)
    rows = read_table()
    for row in rows:
        picture = load(fetch(row.package, args.downloads.resolve()) / row.file)
        save(picture, args.out / row.use / f"{row.name}.webp", args.max_side, args.quality)
    print(f"{len(rows)} photographs saved in {args.out}")


if __name__ == "__main__":
    main()
