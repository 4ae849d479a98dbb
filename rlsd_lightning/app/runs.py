"""Runs of the page: one at a time on the device, each browser in turn."""

import logging
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from lightning.pytorch.callbacks import Callback
from PIL import Image

from rlsd_lightning.app.choices import Choice
from rlsd_lightning.app.pictures import zip_folder
from rlsd_lightning.app.watch import Watch
from rlsd_lightning.engine.callbacks import EndEarly
from rlsd_lightning.errors import InputError, StoppedError, first_line

__all__ = ["MOST_WAITING", "Queue", "Run", "Solve", "State"]

log = logging.getLogger(__name__)

Solve = Callable[[Sequence[str], Path, str, Sequence[Callback], Callable[[str], None]], None]
"""Solves what settings say, as the command line does.

Its arguments are all settings, the run's folder, the command line to keep there, callbacks, and what takes the log's
warnings. It raises an InputError whose message is the command's own line.
"""
MOST_WAITING = 50
"""Runs that may wait, of all browsers together."""


class State(Enum):
    """Where a run is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(eq=False)
class Run:
    """One run, as the page sees it while it waits, goes and has ended.

    Attributes:
        owner: The browser tab that asked for it.
        folder: Its own folder, which holds ``inputs/`` and the results.
        choice: What was chosen.
        title: Its name in the list of runs.
        state: Where it is; of an ended one nothing changes any more.
        step: Steps taken.
        steps: Steps that there are.
        pictures: What the particles look like now.
        warnings: Warnings of the log.
        said: Why it failed, in one line.
        stop: Set to end the run with what it has.
        cancel: Set to end the run without a result.
        version: Grows with every change.
    """

    owner: str
    folder: Path
    choice: Choice
    title: str
    state: State = State.WAITING
    step: int = 0
    steps: int = 0
    pictures: Sequence[Image.Image] = ()
    warnings: list[str] = field(default_factory=list)
    said: str = ""
    stop: threading.Event = field(default_factory=threading.Event)
    cancel: threading.Event = field(default_factory=threading.Event)
    version: int = 0

    @property
    def has_ended(self) -> bool:
        """Whether it is neither waiting nor running."""
        return self.state not in (State.WAITING, State.RUNNING)

    @property
    def command(self) -> str:
        """The command line that does the same in the unpacked folder."""
        return self.choice.command(self.folder)

    @property
    def archive(self) -> Path:
        """The zip of the run's folder, which a finished run has."""
        return self.folder.with_suffix(".zip")

    def show(self, step: int, steps: int, pictures: Sequence[Image.Image] | None) -> None:
        """Take in what a step has made; None: the pictures are not new."""
        self.step, self.steps = step, steps
        self.pictures = self.pictures if pictures is None else pictures
        self.version += 1

    def enter(self, state: State, said: str = "") -> None:
        """Change the state."""
        self.state, self.said = state, said
        self.version += 1


class Queue:
    """Runs that wait for the device, and the thread that solves them.

    Whoever was served last is last in turn, so that a browser with ten runs does not make another one wait for all ten.

    Args:
        solve: Solves one run.
    """

    def __init__(self, solve: Solve) -> None:
        self._solve = solve
        self._waiting: list[Run] = []
        self._running: Run | None = None
        self._last_owner = ""
        self._afterwards: list[Callable[[], None]] = []
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="runs", daemon=True)
        self._thread.start()

    def submit(self, run: Run) -> None:
        """Put a run into the queue.

        Raises:
            InputError: If the queue is full.
        """
        with self._changed:
            if len(self._waiting) >= MOST_WAITING:
                raise InputError(
                    f"{MOST_WAITING} runs are waiting, and no more are taken; try again when some have ended"
                )
            self._waiting.append(run)
            self._changed.notify()

    def ahead(self, run: Run) -> int:
        """Number of runs that come before a waiting one."""
        with self._changed:
            order = self._order()
            return order.index(run) + (self._running is not None) if run in order else 0

    def cancel(self, runs: Sequence[Run]) -> None:
        """Take waiting runs out of the queue, and end a running one after its step."""
        with self._changed:
            for run in runs:
                run.cancel.set()
                if run in self._waiting:
                    self._waiting.remove(run)
                    run.enter(State.CANCELLED)

    def forget(self, runs: Sequence[Run], remove: Callable[[], None]) -> None:
        """Cancel runs, and call what removes their files once none of them is running."""
        self.cancel(runs)
        with self._changed:
            if self._running in runs:
                self._afterwards.append(remove)
                return
        remove()

    def close(self, seconds: float = 60.0) -> None:
        """Cancel all runs, and wait until none is running, but no longer than some seconds."""
        with self._changed:
            self._is_closed = True
            runs = [*self._waiting, *([self._running] if self._running else [])]
            self._changed.notify()
        self.cancel(runs)
        self._thread.join(seconds)

    def _order(self) -> list[Run]:
        """The waiting runs in the order of their turns: every browser's first, then every browser's second."""
        before = Counter({self._last_owner: 1})
        turns = []
        for run in self._waiting:
            turns.append(before[run.owner])
            before[run.owner] += 1
        return [run for _, run in sorted(zip(turns, self._waiting, strict=True), key=lambda turn: turn[0])]

    def _next(self) -> Run | None:
        """The run whose turn it is, once there is one; None: the queue is closed."""
        with self._changed:
            self._running = None
            afterwards, self._afterwards = self._afterwards, []
            for remove in afterwards:
                remove()
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            if self._is_closed:
                return None
            run = self._order()[0]
            self._waiting.remove(run)
            self._running, self._last_owner = run, run.owner
            run.enter(State.RUNNING)
            return run

    def _work(self) -> None:
        while run := self._next():
            callbacks = [Watch(run.show, run.cancel.is_set), EndEarly(run.stop.is_set)]
            try:
                self._solve(run.choice.settings(), run.folder, run.command, callbacks, run.warnings.append)
                zip_folder(run.folder, run.archive)
            except StoppedError:
                run.enter(State.CANCELLED)
            except InputError as error:
                run.enter(State.FAILED, str(error).replace(f"{run.folder}/", ""))
            except Exception as error:  # noqa: BLE001  the other browsers' runs go on
                log.error("%s", traceback.format_exc())
                said = f"{type(error).__name__}: {first_line(error)}; the terminal of the page has the traceback"
                run.enter(State.FAILED, said)
            else:
                run.enter(State.DONE)
