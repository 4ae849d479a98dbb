"""Entry of the command line: ``rlsd evaluate RUN...`` is a subcommand, everything else is a run.

torch and Lightning take seconds to import, so nothing here imports them: help and a wrong command line answer at once.
:mod:`rlsd_lightning.cli.train` and the subcommands import them, through :func:`lazy_import`.
"""

import gc
import importlib
import importlib.metadata
import logging
import os
import re
import sys
from types import ModuleType

# composition errors are shown in one line by hydra_app(), not by Hydra in ten
os.environ.setdefault("HYDRA_FULL_ERROR", "1")

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from rlsd_lightning.cli.help import help_text, overrides_of
from rlsd_lightning.cli.literal import as_typed
from rlsd_lightning.cli.messages import REQUEUE, explain
from rlsd_lightning.cli.settings import check_settings, move_older, overridden, with_present_names, without_null_groups
from rlsd_lightning.errors import printable
from rlsd_lightning.resources import CONFIGS

__all__ = ["command"]

SUBCOMMANDS = ("app", "calibrate", "conformal", "doctor", "evaluate", "study")
"""Modules of :mod:`rlsd_lightning.cli.subcommands`."""
failed: list[str] = []
"""Folders of the runs of this process's multirun that have failed."""


def command() -> None:
    """Run a subcommand if the first argument is a bare word, else Hydra's application."""
    arguments = sys.argv[1:]
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for operators of the user's own
    word = arguments[0] if arguments else ""
    if "--version" in arguments:
        print(f"rlsd-lightning {importlib.metadata.version('rlsd-lightning')}")
    elif not re.fullmatch(r"[A-Za-z_][\w-]*", word):
        hydra_app()
    elif word in SUBCOMMANDS:
        logging.basicConfig(level=logging.WARNING)
        sys.exit(lazy_import(f"subcommands.{word}").main(arguments[1:]))
    else:
        known = ", ".join(SUBCOMMANDS)
        print(f"error: there is no subcommand '{word}', only {known}; options of a run are name=value", file=sys.stderr)
        sys.exit(2)


def hydra_app() -> None:
    """Help, one run, or a multirun."""
    failed.clear()
    try:
        sys.argv[1:] = as_typed(without_null_groups(with_present_names(sys.argv[1:])))
        if {"--help", "-h"} & set(sys.argv):
            print(help_text(overrides_of(sys.argv[1:])))
            return
        compose_and_run()
    except KeyboardInterrupt:  # before a run, which handles its own
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        said = explain(error)
        if said is None:
            raise
        print(printable(f"error: {said[0]}"), file=sys.stderr)
        sys.exit(said[1])
    if failed:
        sys.exit(f"error: {len(failed)} runs of this multirun have failed: {', '.join(failed)}")


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")
def compose_and_run(cfg: DictConfig) -> None:
    """Run what Hydra composed."""
    hydra_run = HydraConfig.get()
    code = _check(cfg) or lazy_import("train").main(cfg)
    runs_in_turn = hydra_run.mode == RunMode.MULTIRUN and hydra_run.runtime.choices["hydra/launcher"] == "basic"
    if code and runs_in_turn and code != REQUEUE:
        failed.append(cfg.output_dir)  # the other runs go on
    elif code:
        sys.exit(code)


def _check(cfg: DictConfig) -> int:
    """Exit code of a new run with a wrong setting, else 0; a resumed run is checked with the settings it began with."""
    if cfg.resume or cfg.ckpt_path:
        return 0
    try:
        move_older(cfg, overridden())
        check_settings(cfg)
        if not str(cfg.output_dir).strip():
            raise HydraException(
                "output_dir must be a folder, got an empty name; leave it out for a new one in outputs/"
            )
    except HydraException as error:
        reason, code = explain(error, cfg)
        logging.getLogger("train").error("error: %s", reason)
        return code
    return 0


def lazy_import(name: str) -> ModuleType:
    """Module of the command line that imports torch and Lightning.

    What it imports stays until the end, so the garbage collector need not look at it: that saves time, here and at exit.
    """
    module = f"rlsd_lightning.cli.{name}"
    if module in sys.modules:
        return sys.modules[module]
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        gc.freeze()
        gc.enable()
