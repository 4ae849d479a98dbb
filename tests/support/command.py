"""Runs train.py as its users do: inside this process (a second) or in one of its own (ten seconds)."""

import contextlib
import io
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

PROJECT = Path(__file__).resolve().parents[2]
TRAIN = PROJECT / "train.py"
TESTS = os.pathsep.join([str(PROJECT), str(PROJECT / "tests")])
"""PYTHONPATH of a process that needs what is beside this file."""
SLOW = "+callbacks.slow._target_=support.faults.Slow"
"""Makes every step of a run take a tenth of a second longer, in which a test can act; needs the PYTHONPATH."""


def small_run(prior: Path, features: Path) -> list[str]:
    """Overrides for a small run with frequent checkpoints, on tiny networks."""
    return [
        f"prior.pretrained={prior}",
        f"callbacks.results.features.pretrained={features}",
        "num_particles=2",
        "callbacks.checkpoint.every_n_train_steps=5",
        "callbacks.guard.every_n_steps=5",
    ]


def train(*arguments: object) -> tuple[int, str]:
    """Runs the command line in this process; returns its exit code and what it printed on both streams."""
    printed = io.StringIO()
    code = 0
    with (
        mock.patch.object(sys, "argv", ["train.py", *map(str, arguments)]),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        try:
            runpy.run_path(str(TRAIN), run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
    return code, printed.getvalue()


def start_train(*arguments: object, before: Sequence[str] = (), **environment: object) -> subprocess.Popen:
    """Starts the command line as a process of its own, by the command ``before`` if there is one."""
    return subprocess.Popen(
        [*before, sys.executable, str(TRAIN), *map(str, arguments)],
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=PROJECT,
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 120) -> None:
    """Returns once something has happened in a process, which must not end before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.002)
