"""The settings of a run: what they may be, and where they are kept."""

import difflib
import glob
import inspect
import pkgutil
import re
import shlex
import sys
from collections.abc import Container, Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from yaml import YAMLError

from rlsd_lightning.cli import program
from rlsd_lightning.cli.help import options_of
from rlsd_lightning.cli.literal import INPUTS, MASKS, NUMBERS
from rlsd_lightning.errors import InputError, first_line, printable
from rlsd_lightning.resources import CONFIGS
from rlsd_lightning.signatures import Signature, own_signature

__all__ = [
    "check_settings",
    "keep_settings",
    "make_paths_absolute",
    "move_older",
    "near_miss",
    "overridden",
    "read_settings",
    "read_yaml",
    "run_folder",
    "signature_of",
    "with_present_names",
    "without_null_groups",
]

CHECKED = ("prior", "features", "physics", "data", "method")
"""Groups whose settings are arguments of this package's or the user's functions."""
SETTINGS = ".hydra/config.yaml"
"""File of a run's settings, in its folder."""
CHOICES = ".hydra/choices.yaml"
"""File of a run's choices of groups, in its folder."""
LISTED = re.compile(r"[\d\s.eE+-]+(,[\d\s.eE+-]+)+")
"""Numbers with commas between them, which may be too long for a file's name."""
OLDER = {"data.mask": "physics.mask", "data.kernel": "physics.kernel"}
"""Older names of settings, which are still accepted, and their present names."""


def near_miss(name: str, siblings: Iterable[str]) -> str | None:
    """Closest existing setting, or None; ``name`` has its group before a dot, ``siblings`` are that group's settings."""
    group, dot, last = name.rpartition(".")
    near = difflib.get_close_matches(last, siblings, n=1)
    return f"{group}{dot}{near[0]}" if near else None


def with_present_names(arguments: list[str]) -> list[str]:
    """Command-line arguments with older names of settings replaced.

    Raises:
        InputError: If an older and the present name are given.
    """
    for older, name in OLDER.items():
        if all(any(item.lstrip("+").startswith(f"{one}=") for item in arguments) for one in (older, name)):
            raise InputError(f"{older} is the older name of {name}, but both were given; leave one of them out")
        # added by force, as operators that the configs do not know may take it
        arguments = [re.sub(rf"^\+*{re.escape(older)}=", f"++{name}=", item) for item in arguments]
    return arguments


def without_null_groups(arguments: list[str]) -> list[str]:
    """Arguments in which ``logger=null`` is Hydra's ``~logger``, as a choice of Hydra's can't be null.

    Raises:
        HydraException: If a group that a run needs is null.
    """
    kept = []
    for argument in arguments:
        group, _, value = argument.partition("=")
        if value != "null" or not (CONFIGS / group).is_dir():
            kept.append(argument)
        elif group == "logger":
            kept.append("~logger")
        elif group != "experiment":  # which is null by default
            raise HydraException(f"{group} can't be null; choose one of {', '.join(options_of(group))}")
    return kept


def overridden() -> dict[str, bool]:
    """Names of the settings and choices of this command line, and whether each is removed (``~name``)."""
    return {item.lstrip("+~").split("=")[0]: item.startswith("~") for item in HydraConfig.get().overrides.task}


def move_older(cfg: DictConfig, kept: Container[str] = ()) -> None:
    """Move settings that a file has under older names to the present ones, except to those that are kept."""
    with open_dict(cfg):
        for older, name in OLDER.items():
            value = cfg.data.pop(older.removeprefix("data."), None)
            if value is not None and name not in kept:
                OmegaConf.update(cfg, name, value, force_add=True)


def make_paths_absolute(cfg: DictConfig) -> None:
    """Make paths absolute, as a run may be resumed from another folder."""
    from rlsd_lightning.reading.paths import absolute, split_key  # with torch

    for name in INPUTS:
        value = OmegaConf.select(cfg, name)
        is_file = isinstance(value, str) and not (
            (name == "physics.mask" and value in MASKS)
            or (name == "prior.tiny_decoder" and value == "auto")
            or (name in NUMBERS and LISTED.fullmatch(value))
        )
        if is_file and (split_key(value)[0].exists() or glob.has_magic(value)):
            OmegaConf.update(cfg, name, absolute(value))


def signature_of(target: str, name: str) -> Signature:
    """What the target of a setting takes; only one of another package is imported for it."""
    try:
        return own_signature(target)
    except LookupError:
        pass
    try:
        found = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, SyntaxError, ValueError) as error:
        raise HydraException(
            f"{name} must be a class or function that can be imported, got '{target}' ({first_line(error)})"
        ) from None
    parameters = inspect.signature(found).parameters
    annotations = {name: _union(parameter.annotation) for name, parameter in parameters.items()}
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return Signature(annotations, open_ended, isinstance(found, type))


def _union(annotation: Any) -> str:
    """Names of an annotation's types, as they stand in a source."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return " | ".join("None" if member is NoneType else getattr(member, "__name__", str(member)) for member in members)


def check_settings(cfg: DictConfig) -> None:
    """Refuse unknown names, words in place of numbers, and what is missing.

    Raises:
        HydraException: If a group is missing, or a target can't be imported, does not take a setting, or
            takes another type.
    """
    known = {path.stem for path in CONFIGS.iterdir() if path.is_dir()} | {*read_yaml(CONFIGS / "train.yaml"), *CHECKED}
    known -= {"defaults", "hydra"}
    for name in cfg:
        if name not in known and not (HydraConfig.initialized() and name in HydraConfig.get().runtime.choices):
            near = near_miss(name, known)
            hint = f"did you mean {near}?" if near else f"there are {', '.join(sorted(known))}"
            raise HydraException(f"there is no setting '{name}'; {hint}")
    for group in ("trainer", "callbacks", *CHECKED):
        whole = cfg.get(group)
        # a choice of features stays where the callbacks are removed
        if not whole or (group == "callbacks" and not all("_target_" in each for each in whole.values() if each)):
            raise HydraException(f"{group} is missing, but every run needs it; leave ~{group} or {group}=null out")
    for group in CHECKED:
        taken = signature_of(cfg[group]._target_, f"{group}._target_")
        written = OmegaConf.to_container(cfg[group], resolve=False)
        for name, value in OmegaConf.to_container(cfg[group], resolve=True).items():
            # make_physics turns the noise of a deepinv class into its noise_model
            turned = group == "physics" and taken.is_class and name in ("sigma", "noise")
            if name.startswith("_") or turned:
                continue
            if name in taken.annotations:
                shown = (
                    name if written[name] == f"${{{name}}}" else f"{group}.{name}"
                )  # of the whole run, or the group's own
                _check_type(shown, value, set(taken.annotations[name].split(" | ")))
            elif not taken.open_ended:
                near = near_miss(f"{group}.{name}", taken.annotations)
                hint = f"did you mean {near}?" if near else f"there are {', '.join(sorted(taken.annotations))}"
                raise HydraException(f"there is no setting '{group}.{name}' with this {group}; {hint}")


def _check_type(name: str, value: object, kinds: set[str]) -> None:
    """Refuse a value of another type, where all accepted ones are plain."""
    given = "None" if value is None else type(value).__name__
    is_accepted = given in kinds or (given == "int" and "float" in kinds)
    if not is_accepted and kinds <= {"int", "float", "bool", "str", "Path", "None"}:
        expected = " or ".join(sorted("null" if kind == "None" else kind for kind in kinds))
        raise HydraException(f"{name} must be {expected}, got {value!r}")


def read_yaml(file: Path) -> DictConfig | ListConfig:
    """Content of a YAML file.

    Raises:
        InputError: If it can't be read.
    """
    try:
        return OmegaConf.load(file)
    except (OSError, ValueError, YAMLError) as error:
        raise InputError(
            f"'{file}' can't be read as YAML ({first_line(error)}); restore it, or start a new run"
        ) from error


def read_settings(folder: Path) -> DictConfig:
    """Settings a run was started with.

    Raises:
        InputError: If the folder is no run's, or its settings can't be read.
    """
    if not (folder / SETTINGS).is_file():
        raise InputError(
            f"a run's folder is expected, but '{folder}' has no {SETTINGS}; give the folder that holds the run's "
            "train.log, for example resume=outputs/inpaint/2026-11-24_12-00-00"
        )
    settings = read_yaml(folder / SETTINGS)
    if not isinstance(settings, DictConfig) or "num_steps" not in settings:
        raise InputError(f"'{folder / SETTINGS}' is incomplete or damaged; restore it, or start a new run")
    return settings


def keep_settings(cfg: DictConfig, folder: Path, command: str | None = None) -> None:
    """Write the settings of a new run, and the command line that makes it; this process's own if left out.

    Raises:
        InputError: If the folder holds a run with other settings, or its name is not UTF-8.
    """
    if printable(str(folder)) != str(folder):
        raise InputError(f"output_dir must be a name in UTF-8, which TensorBoard needs, got '{folder}'; choose another")
    from rlsd_lightning.engine.chosen import CHOSEN  # with torch
    from rlsd_lightning.results.store import write_atomically

    saved = folder / SETTINGS
    is_same, has_begun = saved.is_file() and read_yaml(saved) == cfg, (folder / CHOSEN).is_file()
    if is_same and has_begun:
        return  # nothing can go wrong with a file that is not written again
    if saved.is_file() and not is_same and (has_begun or any(folder.glob("*/metrics.json"))):
        raise InputError(
            f"'{folder}' holds a run with other settings; give another output_dir, or resume that run by "
            f"{shlex.quote(f'resume={folder}')}"
        )
    saved.parent.mkdir(exist_ok=True)
    OmegaConf.save(HydraConfig.get().runtime.choices, folder / CHOICES)
    write_atomically(saved, OmegaConf.to_yaml(cfg))
    OmegaConf.save(HydraConfig.get().overrides.task, saved.with_name("overrides.yaml"))
    command = command or shlex.join([*program().split(), *sys.argv[1:]])
    saved.with_name("command.txt").write_bytes(f"{command}\n".encode(errors="surrogateescape"))


def run_folder(resume: str | None, ckpt_path: str | None, task: str, now: str) -> str:
    """The folder of a resumed run, of a checkpoint's run, or a new one: in a multirun the one that Hydra made for it."""
    if not resume and not ckpt_path:
        hydra = HydraConfig.get() if HydraConfig.initialized() else None
        in_turn = hydra is not None and hydra.mode == RunMode.MULTIRUN and hydra.runtime.output_dir
        return in_turn or f"outputs/{task}/{now}"
    if ckpt_path and not Path(ckpt_path).is_file():
        raise InputError(f"ckpt_path must be a checkpoint of a run, but there is no file '{ckpt_path}'")
    folder = Path(resume) if resume else Path(ckpt_path).resolve().parent.parent.parent
    read_settings(folder)  # before Hydra makes the folder
    return str(folder)


OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
