"""Entry of the command line: ``train.py evaluate RUN...`` is a subcommand, everything else is a run."""

import importlib
import logging
import re
import sys

__all__ = ["command"]

SUBCOMMANDS = ("evaluate", "study")
"""Modules beside this one, each with a ``main`` that takes the arguments and returns the exit code."""


def command() -> None:
    """Runs a subcommand if the first argument is a bare word, else Hydra's application."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if not re.fullmatch(r"[A-Za-z_][\w-]*", word):
        from rlsd_lightning.cli.train import hydra_app  # seconds of imports, which no subcommand needs

        hydra_app()
    elif word in SUBCOMMANDS:
        logging.basicConfig(level=logging.WARNING)
        sys.exit(importlib.import_module(f"rlsd_lightning.cli.{word}").main(sys.argv[2:]))
    else:
        known = ", ".join(SUBCOMMANDS)
        print(f"error: there is no subcommand '{word}', only {known}; options of a run are name=value", file=sys.stderr)
        sys.exit(2)
