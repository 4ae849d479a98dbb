"""The page's parts for tests: a solver on tiny networks, runs that need none, and a browser."""

import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from rlsd_lightning.app.choices import Choice
from rlsd_lightning.app.runs import Run
from rlsd_lightning.errors import StoppedError

__all__ = ["Scripted", "browser_path", "choice_of", "picture_file", "run_of"]


def browser_path() -> str | None:
    """The machine's Chromium or Chrome."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def picture_file(folder: Path, name: str = "picture.png", size: tuple[int, int] = (32, 32), seed: int = 0) -> Path:
    """A file with a smooth picture."""
    folder.mkdir(parents=True, exist_ok=True)
    colours = [(7 * seed + 40 * i) % 256 for i in range(12)]
    small = Image.frombytes("RGB", (2, 2), bytes(colours))
    small.resize(size, Image.Resampling.BILINEAR).save(folder / name)
    return folder / name


def choice_of(picture: Path = Path("picture.png"), **other: object) -> Choice:
    """A choice of a small run."""
    usual = {
        "mask": None,
        "task": "denoise",
        "strength": 0.2,
        "is_damaged": False,
        "prior": ("prior=faces",),
        "side": None,
        "particles": 2,
        "gamma": 0.2,
        "steps": 4,
        "seed": 0,
    }
    return Choice(picture=picture, **{**usual, **other})


def run_of(owner: str, folder: Path, number: int = 0) -> Run:
    """A run of a tab."""
    own = folder / owner / f"run{number}"
    own.mkdir(parents=True)
    return Run(owner, own, choice_of(own / "inputs" / "picture.png", seed=number), f"{owner}{number}")


class Scripted:
    """In place of a solver: keeps the order of the runs, and lets each go on only when it is told.

    A run's result is a file that names its command.
    """

    def __init__(self) -> None:
        self.order: list[str] = []
        self.go = threading.Semaphore(0)
        self.started = threading.Semaphore(0)
        self.error: Exception | None = None

    def __call__(
        self, settings: Sequence[str], folder: Path, command: str, callbacks: Sequence, warn: Callable[[str], None]
    ) -> None:
        self.order.append(f"{folder.parent.name}{settings[-1].removeprefix('seed=')}")
        self.started.release()
        watch = callbacks[0]
        while not self.go.acquire(timeout=0.01):
            if watch._is_cancelled():
                raise StoppedError("cancelled")
        if self.error is not None:
            raise self.error
        (folder / "result.txt").write_text(command)
