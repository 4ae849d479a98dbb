"""Which processes of a run are still there, for those that exchange nothing for hours and meet at the end."""

import atexit
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from datetime import timedelta

from torch.distributed import Store

from rlsd_lightning.errors import LostError

__all__ = ["Attendance"]

SIGNS = 10
"""Signs of life that a process gives within the others' patience."""
GRACE = 5.0
"""Seconds that a sign of life which is under way may take when there are to be no more."""


class Attendance:
    """A list that every process of a run signs: while it works, when it has finished, when it leaves.

    A collective would give up on those that work for long, so the list is kept in a store. The first process watches
    the others' signs of life; the others find out about the first because its store no longer answers.

    Args:
        store: What all processes share; the first holds it.
        rank: This process's place among all.
        size: How many processes there are.
        patience: A process that gives no sign of life for so long is lost.
    """

    def __init__(self, store: Store, rank: int, size: int, patience: timedelta) -> None:
        self._store = store
        self._rank = rank
        self._others = [other for other in range(size) if other != rank]
        self._patience = patience.total_seconds()
        self._ended = threading.Event()
        self._life = threading.Thread(target=self._live, daemon=True)
        self._life.start()
        atexit.register(self.close)  # an interpreter that ends while a thread is in the store's C++ code aborts

    def _live(self) -> None:
        with suppress(RuntimeError):  # a store that is gone is found out by those who ask it
            while not self._ended.wait(self._patience / SIGNS):
                self._store.add(f"sign {self._rank}", 1)

    def close(self) -> None:
        """Gives no more signs of life."""
        self._ended.set()
        self._life.join(GRACE)  # not for ever: where the network is cut the store does not answer
        atexit.unregister(self.close)

    def sum_of_all(self, value: int) -> int:
        """The sum of every process's value, once each has come here or has left, however long that takes.

        Raises:
            LostError: If one of those who are waited for gives no sign of life.
        """
        self._add("sum", value)
        self._add(f"finished {self._rank}", 1)
        if self._rank:
            while not self._add("complete"):
                time.sleep(0.05)
            total = self._add("sum")
            self._add(f"left {self._rank}", 1)
            return total
        self._wait_for("finished")
        total = self._add("sum")
        self._add("complete", 1)
        with suppress(LostError):  # all is done; one that is lost only did not take its leave
            self._wait_for("left")  # they still ask
        return total

    def leave(self) -> None:
        """Tells the first not to wait for this process."""
        if self._rank:
            with suppress(LostError):
                self._add(f"finished {self._rank}", 1)
                self._add(f"left {self._rank}", 1)

    def _wait_for(self, deed: str) -> None:
        signs, since = {}, {}
        while missing := [other for other in self._others if not self._add(f"{deed} {other}")]:
            now = time.monotonic()
            for other in missing:
                sign = self._add(f"sign {other}")
                if sign != signs.get(other):
                    signs[other], since[other] = sign, now
            silent = [other for other in missing if now - since[other] > self._patience]
            if silent:
                names = ", ".join(map(str, silent))
                raise LostError(f"process {names} gave no sign of life for {self._patience:g} seconds")
            time.sleep(0.05)

    def _add(self, name: str, value: int = 0) -> int:
        """The store's count of something, with this value added to it."""
        answer: Future[int] = Future()

        def ask() -> None:
            try:
                answer.set_result(self._store.add(name, value))
            except RuntimeError as error:
                answer.set_exception(error)

        # where the network is cut the store's own timeout does not hold, and the call goes on for a quarter of an hour
        threading.Thread(target=ask, daemon=True).start()
        try:
            return answer.result(self._patience)
        except TimeoutError as error:
            raise LostError(f"process 0 did not answer for {self._patience:g} seconds") from error
        except RuntimeError as error:
            raise LostError(f"process 0 does not answer: {error}") from error
