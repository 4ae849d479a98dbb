"""Finished, left and lost processes, as threads that share a store."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from rlsd_lightning import InputError
from rlsd_lightning.distributed.heartbeat import Heartbeat
from rlsd_lightning.distributed.processes import Processes
from rlsd_lightning.errors import LostError, StoppedError

STATE = ("rank", "size", "_store", "_heartbeat", "_broadcasts")
"""What a broadcast needs of a Processes."""


def beating(size: int, seconds: float = 60, store: HashStore | None = None) -> list[Heartbeat]:
    store = store or HashStore()
    return [Heartbeat(store, rank, size, timedelta(seconds=seconds)) for rank in range(size)]


def test_all_learn_the_sum() -> None:
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda one, value: one.sum(value), beating(4), (1, 20, 300, 4000))) == [4321] * 4


def test_one_that_works_for_longer_than_the_patience_is_waited_for() -> None:
    first, other = beating(2, seconds=0.3)
    with ThreadPoolExecutor(1) as pool:
        total = pool.submit(first.sum, 1)
        time.sleep(1)
        assert not total.done()
        assert other.sum(2) == total.result(5) == 3


def test_a_broadcast_is_waited_for_by_the_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    store = HashStore()
    store.set_timeout(timedelta(seconds=0.1))
    monkeypatch.setattr(Processes, "__init__", lambda self, *state: vars(self).update(zip(STATE, state, strict=True)))
    first, other = (Processes(rank, 2, store, one, 0) for rank, one in enumerate(beating(2, 0.3, store)))
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(other.broadcast, None)
        time.sleep(1)  # longer than both timeouts
        assert first.broadcast(7) == received.result(5) == 7


def test_one_that_left_is_not_waited_for() -> None:
    first, other = beating(2)
    other.leave()
    assert first.sum(7) == 7


def test_a_check_ends_the_wait() -> None:
    first, _ = beating(2)
    end = time.monotonic() + 0.3

    def check() -> None:
        if time.monotonic() > end:
            raise StoppedError

    with pytest.raises(StoppedError):
        first.sum(7, check)


def test_one_without_a_heartbeat_is_named() -> None:
    first = Heartbeat(HashStore(), 0, 3, timedelta(seconds=0.3))
    with pytest.raises(LostError, match=r"process 1, 2 had no heartbeat for 0\.3 seconds"):
        first.sum(0)


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "closed"])
def test_a_first_that_does_not_answer_is_lost(silent: bool) -> None:
    class Gone(HashStore):
        def add(self, name: str, value: int) -> int:
            if silent:
                time.sleep(1)
            raise RuntimeError("Connection reset by peer")

    with pytest.raises(
        LostError, match="process 0 did not answer for" if silent else "process 0 does not answer: Conn"
    ):
        Heartbeat(Gone(), 1, 2, timedelta(seconds=0.3)).sum(0)


def test_the_first_is_watched_too() -> None:
    first, other = beating(2, seconds=0.3)
    first.close()  # its store answers, as torchrun's would
    with pytest.raises(LostError, match="process 0 had no heartbeat"):
        other.sum(0)


def test_an_interpreter_that_ends_while_hearts_beat_does_not_abort() -> None:
    script = (
        "from datetime import timedelta; from torch.distributed import HashStore;"
        "from rlsd_lightning.distributed.heartbeat import Heartbeat;"
        "store = HashStore();"
        "kept = [Heartbeat(store, rank, 40, timedelta(milliseconds=3)) for rank in range(40)]"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_closed_one_beats_no_more() -> None:
    store = HashStore()
    one = Heartbeat(store, 0, 2, timedelta(seconds=0.1))
    time.sleep(0.2)
    one.close()
    beats = store.add("heartbeat 0", 0)
    time.sleep(0.2)
    assert beats == store.add("heartbeat 0", 0) > 0


@pytest.mark.parametrize("patience", [0, -1, float("nan"), float("inf"), "long"])
def test_a_patience_that_is_none_is_refused(patience: object) -> None:
    with pytest.raises(InputError, match="patience must be a number of seconds, at least 1, got"):
        Processes("cpu", patience=patience)


def test_one_that_starts_alone_says_whom_it_missed() -> None:
    script = (
        "import datetime; from rlsd_lightning.distributed import processes, strategy;"
        "strategy.RENDEZVOUS_TIMEOUT = datetime.timedelta(seconds=2);"
        "processes.Processes('cpu', 1, 2, patience=1)"
    )
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "LOCAL_RANK": "0", "NODE_RANK": "0"}
    done = subprocess.run(
        ["env", *(f"{name}={value}" for name, value in environment.items()), sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "InputError: the 2 processes of this run did not find each other (Timed out after" in done.stderr
