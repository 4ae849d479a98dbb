"""Resumed runs: where they are, and which of their settings may change."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rlsd_lightning.cli.literal import INPUTS
from rlsd_lightning.cli.settings import (
    CHOICES,
    OLDER,
    SETTINGS,
    make_paths_absolute,
    move_older,
    overridden,
    read_settings,
    read_yaml,
    run_folder,
)
from rlsd_lightning.errors import InputError

__all__ = ["MAY_CHANGE", "changed_inputs", "resumed"]

FIXED = (
    "method",
    "physics",
    "prior",
    "features",
    "num_particles",
    "num_steps",
    "seed",
    "measurements_per_batch",
    "data.seed",
    "data.sequence",
    "data.tile",
    *("data.fit", "data.range", "data.axes", "data.name", "data.value"),
    "trainer.precision",
)
"""Settings, or groups of them, that determine a run's results."""
MAY_CHANGE = (
    *(name for name in INPUTS if name not in OLDER.values()),
    "prior.local_files_only",
    "prior.decoder_checkpointing",
    "features.local_files_only",
    "method.particle_chunk",
)
"""Exceptions: places of files, and ways of computing the same results."""
FILES = (*(name for name in INPUTS if name.startswith("physics.")), "prior.lora", "prior.tiny_decoder")
"""Places of files that may also be another value, such as a number or null, which may not change."""


def resumed(cfg: DictConfig) -> DictConfig:
    """The settings a run was started with, updated by those of this command line that may change.

    Raises:
        InputError: If a setting that determines the results, or a choice of a group, is another one than before.
    """
    folder = Path(run_folder(cfg.resume, cfg.ckpt_path, "", ""))
    if Path(cfg.output_dir).resolve() != folder.resolve():
        raise InputError(f"output_dir must be left out or '{folder}' for a resumed run, got '{cfg.output_dir}'")
    started = read_settings(folder)
    chosen_before = read_yaml(folder / CHOICES) if (folder / CHOICES).is_file() else {}
    chosen = HydraConfig.get().runtime.choices
    move_older(started)
    move_older(cfg, overridden())
    make_paths_absolute(cfg)
    for name, removed in overridden().items():
        is_choice = name in chosen
        if is_choice:
            before, asked = chosen_before.get(name), chosen[name]
        else:
            before, asked = (OmegaConf.select(settings, name) for settings in (started, cfg))
        may_change = name in MAY_CHANGE and (name not in FILES or all(map(_is_file, (before, asked))))
        fixed = is_choice or (not {name, name.split(".")[0]}.isdisjoint(FIXED) and not may_change)
        if fixed and before != asked:
            raise InputError(
                f"{name} was {before!r} when the run was started and can't change to {asked!r}; leave it out, or start a "
                "new run"
            )
        if removed:
            group, _, last = name.rpartition(".")
            (OmegaConf.select(started, group) if group else started).pop(last, None)
        elif not is_choice:
            OmegaConf.update(started, name, asked, force_add=True)
    started.output_dir = str(folder)
    return started


def changed_inputs(cfg: DictConfig, folder: Path) -> list[Path]:
    """Files of a run's settings that are newer than the run, if it has results: these are of the files before."""
    saved = folder / SETTINGS
    if not saved.is_file() or not any(folder.glob("*/metrics.json")):
        return []
    given = [Path(value) for name in INPUTS if isinstance(value := OmegaConf.select(cfg, name), str)]
    files = [file for place in given for file in (place.iterdir() if place.is_dir() else [place]) if file.is_file()]
    return [file for file in files if file.stat().st_mtime > saved.stat().st_mtime]


def _is_file(value: object) -> bool:
    """Whether a setting is a file that was found, whose path was made absolute then."""
    return isinstance(value, str) and Path(value).is_absolute()
