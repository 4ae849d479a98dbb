"""Paths and prompts of the command line, which are taken as they were typed."""

import os
import re
import shlex
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

__all__ = ["INPUTS", "MASKS", "NUMBERS", "as_typed", "corrected", "quoted"]

INPUTS = (
    *("data.images", "data.measurement", "prior.pretrained", "prior.lora", "prior.tiny_decoder"),
    *("physics.mask", "physics.kernel", "physics.network", "physics.code", "physics.coil_maps", "physics.angles"),
    *("features.pretrained", "callbacks.results.features.pretrained"),
)
"""Settings that are files or folders which a run reads."""
MASKS = ("half", "box", "free", "random")
"""Values of ``physics.mask`` that are no files."""
PATHS = (*INPUTS, "output_dir", "resume", "ckpt_path")
"""Settings that are files or folders; a leading ``~`` is the home folder."""
TEXTS = ("prior.prompt", "prior.negative_prompt", "data.name", "data.axes")
"""Settings that are any other text."""
NUMBERS = ("data.range", "physics.angles")
"""Settings that are numbers with commas between them, or a list of numbers, or a file."""
MULTIRUN = ("-m", "--multirun", "hydra.mode=MULTIRUN")
"""Arguments with which commas separate runs, as in Hydra's grammar."""
SETTING = re.compile(r"(\+{0,2})([\w.]+)=(.*)", re.DOTALL)
QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
LIST = re.compile(r"\[[^\[\]]*\]", re.DOTALL)
ELEMENT = re.compile(rf"(?:{QUOTED}|[^,])+", re.DOTALL)


def as_typed(arguments: Sequence[str]) -> list[str]:
    """Arguments in which the values of paths and texts are quoted for Hydra's grammar, where it would change them.

    ``null``, lists in brackets, values in quotes and interpolations keep their meaning; in lists this holds for each
    element. All arguments of a multirun and of a study keep Hydra's grammar, except that ``~`` is the home folder.
    """
    in_turn = not set(MULTIRUN).isdisjoint(arguments) or any(each.startswith("experiment=study/") for each in arguments)
    return [(_with_home if in_turn else _as_typed)(argument) for argument in arguments]


def _with_home(argument: str) -> str:
    setting = SETTING.fullmatch(argument)
    if not setting or setting[2] not in PATHS or not setting[3].startswith("~"):
        return argument
    return f"{setting[1]}{setting[2]}={os.path.expanduser(setting[3])}"


def _as_typed(argument: str) -> str:
    setting = SETTING.fullmatch(argument)
    if not setting or setting[2] not in PATHS + TEXTS + NUMBERS:
        return argument
    plus, name, value = setting.groups()
    if name in NUMBERS and isinstance(_read(value), int | float | list):
        return argument
    return f"{plus}{name}={_literal(value, is_path=name not in TEXTS)}"


def _literal(value: str, is_path: bool) -> str:
    """A value that Hydra's grammar reads as it is."""
    if value.lower() == "null" or re.fullmatch(QUOTED, value, re.DOTALL):
        return value
    if LIST.fullmatch(value):
        elements = (element.strip() for element in ELEMENT.findall(value[1:-1]))
        return f"[{','.join(_literal(element, is_path) for element in elements)}]"
    read = _read(value)
    if isinstance(read, str) and "${" in value:
        return value
    if is_path and value.startswith("~"):
        value = os.path.expanduser(value)
        read = _read(value)
    return value if read == value and isinstance(read, str) else quoted(value)


def _read(value: str) -> object:
    """What Hydra's grammar makes of a value; None if it refuses it."""
    try:
        return OverridesParser.create().parse_override(f"name={value}").value()
    except HydraException:
        return None


def quoted(value: str) -> str:
    """A text as Hydra's grammar takes it, whatever is in it."""
    # a backslash before ${ keeps OmegaConf from looking for a setting of that name
    escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    quote = Quote.single if '"' in escaped else Quote.double  # shells quote the other kind without effort
    return QuotedString(text=escaped, quote=quote).with_quotes()


def corrected(argument: str, arguments: Sequence[str]) -> str:
    """What to type instead of an argument that Hydra's grammar refuses, ready to be copied to a shell."""
    setting = SETTING.fullmatch(argument)
    if setting:
        return shlex.quote(f"{setting[1]}{setting[2]}={quoted(setting[3])}")
    if argument not in arguments:
        return ""
    # words of a value that the shell has split
    first = last = arguments.index(argument)
    while first > 0 and "=" not in arguments[first]:
        first -= 1
    while last + 1 < len(arguments) and "=" not in arguments[last + 1]:
        last += 1
    words = " ".join(arguments[first : last + 1])
    return shlex.quote(words) if SETTING.fullmatch(words) else ""
