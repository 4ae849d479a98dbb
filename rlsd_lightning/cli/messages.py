"""One line and an exit code for each error on the command line."""

import difflib
import logging
import os
import re
import shlex
import sys
import traceback
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from rlsd_lightning.cli import program
from rlsd_lightning.cli.help import options_of
from rlsd_lightning.cli.literal import corrected
from rlsd_lightning.cli.settings import near_miss
from rlsd_lightning.errors import InputError, LostError, StoppedError, first_line, is_of_storage, printable
from rlsd_lightning.resources import CONFIGS

__all__ = ["REQUEUE", "Formatter", "explain", "failure"]

REQUEUE = 75
"""Exit code of a run that a signal stopped: start it again."""
REMOVED = {
    "preset": "set num_steps=14 (fast), 50 (balanced) or 999 (paper) instead",
    "method.sampling_share": "set method.refine_share instead, which is one minus it",
    "method.zeta": "set method.guidance_scale instead",
    "method.sigma_break": "set method.repulsion_until instead, a share of the steps: a thousandth of it",
    "method.room": "set method.repulsion_saturation of method=distilled instead",
    "method.renew_every": "leave it out; the decoder runs in every step",
    "method.x_update": "leave it out; method=rlsd_paper moves x by Adam",
    "method/mixture": "choose method=dwgf instead",
}
"""Settings of earlier versions, and their replacements."""
ORIGINS = {"priors": "prior", "features": "features", "operators": "physics"}
ORIGINS |= dict.fromkeys(("data", "images", "reading"), "data")
"""The configuration group of each part of the package; that of all others is ``method``."""
CHECKS = ([], ["errors"], ["signatures"])
"""Parts of the package that check the arguments of others."""
NAMED = re.compile(r"(?<![\w.'/`])[a-z]\w*(?= must\b|=|: )")
"""An argument in a message: ``gamma must be``, ``gamma=1`` or ``gamma: ``."""


class Formatter(logging.Formatter):
    """Escapes file names that are not UTF-8, which a log could not write."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def failure(error: BaseException, cfg: DictConfig, who: str) -> tuple[str, int] | None:
    """The line and exit code of an error that the user can mend; None for a bug. ``who`` names the process."""
    again = f"{program()} {shlex.quote(f'resume={cfg.output_dir}')}"
    if isinstance(error, LostError):
        return f"\n{who}error: lost touch with the other processes ({error}); resume with: {again}", 1
    if is_of_storage(error, Path(cfg.output_dir)):
        return f"\n{who}error: '{cfg.output_dir}' can't be written to ({error}); fix this, then run: {again}", 1
    if isinstance(error, StoppedError | KeyboardInterrupt):
        return f"\n{who}{str(error) or 'stopped'}; resume with: {again}", REQUEUE
    said = explain(error, cfg)
    return said and (f"{who}error: {said[0]}", said[1])


def explain(error: BaseException, cfg: DictConfig | None = None) -> tuple[str, int] | None:
    """An error in one line, and the exit code: 1 for an unusable input, 2 for a wrong command line; None for a bug."""
    if isinstance(error, OSError) and isinstance(error.filename, str | bytes):
        return f"'{os.fsdecode(error.filename)}' can't be used: {error.strerror}", 1
    if "Config group override" in str(error):
        return " ".join(str(error).split()), 2
    if not isinstance(error, InputError | HydraException | OmegaConfBaseException):
        return None
    unknown = re.match("Could not override '([^']+)'", str(error))
    if unknown:
        return f"there is no setting '{unknown[1]}' with these choices; {_hint(unknown[1], error.__cause__)}", 2
    if isinstance(error, OverrideParseException):
        return _refused(error), 2
    choice = re.search("Could not find '([^']+)'", str(error))
    if choice and choice[1] in REMOVED:
        return f"there is no {choice[1].replace('/', '=')}; {REMOVED[choice[1]]}", 2
    if isinstance(error, MissingConfigException):
        return _no_option(error.missing_cfg_file or "") or first_line(error), 2
    link = error
    while link is not None and not isinstance(link, InputError):
        link = link.__cause__ or link.__context__
    if link is None:
        return " ".join(str(error.__cause__ or error).split()), 2
    message = " ".join(str(link).split())
    return (message if cfg is None else _qualified(message, _origin(link), cfg)), 1


def _no_option(file: str) -> str:
    """Say that a group has no such option, and which are near, or all; empty for a group that is Hydra's own."""
    group, _, name = file.partition("/")
    options = options_of(group)
    if not options:
        return ""
    near = difflib.get_close_matches(name, options, n=3)
    known = (
        f"did you mean {' or '.join(near)}? {program()} --help lists all" if near else f"there are {', '.join(options)}"
    )
    return f"there is no {group}={name}; {known}"


def _refused(error: OverrideParseException) -> str:
    """What Hydra's grammar does not read, and what to type instead."""
    right = corrected(error.override, sys.argv[1:])
    advice = f"if this is meant, type: {right}" if right else "settings are given as name=value"
    return f"'{error.override}' can't be read as name=value ({first_line(error)}); {advice}"


def _hint(name: str, reason: BaseException | None) -> str:
    """Advice on a setting that does not exist, from OmegaConf's reason."""
    if name in REMOVED:
        return REMOVED[name]
    found = getattr(reason, "full_key", None) or name  # the part of the name that was looked up
    siblings = list(getattr(reason, "parent_node", None) or ())
    if "." not in found:
        siblings += [group.name for group in CONFIGS.iterdir() if group.is_dir()]
    near = near_miss(found, siblings)
    listed = "the same command with --help lists all settings"
    return f"did you mean {near}{name.removeprefix(found)}? If not, {listed}" if near else listed


def _origin(error: BaseException) -> str:
    """The configuration group of the package's part that raised an error."""
    modules = [frame.f_globals["__name__"].split(".") for frame, _ in traceback.walk_tb(error.__traceback__)]
    own = [module[1] for module in modules if module[0] == "rlsd_lightning" and module[1:] not in CHECKS]
    return ORIGINS.get(own[-1] if own else "", "method")


def _qualified(message: str, origin: str, cfg: DictConfig) -> str:
    """Put the group before each argument that a message names: ``gamma must`` becomes ``method.gamma must``.

    An argument of several groups belongs to the group that raised the error, or else to the prior. Settings without a
    group stay as they are.
    """

    def full(match: re.Match) -> str:
        name = match[0]
        groups = [group for group in {*ORIGINS.values(), "method"} if name in cfg[group]]
        # a picture's size is the prior's matter, unless the features complain
        owners = [group for group in (origin, "prior") if group in groups][:1] or groups
        return name if name in cfg or len(owners) != 1 else f"{owners[0]}.{name}"

    return NAMED.sub(full, message)
