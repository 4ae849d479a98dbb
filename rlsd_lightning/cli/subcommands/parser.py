"""What subcommands share: help from their docstring, and errors in one line."""

import argparse
import functools
import sys
from collections.abc import Callable
from typing import NoReturn

from rlsd_lightning.cli import program
from rlsd_lightning.cli.messages import explain
from rlsd_lightning.errors import printable

__all__ = ["Parser", "in_one_line"]


class Parser(argparse.ArgumentParser):
    """Parser of a subcommand's arguments.

    Args:
        name: The subcommand.
        description: Its help: a line, an empty line, and more.
    """

    def __init__(self, name: str, description: str) -> None:
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=f"{program()} {name}", description=description, formatter_class=raw)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; {self.prog} --help lists all\n")


def in_one_line(main: Callable[[list[str] | None], int]) -> Callable[[list[str] | None], int]:
    """A subcommand that prints an error which the user can mend in one line, and returns its exit code."""

    @functools.wraps(main)
    def reporting(arguments: list[str] | None = None) -> int:
        try:
            return main(arguments)
        except Exception as error:
            said = explain(error)
            if said is None:
                raise
            print(printable(f"error: {said[0]}"), file=sys.stderr)
            return said[1]

    return reporting
