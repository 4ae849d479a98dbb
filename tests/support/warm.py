"""Processes of their own that start warm: forks of a server that has imported the package once.

A new interpreter takes six seconds of processor time for its imports. These have another parent and no imports left to
do; everything else is theirs alone: environment, arguments, output, signals, exit code. The processes that Lightning's
launcher starts are children of the one that launches, forked before it has done anything.
"""

import atexit
import ctypes
import multiprocessing
import os
import pickle
import runpy
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple
from unittest import mock

__all__ = ["Warm"]

TESTS = os.pathsep.join(str(Path(__file__).resolve().parents[up]) for up in (2, 1))
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["support.preload"])


class Start(NamedTuple):
    """A script with its arguments, and what surrounds it."""

    command: list[str]
    environment: dict[str, str]
    folder: str


class Warm:
    """A started script; its methods are those of ``subprocess.Popen`` with both outputs in one pipe, as text.

    Args:
        command: The script and its arguments.
        environment: All variables.
        folder: Working directory.
        children: How many processes Lightning's launcher will start.
        session: Whether the process leads a session, as ``start_new_session``.
        network: Name of a network namespace.
    """

    def __init__(
        self,
        command: Sequence[object],
        environment: Mapping[str, str],
        folder: Path,
        children: int = 0,
        session: bool = False,
        network: str | None = None,
    ) -> None:
        self.stdout, output = CONTEXT.Pipe(duplex=False)
        start = Start(list(map(str, command)), dict(environment), str(folder))
        arguments = (output, start, children, session, network)
        self._process = CONTEXT.Process(target=_begin, args=arguments, daemon=True)
        # the server needs the path; its children must not import pytest as their main module
        with (
            mock.patch.dict(os.environ, PYTHONPATH=TESTS),
            mock.patch.dict(sys.modules, __main__=ModuleType("__main__")),
        ):
            self._process.start()
        output.close()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    poll = returncode.fget

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("warm", timeout)
        return self.returncode

    def communicate(self, timeout: float = 600) -> tuple[str, None]:
        """What all that hold the output have printed, once they have closed it and the process has ended."""
        deadline, parts = time.monotonic() + timeout, [b""]
        while len(parts) == 1 or parts[-1]:
            if not select.select([self.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
                raise subprocess.TimeoutExpired("warm", timeout)
            parts.append(os.read(self.stdout.fileno(), 1 << 16))
        self.wait(max(0.1, deadline - time.monotonic()))
        return b"".join(parts).decode(errors="replace"), None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


class Child:
    """What Lightning's launcher needs of ``subprocess.Popen``, for a child that waits to be told what it is."""

    waiting: list[tuple[int, int]]

    def __init__(self, command: list[str], env: dict[str, str], cwd: str | None = None) -> None:
        self.pid, order = self.waiting.pop(0)
        with open(order, "wb") as file:
            pickle.dump(Start(command[1:], env, cwd or os.getcwd()), file)
        self.returncode: int | None = None
        self._lock = threading.Lock()  # Lightning's observer looks too

    def poll(self) -> int | None:
        with self._lock:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
            return self.returncode

    def wait(self, timeout: float = 600) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("child", timeout)
            time.sleep(0.02)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(15)

    def kill(self) -> None:
        self.send_signal(9)


def _begin(output: Connection, start: Start, children: int, session: bool, network: str | None) -> None:
    """What a new process does: forks its children, and becomes the script."""
    assert "lightning" in sys.modules, "the server has not imported anything"
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    if session:
        os.setsid()
    if network is not None:
        enter = ctypes.CDLL(None, use_errno=True).setns
        assert enter(os.open(f"/run/netns/{network}", os.O_RDONLY), 0) == 0, os.strerror(ctypes.get_errno())
    _run(_child_or(start, children))


def _child_or(start: Start, children: int) -> Start:
    """Fork children; return what this process is to do, in a child once it is told."""
    Child.waiting = []
    for _ in range(children):
        told, order = os.pipe()
        child = os.fork()
        if child == 0:
            for _, other in Child.waiting:
                os.close(other)
            os.close(order)
            with open(told, "rb") as file:
                content = file.read()
            if not content:  # the parent has ended, or needs no child
                os._exit(0)
            return pickle.loads(content)
        os.close(told)
        Child.waiting.append((child, order))
    return start


def _run(start: Start) -> None:
    from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only
    from lightning.pytorch.strategies.launchers import subprocess_script

    subprocess_script.subprocess = SimpleNamespace(Popen=Child)
    os.environ.clear()
    os.environ.update(start.environment)
    os.chdir(start.folder)
    rank_zero_only.rank = _get_rank() or 0  # as if Lightning were imported only now
    sys.argv = start.command
    sys.path[:0] = [str(Path(start.command[0]).parent), *start.environment.get("PYTHONPATH", "").split(os.pathsep)]
    try:
        runpy.run_path(start.command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
