"""Signatures of the package's own classes and functions, read from their source.

A wrong setting is so refused at once: importing a class imports torch, which takes seconds.
"""

import ast
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["Signature", "own_signature"]

PACKAGE = Path(__file__).resolve().parent


class Signature(NamedTuple):
    """Parameters of a class or function."""

    annotations: dict[str, str]
    """Source of each parameter's annotation; empty if there is none."""
    open_ended: bool
    """Whether it takes ``**kwargs`` of any name."""
    is_class: bool


def own_signature(target: str) -> Signature:
    """Signature of a class or function of this package; ``**kwargs`` of a class are its base's parameters.

    Args:
        target: Dotted path, such as ``rlsd_lightning.methods.rlsd.RLSD``; it may lead through modules that import the name.

    Raises:
        LookupError: If this package defines no such class or function.
    """
    module, node = _find(*target.rpartition(".")[::2])
    if isinstance(node, ast.FunctionDef):
        return Signature(_annotations(node.args), node.args.kwarg is not None, False)
    made = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
    own = _annotations(made[0].args) if made else {}
    own.pop("self", None)
    if made and made[0].args.kwarg is None:
        return Signature(own, False, True)
    for base in node.bases:
        try:
            above = own_signature(f"{module}.{ast.unparse(base)}")
        except LookupError:
            continue  # a class of another package
        return above._replace(annotations=above.annotations | own)
    return Signature(own, True, True)


def _find(module: str, name: str) -> tuple[str, ast.ClassDef | ast.FunctionDef]:
    """Definition of a name that a module defines or imports, and the module that defines it."""
    for node in _statements(module):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, node
        for alias in node.names if isinstance(node, ast.ImportFrom) else ():
            if name == (alias.asname or alias.name):
                return _find(node.module, alias.name)
    raise LookupError(f"{module} has no class or function '{name}' of this package")


@lru_cache
def _statements(module: str) -> list[ast.stmt]:
    """Statements of a module of this package; none for another package's."""
    package, *parts = module.split(".")
    path = PACKAGE.joinpath(*parts)
    files = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]
    return ast.parse(files[0].read_text(encoding="utf-8")).body if files and package == PACKAGE.name else []


def _annotations(args: ast.arguments) -> dict[str, str]:
    named = [*args.posonlyargs, *args.args, *args.kwonlyargs]
    return {one.arg: ast.unparse(one.annotation) if one.annotation else "" for one in named}
