"""The command line: the only part that knows Hydra."""

import sys
from pathlib import Path

from omegaconf import OmegaConf

from rlsd_lightning.resources import PROJECT

__all__ = ["program"]

OmegaConf.register_new_resolver("project", lambda path: str(PROJECT / path), replace=True)


def program() -> str:
    """The command that was used, which messages and saved commands repeat: ``python train.py`` or ``rlsd``."""
    return "python train.py" if Path(sys.argv[0]).name == "train.py" else "rlsd"
