"""Runs train.py as its users do: inside this process, or in one of its own, which is warm unless it is asked to be new."""

import contextlib
import copy
import functools
import io
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO
from unittest import mock

import yaml
from hydra._internal.hydra import Hydra
from hydra.types import RunMode
from omegaconf._utils import get_yaml_loader

from support.warm import Warm

PROJECT = Path(__file__).resolve().parents[2]
TRAIN = PROJECT / "train.py"
PARSE = yaml.load
GET_MODE = Hydra.get_mode
MODES: dict[tuple[str, ...], RunMode | None] = {}
SLOW = "+callbacks.slow._target_=support.faults.Slow"
"""Makes every step of a run take a tenth of a second longer, in which a test can act; needs the PYTHONPATH."""


def small_run(prior: Path, features: Path) -> list[str]:
    """Overrides for a small run with frequent checkpoints, on tiny networks."""
    return [
        f"prior.pretrained={prior}",
        "num_particles=2",
        "callbacks.checkpoint.every_n_train_steps=5",
        "callbacks.guard.every_n_steps=5",
    ]


@functools.cache
def _parsed(text: str, loader: str) -> Any:
    return PARSE(text, Loader=get_yaml_loader())


def parse_once(stream: TextIO | str, Loader: type) -> Any:  # noqa: N803  yaml's name
    """In place of ``yaml.load``, which takes a quarter of a command's time: every text is parsed once."""
    text = stream if isinstance(stream, str) else stream.read()
    return (
        copy.deepcopy(_parsed(text, Loader.__qualname__))
        if "OmegaConf" in Loader.__name__
        else PARSE(text, Loader=Loader)
    )


def get_mode_once(self: Hydra, config_name: str, overrides: list[str]) -> RunMode | None:
    """In place of ``Hydra.get_mode``, which composes everything to see whether there are many runs.

    What Hydra itself is told, and the choice of options, decide that; values of settings do not.
    """
    names = {override: override.lstrip("+~").partition("=")[0].partition("@")[0] for override in overrides}
    if any("hydra" in name or "study" in override for override, name in names.items()):
        return GET_MODE(self, config_name, overrides)
    chosen = tuple(override for override, name in names.items() if (PROJECT / "configs" / name).is_dir())
    if chosen not in MODES:
        MODES[chosen] = GET_MODE(self, config_name, overrides)
    return MODES[chosen]


def train(*arguments: object) -> tuple[int, str]:
    """Runs the command line in this process; returns its exit code and what it printed on both streams."""
    printed = io.StringIO()
    code = 0
    with (
        mock.patch.object(sys, "argv", ["train.py", *map(str, arguments)]),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        mock.patch("yaml.load", parse_once),
        mock.patch.object(Hydra, "get_mode", get_mode_once),
    ):
        try:
            runpy.run_path(str(TRAIN), run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
    return code, printed.getvalue()


def start_train(
    *arguments: object, new: bool = False, network: str | None = None, **environment: object
) -> Warm | subprocess.Popen:
    """Starts the command line as a process of its own.

    Args:
        new: Whether it is a new interpreter, which takes six seconds more, and so is each that it launches.
        network: Name of a network namespace that it is in.
    """
    command = [str(TRAIN), *map(str, arguments)]
    variables = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    if new:
        piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([sys.executable, *command], env=variables, cwd=PROJECT, **piped)
    devices = [int(item.removeprefix("trainer.devices=")) for item in command if item.startswith("trainer.devices=")]
    return Warm(command, variables, PROJECT, children=sum(devices) - 1 if devices else 0, network=network)


def wait_for(condition: Callable[[], bool], process: Warm | subprocess.Popen, seconds: float = 120) -> None:
    """Returns once something has happened in a process, which must not end before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.002)
