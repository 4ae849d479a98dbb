"""The queue of runs: one at a time, each browser in turn, none lost or mixed up."""

import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from support.app import Scripted, run_of

from rlsd_lightning.app import runs
from rlsd_lightning.app.runs import Queue, State
from rlsd_lightning.errors import InputError


@pytest.fixture
def solve() -> Scripted:
    return Scripted()


@pytest.fixture
def queue(solve: Scripted) -> Iterator[Queue]:
    made = Queue(solve)
    yield made
    made.close()
    assert not made._thread.is_alive()


def soon(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.002)


def ended(*every: runs.Run) -> None:
    soon(lambda: all(run.has_ended for run in every))


def test_every_browser_has_its_turn(queue: Queue, solve: Scripted, tmp_path: Path):
    first = [run_of("a", tmp_path, number) for number in range(4)]
    second = [run_of("b", tmp_path, number) for number in range(2)]
    queue.submit(first[0])
    solve.started.acquire()
    for run in (*first[1:], *second):
        queue.submit(run)
    assert [queue.ahead(run) for run in (*first, *second)] == [0, 2, 4, 5, 1, 3]
    solve.go.release(6)
    ended(*first, *second)
    assert solve.order == ["a0", "b0", "a1", "b1", "a2", "a3"]


def test_twenty_runs_of_two_browsers_keep_their_own_results(queue: Queue, solve: Scripted, tmp_path: Path):
    every = [run_of(owner, tmp_path, number) for number in range(10) for owner in "ab"]
    for run in every:
        queue.submit(run)
    solve.go.release(20)
    ended(*every)
    assert sorted(solve.order) == sorted(run.title for run in every)
    for run in every:
        assert run.state is State.DONE
        with zipfile.ZipFile(run.archive) as packed:
            assert packed.read(f"{run.folder.name}/result.txt").decode() == run.command
            assert f"seed={run.choice.seed}" in run.command.split()


def test_a_waiting_run_is_cancelled_at_once_and_never_begins(queue: Queue, solve: Scripted, tmp_path: Path):
    going, waiting = run_of("a", tmp_path, 0), run_of("a", tmp_path, 1)
    queue.submit(going)
    solve.started.acquire()
    queue.submit(waiting)
    queue.cancel([waiting])
    assert waiting.state is State.CANCELLED
    solve.go.release()
    ended(going)
    assert solve.order == ["a0"]


def test_a_running_run_is_cancelled_and_the_next_one_solved(queue: Queue, solve: Scripted, tmp_path: Path):
    going, waiting = run_of("a", tmp_path, 0), run_of("b", tmp_path, 0)
    queue.submit(going)
    queue.submit(waiting)
    solve.started.acquire()
    queue.cancel([going])
    ended(going)
    solve.go.release()
    ended(waiting)
    assert (going.state, waiting.state) == (State.CANCELLED, State.DONE)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InputError("mask='m.png' hides every pixel"), "mask='m.png' hides every pixel"),
        (RuntimeError("a bug\nof two lines"), "RuntimeError: a bug; the terminal of the page has the traceback"),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
    ],
)
def test_a_failed_run_says_why_and_the_next_one_is_solved(
    queue: Queue, solve: Scripted, tmp_path: Path, error: Exception, said: str
):
    failing, following = run_of("a", tmp_path, 0), run_of("a", tmp_path, 1)
    solve.error = error
    queue.submit(failing)
    solve.go.release()
    ended(failing)
    assert failing.state is State.FAILED and failing.said.startswith(said)
    solve.error = None
    queue.submit(following)
    solve.go.release()
    ended(following)
    assert following.state is State.DONE


def test_files_of_a_closed_tab_go_once_its_run_has_ended(queue: Queue, solve: Scripted, tmp_path: Path):
    gone: list[str] = []
    going, waiting = run_of("a", tmp_path, 0), run_of("a", tmp_path, 1)
    queue.submit(going)
    solve.started.acquire()
    queue.submit(waiting)
    queue.forget([going, waiting], partial(gone.append, "a"))
    soon(lambda: gone == ["a"])
    assert (going.state, waiting.state) == (State.CANCELLED, State.CANCELLED)
    queue.forget([waiting], partial(gone.append, "b"))
    assert gone == ["a", "b"]


def test_a_full_queue_takes_no_more(queue: Queue, solve: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runs, "MOST_WAITING", 2)
    queue.submit(run_of("a", tmp_path, 0))
    solve.started.acquire()
    for number in (1, 2):
        queue.submit(run_of("a", tmp_path, number))
    with pytest.raises(InputError, match="2 runs are waiting"):
        queue.submit(run_of("b", tmp_path, 0))
