"""Signatures of the package's own classes and functions: read from their source, and held by :func:`typed`.

The command line reads them, to refuse a wrong setting at once: importing a class imports torch, which takes seconds.
"""

import ast
import functools
import inspect
import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from numbers import Number
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, ParamSpec, TypeVar, Union, get_args, get_origin

from rlsd_lightning.errors import InputError

__all__ = ["Signature", "own_signature", "require_types", "typed"]

PACKAGE = Path(__file__).resolve().parent
TYPES = {
    "NoneType": "None",
    "bool": "True or False",
    "int": "an integer",
    "float": "a number",
    "str": "a str",
    "Callable": "a class or function",
    "Tensor": "a torch.Tensor",
    "Physics": "a deepinv.physics.Physics",
    "Prior": "a Prior such as StableDiffusionPrior(folder)",
    "Features": "a feature network such as LatentFeatures()",
}
"""What messages call a type; others are ``a`` and the name."""
REMEDIES = {"Path": "give the name of a file or folder", "Tensor": "make it one by torch.as_tensor"}
"""What to do about a value that is not of a type."""
ARRAYS = ("Tensor", "ndarray")
"""Types of values in memory, which may be given where a file is expected."""

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")


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


@functools.lru_cache
def _statements(module: str) -> list[ast.stmt]:
    """Statements of a module of this package; none for another package's."""
    package, *parts = module.split(".")
    path = PACKAGE.joinpath(*parts)
    files = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]
    return ast.parse(files[0].read_text(encoding="utf-8")).body if files and package == PACKAGE.name else []


def _annotations(args: ast.arguments) -> dict[str, str]:
    named = [*args.posonlyargs, *args.args, *args.kwonlyargs]
    return {one.arg: ast.unparse(one.annotation) if one.annotation else "" for one in named}


def typed(function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
    """A function or constructor whose arguments are checked by :func:`require_types`."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checking(*arguments: Arguments.args, **settings: Arguments.kwargs) -> Returned:
        try:
            given = signature.bind(*arguments, **settings).arguments
        except TypeError:  # missing or unknown arguments: the call says so
            given = {}
        require_types(signature.parameters, given)
        # libraries such as deepinv take Python's numbers only
        return function(*map(_of_python, arguments), **{name: _of_python(value) for name, value in settings.items()})

    return checking


def _of_python(value: Any) -> Any:
    """A number of numpy as one of Python; anything else as it is."""
    return value.item() if isinstance(value, Number) and hasattr(value, "item") else value


def require_types(parameters: Mapping[str, inspect.Parameter], values: Mapping[str, Any]) -> None:
    """Check values by the annotations of their parameters.

    Numbers may be those of numpy and tensors of one element. Any collection with an order is a tuple or a list.

    Raises:
        InputError: If a value is of another type.
    """
    for name, value in values.items():
        parameter = parameters.get(name)
        if parameter is not None and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            _require_type(name, value, parameter)


def _require_type(name: str, value: Any, parameter: inspect.Parameter) -> None:
    kinds = _members(parameter.annotation)
    if parameter.empty in kinds or any(_is_of(value, kind) for kind in kinds):
        return
    kind = type(value).__name__
    remedies = [REMEDIES[one] for one in map(_name, kinds) if one in REMEDIES]
    if kind in ARRAYS and REMEDIES["Path"] in remedies:
        remedies = ["save it with numpy.save and give the name of the file"]
    if parameter.default is not parameter.empty:
        remedies.append(f"leave it out for {parameter.default!r}" if _is_plain(parameter.default) else "leave it out")
    *others, last = map(_described, kinds)
    expected = f"{', '.join(others)} or {last}" if others else last
    got = repr(value) if value is None or _is_plain(value) else kind
    raise InputError(f"{name} must be {expected}, got {got}" + ("; " + ", or ".join(remedies) if remedies else ""))


def _is_plain(value: Any) -> bool:
    """Whether a value's ``repr`` is short and says what it is."""
    return isinstance(value, int | float | str) or (isinstance(value, tuple | list) and 0 < len(value) < 9)


def _members(annotation: Any) -> tuple:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of a type; an annotation that is a text, or a protocol that can't be looked for, says nothing."""
    origin = get_origin(kind) or kind
    if origin in (Union, UnionType):
        return any(_is_of(value, member) for member in get_args(kind))
    if kind in (int, float):
        with suppress(TypeError, ValueError, RuntimeError):
            (operator.index if kind is int else float)(value)
            return not isinstance(value, bool | str | bytes)
        return False
    if origin in (tuple, list, Sequence):
        return _holds(value, get_args(kind))
    if origin is dict:
        return isinstance(value, Mapping)
    with suppress(TypeError):
        return isinstance(value, origin)
    return True


def _holds(value: Any, kinds: tuple) -> bool:
    """Whether a value is a collection of elements of one type, or of those of a tuple."""
    if not isinstance(value, Collection) or isinstance(value, str | bytes | Mapping):
        return False
    try:
        elements = list(value)
    except TypeError:  # a tensor without axes
        return False
    if len(kinds) > 1 and kinds[1] is not Ellipsis:
        return len(elements) == len(kinds) and all(map(_is_of, elements, kinds))
    return all(_is_of(element, kind) for kind in kinds[:1] for element in elements)


def _name(kind: Any) -> str:
    return (get_origin(kind) or kind).__name__


def _described(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) not in (tuple, list, Sequence, Iterable):
        return TYPES.get(_name(kind), f"a {_name(kind)}")
    first, *others = get_args(kind)
    elements = {int: "integers", float: "numbers"}.get(first)
    if (first, others) == (int, [int]):
        return "[height, width]"
    if others and others[0] is not Ellipsis:
        return f"{len(others) + 1} {elements or 'elements'}{' such as (3, 64, 64)' if others == [int, int] else ''}"
    return f"a list of {elements}" if elements else "a list"
