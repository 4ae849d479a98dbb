"""Help: commands to copy, the choices of each group, and the settings of one composition with their comments.

The comments in ``configs/`` are the documentation, which is read from there.
"""

import argparse
import itertools
import json
import os
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from rlsd_lightning.cli import program
from rlsd_lightning.cli.literal import quoted
from rlsd_lightning.resources import CONFIGS, PROJECT

__all__ = ["GROUPS", "OTHER_GROUPS", "comments_of", "help_text", "options_of", "overrides_of"]

COMMANDS = {
    "task=inpaint": "the embedded prior and one held-out face",
    "task=inpaint data.images=photos data.limit=null": "images of your own",
    "task=inpaint data.measurement=y.png physics.mask=m.png": "a measured image, without a ground truth",
    "resume=outputs/inpaint/2026-11-24_12-00-00": "resume a stopped run",
    "evaluate outputs/inpaint/*": "compare finished runs",
    "doctor prior=sd15": "check an installation and a prior",
}
GROUPS = {
    "task": "what to solve",
    "prior": "which diffusion model knows the images",
    "method": "which algorithm draws the particles",
    "features": "what the repulsion compares",
    "experiment": "settings of the paper, and studies of many runs",
}
"""What each group of choices is for."""
OTHER_GROUPS = {
    "data": "where measurements come from; the task chooses it",
    "callbacks": "what a run shows and writes; the task chooses it",
    "trainer": "devices and precision",
    "logger": "curves",
}
"""Groups whose options a user seldom chooses."""
PARTS = ("physics", "data", "method", "prior", "features", "trainer", "callbacks", "logger")
"""Order of the parts' settings; those that belong to no part come first."""
LEFT = 44
"""Width of the names' column; the comment of a longer name starts on the next line."""


def overrides_of(arguments: Sequence[str]) -> list[str]:
    """Overrides of a command line, with the folder of ``--config-dir`` in Hydra's search path; other options are left out.

    Raises:
        HydraException: If there is no such folder.
    """
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    options.add_argument("--config-dir", "-cd", metavar="FOLDER")
    try:
        known, others = options.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise HydraException(f"{error}; give a folder of groups, such as --config-dir conf") from None
    overrides = [argument for argument in others if not argument.startswith("-")]
    if known.config_dir is None:
        return overrides
    if not os.path.isdir(known.config_dir):
        raise HydraException(f"--config-dir must be a folder of groups, but there is no folder '{known.config_dir}'")
    return [*overrides, f"hydra.searchpath=[{quoted(f'file://{os.path.abspath(known.config_dir)}')}]"]


def help_text(overrides: list[str]) -> str:
    """Help on the composition of these overrides.

    Raises:
        HydraException: If they do not compose.
    """
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", overrides, return_hydra_config=True)
        loader = GlobalHydra.instance().config_loader()
        defaults = loader.compute_defaults_list("train", overrides, RunMode.RUN).defaults
    folders = [Path(source.path) for source in cfg.hydra.runtime.config_sources if source.schema == "file"]
    comments: dict[str, str] = {}
    for one in defaults:
        files = [folder / f"{one.config_path}.yaml" for folder in folders]
        for file in [file for file in files if file.is_file()][:1]:  # as in Hydra, the first folder's
            comments |= comments_of(file, (one.package or "").replace("_global_", ""))
    return "\n".join(
        [
            "Draws particles for measurements under a latent diffusion prior.",
            *_section("Commands to copy", ((f"{program()} {one}", said) for one, said in COMMANDS.items()), 76),
            *_choices(dict(cfg.hydra.runtime.choices), folders),
            *_settings(cfg, comments),
        ]
    )


def _choices(chosen: dict[str, str | None], folders: Sequence[Path]) -> Iterator[str]:
    """A section for each group, with a line for each option."""
    for group, meaning in GROUPS.items():
        rows = (
            (f"{group}={name}", _first_sentence(_header(file))) for name, file in options_of(group, folders).items()
        )
        yield from _section(f"{group}: {meaning} (now {chosen.get(group) or 'none'})", rows)
    yield from _section(
        "Other choices",
        ((f"{group}={', '.join(options_of(group, folders))}", meaning) for group, meaning in OTHER_GROUPS.items()),
    )


def _settings(cfg: DictConfig, comments: dict[str, str]) -> Iterator[str]:
    """A section for each part, with each setting's value and comment."""
    new_folder = f"outputs/{cfg.hydra.runtime.choices.task}/<time>"
    is_new = OmegaConf.is_interpolation(cfg, "output_dir")  # its time is that of the run
    names = [name for name in cfg if name not in (*PARTS, "hydra")]
    values = {name: new_folder if name == "output_dir" and is_new else _shown(cfg, name) for name in names}
    rows = ((f"{name}={value}", comments.get(name, "")) for name, value in values.items())
    yield from _section("Settings of this composition", rows)
    for part in PARTS:
        rows = ((f"{name}={value}", comments.get(name, "")) for name, value in _leaves(cfg.get(part), part))
        yield from _section(f"{part}: {_first_sentence(comments.get(part, ''))}", rows)


def options_of(group: str, folders: Sequence[Path] = (CONFIGS,)) -> dict[str, Path]:
    """Files of a group's options by name, without the bases of others; of one name, the first folder's."""
    files = {
        file.relative_to(folder / group).with_suffix("").as_posix(): file
        for folder in reversed(folders)
        for file in (folder / group).rglob("[!_]*.yaml")
    }
    return dict(sorted(files.items()))


def comments_of(file: Path, package: str) -> dict[str, str]:
    """Comment of each setting of a file, by the setting's full name below ``package``.

    A comment stands above its setting or behind it; that of a part heads its file or stands above its ``_target_``.
    """
    lines = file.read_text(encoding="utf-8").splitlines()
    found = {package: _header(file)}

    def comment(line: int) -> str:
        """Comment of the setting in a line."""
        first = line
        while first and lines[first - 1].lstrip().startswith("#"):
            first -= 1
        return _joined(lines[first:line]) or lines[line].partition(" # ")[2]

    def visit(node: yaml.Node, path: list[str]) -> None:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            name = ".".join([*path, key.value] if key.value != "_target_" else path)
            if said := comment(key.start_mark.line):
                found[name] = said
            visit(value, [*path, key.value])

    visit(yaml.compose("\n".join(lines)), package.split(".") if package else [])
    return found


def _header(file: Path) -> str:
    """A file's first comment."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return _joined(itertools.takewhile(lambda line: line.startswith("#"), lines))


def _joined(comment: Iterable[str]) -> str:
    """Lines of a comment as one, without Hydra's directive."""
    lines = [line.strip(" #") for line in comment]
    return " ".join(line for line in lines if not line.startswith("@package"))


def _first_sentence(comment: str) -> str:
    return re.split(r"[.;] ", comment)[0].removesuffix(".")


def _leaves(cfg: DictConfig | None, path: str) -> Iterator[tuple[str, str]]:
    """Names and values of a part's settings, except those that repeat one of no part."""
    values = OmegaConf.to_container(cfg, resolve=False) if cfg is not None else {}
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(cfg[name], f"{path}.{name}")
        elif not name.startswith("_") and value != f"${{{name}}}":
            yield f"{path}.{name}", _shown(cfg, name)


def _shown(cfg: DictConfig, name: str) -> str:
    """A setting's value as the command line takes it."""
    value = "???" if OmegaConf.is_missing(cfg, name) else cfg[name]
    if isinstance(value, str) and Path(value).is_relative_to(PROJECT) and PROJECT.is_relative_to(Path.cwd()):
        value = str(Path(value).relative_to(Path.cwd()))
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value) or "''"


def _section(title: str, rows: Iterable[tuple[str, str]], left: int = LEFT) -> Iterator[str]:
    """An empty line, the title, and two columns, the second of them wrapped to the terminal's width."""
    width = max(shutil.get_terminal_size((120, 0)).columns - left, 40)
    yield from ("", title)
    for name, comment in rows:
        first, *rest = textwrap.wrap(comment, width) or [""]
        if len(name) + 4 > left:
            first, rest = "", [first, *rest]
        yield f"  {name:{left - 2}}{first}".rstrip()
        yield from (f"{'':{left}}{line}" for line in rest)
