"""Browser tabs: what each has uploaded and run, and its removal."""

import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from PIL import Image

from rlsd_lightning.app.choices import Choice
from rlsd_lightning.app.pictures import preview, write_mask
from rlsd_lightning.app.runs import Queue, Run
from rlsd_lightning.errors import InputError

__all__ = ["Tab", "Tabs"]

MOST = 512
"""Most pixels of the longer side of an image from a damaged picture, which the choice of a size does not reduce."""
REDUCED = ("inpaint", "colorize")
"""Tasks whose damaged pictures are reduced."""


@dataclass(eq=False)
class Tab:
    """What one browser tab has.

    Attributes:
        name: The tab's name, which no other has.
        folder: Its folder, which is removed with it.
        since: When it was opened.
        picture: The file that it works on.
        size: Width and height of this picture.
        runs: Its runs, in the order they were asked for.
        chosen: The run that is shown.
        seen: Version of what is shown.
    """

    name: str
    folder: Path
    since: float = field(default_factory=time.time)
    picture: Path | None = None
    size: tuple[int, int] = (0, 0)
    runs: list[Run] = field(default_factory=list)
    chosen: Run | None = None
    seen: tuple = ()

    def take(self, file: Path) -> Image.Image:
        """Work on a copy of a file; returns what is painted on.

        Raises:
            InputError: If it can't be read; the tab then has no picture.
        """
        self.picture = None
        own = Path(tempfile.mkdtemp(dir=self.folder, prefix="picture")) / file.name
        shutil.copyfile(file, own)
        try:
            shown, self.size = preview(own)
        except InputError as error:
            raise InputError(str(error).replace(f"{own.parent}/", "")) from error
        self.picture = own
        return shown

    def ask(self, queue: Queue, choice: Choice, layers: list[Image.Image] | None) -> Run:
        """Put a run into the queue, with copies of its files.

        Args:
            queue: The queue.
            choice: What was chosen; its files are the tab's own.
            layers: What was painted, for a task with a mask.

        Raises:
            InputError: If there is no picture or no mask, a damaged picture is too large, or the queue is full.
        """
        if self.picture is None:
            raise InputError("a picture is expected, got none; choose an example, or drop one")
        side = max(self.size) * (choice.strength if choice.task == "super_resolution" else 1)
        if choice.is_damaged and choice.task not in REDUCED and side > MOST:
            raise InputError(
                f"a damaged picture keeps its size, and images of at most {MOST} pixels a side are made here, got {side:g}; "
                "reduce or crop it, or solve it by the command line"
            )
        number = len(self.runs) + 1
        folder = self.folder / f"run{number}"
        (folder / "inputs").mkdir(parents=True, exist_ok=True)  # of a run that was refused
        choice = replace(choice, picture=folder / "inputs" / self.picture.name)
        if layers is not None:
            choice = replace(choice, mask=folder / "inputs" / f"mask_of_{self.picture.stem}.png")
            write_mask(choice.mask, layers, self.size)
        shutil.copyfile(self.picture, choice.picture)
        run = Run(self.name, folder, choice, choice.title(number))
        queue.submit(run)
        self.runs.append(run)
        self.chosen = run
        return run


class Tabs:
    """All open tabs.

    Args:
        root: Folder of everything that tabs upload and make; gradio's cache is in it.
        cache: Gradio's cache of uploads and of pictures that were shown.
        queue: The queue that the tabs' runs are in.
    """

    def __init__(self, root: Path, cache: Path, queue: Queue) -> None:
        self._root, self._cache, self._queue = root, cache, queue
        self._tabs: dict[str, Tab] = {}
        self._lock = threading.Lock()
        self._own: set[Path] = set()

    def __getitem__(self, name: str) -> Tab:
        with self._lock:
            if name not in self._tabs:
                self._tabs[name] = Tab(name, Path(tempfile.mkdtemp(dir=self._root, prefix="tab")))
            return self._tabs[name]

    def keep_cached(self) -> None:
        """Keep what is in gradio's cache now: the page's own pictures."""
        self._own = set(self._cache.rglob("*"))

    def close(self, name: str) -> None:
        """Remove a tab's folder, and all in gradio's cache that is older than every tab that is left."""
        with self._lock:
            tab = self._tabs.pop(name, None)
            oldest = min((each.since for each in self._tabs.values()), default=float("inf"))
        if tab is not None:
            self._queue.forget(tab.runs, partial(shutil.rmtree, tab.folder))
        for file in self._cache.rglob("*"):
            if file not in self._own and file.is_file() and file.stat().st_ctime < oldest:
                file.unlink(missing_ok=True)
