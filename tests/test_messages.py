"""Messages of the package name bare arguments; the command line puts the group before them."""

import ast
import re
from pathlib import Path

import rlsd_lightning

PACKAGE = Path(rlsd_lightning.__file__).parent
FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if PACKAGE / "cli" not in file.parents]
GROUPED = re.compile(r"(?<![\w.])(method|prior|features|physics|data|trainer)[.=]\w")
"""A setting of the command line, such as ``prior.weights`` or ``method=dps``."""


def grouped(source: str) -> set[str]:
    """Strings in raise statements that name a setting with its group."""
    raised = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Raise)]
    nodes = [node for each in raised for node in ast.walk(each)]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return {text for text in texts if GROUPED.search(text)}


def test_groups_are_found_in_plain_and_formatted_strings():
    strings = 'f"{x} is not prior.weights", "data.seed", "seed", x.data.y, "deepinv.physics.Physics"'
    source = f'def f(x):\n    """As method=dps."""\n    raise ValueError({strings})'
    assert grouped(source) == {" is not prior.weights", "data.seed"}


def test_errors_name_arguments_without_a_group():
    assert {text for file in FILES for text in grouped(file.read_text())} == set()
