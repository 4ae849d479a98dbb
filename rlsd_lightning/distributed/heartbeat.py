"""The heartbeat of processes that exchange nothing for hours and meet at the end of a run."""

import atexit
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from datetime import timedelta

from torch.distributed import Store

from rlsd_lightning.errors import LostError

__all__ = ["Heartbeat"]

BEATS = 10
"""Heartbeats within the patience."""
GRACE = 5.0
"""Seconds that a heartbeat under way may take when the last one is over."""


class Heartbeat:
    """Beats in a store until it is closed, and watches the other processes while it waits for them.

    A collective would give up on a process that works for longer than its timeout; a heartbeat goes on.

    Args:
        store: Key-value store of all processes.
        rank: Rank of this process.
        size: Number of processes.
        patience: Time without a heartbeat after which a process is lost.
    """

    def __init__(self, store: Store, rank: int, size: int, patience: timedelta) -> None:
        self._store = store
        self._rank = rank
        self._size = size
        self._patience = patience.total_seconds()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        atexit.register(self.close)  # an interpreter that ends while a thread is in the store's C++ code aborts

    def _beat(self) -> None:
        with suppress(RuntimeError):  # those that wait for the store find out that it is gone
            while not self._ended.wait(self._patience / BEATS):
                self._store.add(f"heartbeat {self._rank}", 1)

    def close(self) -> None:
        """Stop the heartbeat."""
        self._ended.set()
        self._thread.join(GRACE)  # not forever: a store does not answer where the network is cut
        atexit.unregister(self.close)

    def sum(self, value: int, check: Callable[[], None] = lambda: None) -> int:
        """Sum over all processes, once each has called this or has left.

        Args:
            value: This process's.
            check: Called while others are waited for; what it raises ends this.

        Raises:
            LostError: If a process that has done neither has no heartbeat.
        """
        self._add("sum", value)
        self._add(f"finished {self._rank}", 1)
        if self._rank:
            self.wait_for("summed", [0], check)
            total = self._add("sum")
            self._add(f"left {self._rank}", 1)
            return total
        self.wait_for("finished", range(1, self._size), check)
        total = self._add("sum")
        self._add("summed 0", 1)
        with suppress(LostError):  # the sum is complete, whoever is lost now
            self.wait_for("left", range(1, self._size))  # they still need the store
        return total

    def leave(self) -> None:
        """Tell the first process not to wait for this one."""
        if self._rank:
            with suppress(LostError):
                self._add(f"finished {self._rank}", 1)
                self._add(f"left {self._rank}", 1)

    def wait_for(self, event: str, ranks: Iterable[int], check: Callable[[], None] = lambda: None) -> None:
        """Wait for an event of other processes, as long as their hearts beat and a check raises nothing."""
        beats, since = {}, {}
        while missing := [rank for rank in ranks if not self._add(f"{event} {rank}")]:
            check()
            now = time.monotonic()
            for rank in missing:
                beat = self._add(f"heartbeat {rank}")
                if beat != beats.get(rank):
                    beats[rank], since[rank] = beat, now
            silent = [rank for rank in missing if now - since[rank] > self._patience]
            if silent:
                names = ", ".join(map(str, silent))
                raise LostError(f"process {names} had no heartbeat for {self._patience:g} seconds")
            time.sleep(0.05)

    def _add(self, key: str, value: int = 0) -> int:
        """The store's counter, after this value was added to it."""
        answer: Future[int] = Future()

        def ask() -> None:
            try:
                answer.set_result(self._store.add(key, value))
            except RuntimeError as error:
                answer.set_exception(error)

        # where the network is cut the store's own timeout does not hold, and the call lasts a quarter of an hour
        threading.Thread(target=ask, daemon=True).start()
        try:
            return answer.result(self._patience)
        except TimeoutError as error:
            raise LostError(f"process 0 did not answer for {self._patience:g} seconds") from error
        except RuntimeError as error:
            raise LostError(f"process 0 does not answer: {error}") from error
