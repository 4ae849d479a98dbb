"""Settings of the subcommands that take those of a run, such as ``prior=sd15 prior.weights=float16``."""

import logging
import sys
from collections.abc import Callable

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from rlsd_lightning.cli.literal import as_typed
from rlsd_lightning.cli.messages import explain
from rlsd_lightning.cli.settings import check_settings, with_present_names, without_null_groups
from rlsd_lightning.cli.subcommands.parser import Parser
from rlsd_lightning.errors import first_line, is_out_of_memory, printable
from rlsd_lightning.resources import CONFIGS

__all__ = ["has_pictures", "run_composed"]


def has_pictures(given: list[str]) -> bool:
    """Whether the names of the settings that were given choose pictures."""
    return "data" in given or "data.images" in given


def run_composed(
    name: str, description: str, arguments: list[str] | None, run: Callable[[DictConfig, list[str]], int]
) -> int:
    """Compose settings, check them, and run with them.

    Args:
        name: The subcommand.
        description: Its help: a line, an empty line, and more.
        arguments: Settings as ``name=value``; those of this process if left out.
        run: Takes the configuration and the names that were given, and returns the exit code.

    Returns:
        The exit code: 1 for an unusable input, 2 for a wrong command line.
    """
    options = Parser(name, description)
    options.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="settings of a run")
    given = options.parse_args(arguments).settings
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    cfg = None
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            cfg = compose("train", as_typed(without_null_groups(with_present_names(given))))
        check_settings(cfg)
        return run(cfg, [item.lstrip("+~").split("=")[0] for item in given])
    except Exception as error:
        said = explain(error, cfg)
        if is_out_of_memory(error):
            said = (
                f"memory is too small ({first_line(error)}); set prior.weights=bfloat16 or a smaller prior.image_size",
                1,
            )
        if said is None:
            raise
        print(printable(f"error: {said[0]}"), file=sys.stderr)
        return said[1]
