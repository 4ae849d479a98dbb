"""The settings of a run: what they may be, where they are kept, and which of them may change when it is resumed."""

import difflib
import glob
import inspect
import itertools
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import get_args

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from rlsd_lightning.errors import InputError
from rlsd_lightning.methods.base import ParticleModule

__all__ = ["check_settings", "keep_settings", "make_paths_absolute", "near_miss", "resumed", "run_folder"]

OTHER_FILES = ("prior.pretrained", "features.pretrained", "physics.network", "physics.code")
CHOSEN = ("method", "physics", "prior", "features", "num_particles", "num_steps", "seed")
"""Settings, or groups of them, that say what a run's results are."""
MAY_CHANGE = (
    *OTHER_FILES,
    "prior.local_files_only",
    "prior.vae_tiling",
    "prior.decoder_checkpointing",
    "features.local_files_only",
    "method.particle_chunk",
)
"""Those of them that say where something is, or how it is computed."""


def near_miss(name: str, siblings: Iterable[str]) -> str | None:
    """The full name of that setting which a misspelt one most likely stands for, if any is like it.

    Args:
        name: The misspelt name, with its group before a dot.
        siblings: The names, without the group, that there are beside it.
    """
    group, dot, last = name.rpartition(".")
    near = difflib.get_close_matches(last, siblings, n=1)
    return f"{group}{dot}{near[0]}" if near else None


def run_folder(resume: str | None, ckpt_path: str | None, task: str, now: str) -> str:
    """The folder of a resumed run, of a checkpoint's run, or a new one."""
    if not resume and not ckpt_path:
        return f"outputs/{task}/{now}"
    if ckpt_path and not Path(ckpt_path).is_file():
        raise InputError(f"ckpt_path must be a checkpoint of a run, but there is no file '{ckpt_path}'")
    folder = Path(resume) if resume else Path(ckpt_path).resolve().parents[2]
    saved_settings(folder)  # before Hydra makes the folder
    return str(folder)


def saved_settings(folder: Path) -> DictConfig:
    """The settings a run was started with."""
    saved = folder / ".hydra" / "config.yaml"
    if not saved.is_file():
        raise InputError(
            f"a run's folder is expected, but '{folder}' has no .hydra/config.yaml; give the folder that holds the "
            "run's train.log, for example resume=outputs/inpaint/2026-11-24_12-00-00"
        )
    return OmegaConf.load(saved)


def resumed(cfg: DictConfig) -> DictConfig:
    """The settings a run was started with, and on top of them what this command line asks for."""
    folder = Path(cfg.output_dir)
    started_with = OmegaConf.merge({"patience": cfg.patience}, saved_settings(folder))
    if started_with.method._target_ == "rlsd_lightning.methods.rlsd.RLSD":
        # what measurements not yet begun would have had
        for name, value in {"room": 0.0, "sampling_share": 0.0, "antithetic": False}.items():
            started_with.method.setdefault(name, value)
    names = [item.lstrip("+~").split("=")[0] for item in HydraConfig.get().overrides.task]
    for name in names:
        if "/" in name or name in HydraConfig.get().runtime.choices or name == "measurements_per_batch":
            raise InputError(f"'{name}' was chosen when the run was started and can't change; start a new run")
        before, asked = (OmegaConf.select(settings, name) for settings in (started_with, cfg))
        if name.split(".")[0] in CHOSEN and name not in MAY_CHANGE and before != asked:
            raise InputError(
                f"{name} was {before!r} when the run was started and can't change to {asked!r}: its results would be of two kinds; "
                "leave it out, or start a new run"
            )
        OmegaConf.update(started_with, name, OmegaConf.select(cfg, name), force_add=True)
    started_with.output_dir = str(folder)
    return started_with


def make_paths_absolute(cfg: DictConfig) -> None:
    """A run may be resumed from another folder than the one it was started in."""
    files = ("images", "measurement", "mask", "kernel")
    for name in (*(f"data.{name}" for name in files), *OTHER_FILES):
        value = OmegaConf.select(cfg, name)
        if isinstance(value, str) and (Path(value).exists() or glob.has_magic(value)):
            OmegaConf.update(cfg, name, os.path.abspath(value))


def accepted_parameters(target: Callable) -> dict[str, inspect.Parameter]:
    """What a target takes; a method hands on the keywords that it does not know to the class it is made from."""
    found = dict(inspect.signature(target).parameters)
    bases = target.__mro__[1:] if isinstance(target, type) and issubclass(target, ParticleModule) else ()
    for base in itertools.takewhile(lambda base: issubclass(base, ParticleModule), bases):
        rest = [name for name, parameter in found.items() if parameter.kind is parameter.VAR_KEYWORD]
        if not rest:
            break
        del found[rest[0]]
        found = {**inspect.signature(base).parameters, **found}
    return found


def check_settings(cfg: DictConfig) -> None:
    """Refuses what a target does not take: an unknown name, or a word where a number belongs."""
    for group in ("prior", "features", "physics", "data", "method"):
        target = get_object(cfg[group]._target_)
        parameters = accepted_parameters(target)
        open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        for name, value in OmegaConf.to_container(cfg[group], resolve=True).items():
            # make_physics turns the noise of a deepinv class into its noise_model
            turned = group == "physics" and isinstance(target, type) and name in ("sigma", "noise")
            if name.startswith("_") or turned or (open_ended and name not in parameters):
                continue
            if name not in parameters:
                near = near_miss(f"{group}.{name}", parameters)
                hint = f"did you mean {near}?" if near else f"there are {', '.join(sorted(parameters))}"
                raise HydraException(f"there is no setting '{group}.{name}' with this {group}; {hint}")
            kinds = set(get_args(parameters[name].annotation) or (parameters[name].annotation,))
            if not kinds <= {int, float, bool, str, Path, type(None)}:
                continue
            accepted = kinds | {int} if float in kinds else kinds
            if type(value) not in accepted:
                expected = " or ".join(sorted("null" if kind is type(None) else kind.__name__ for kind in kinds))
                raise HydraException(f"{group}.{name} must be {expected}, got '{value}'")


def keep_settings(cfg: DictConfig, folder: Path) -> None:
    """Writes the settings of a new run, unless the folder holds a run with others."""
    saved = folder / ".hydra" / "config.yaml"
    if saved.is_file() and OmegaConf.load(saved) != cfg:
        raise InputError(
            f"'{folder}' holds a run with other settings; give another output_dir, or go on with that run by "
            f"resume={folder}"
        )
    saved.parent.mkdir(exist_ok=True)
    OmegaConf.save(cfg, saved)
    OmegaConf.save(HydraConfig.get().overrides.task, saved.with_name("overrides.yaml"))
    saved.with_name("command.txt").write_text(shlex.join(["python", "train.py", *sys.argv[1:]]) + "\n")
