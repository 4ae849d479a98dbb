"""Compilation of a prior's networks."""

import logging
import os
from tempfile import TemporaryDirectory
from unittest import mock

import torch

from rlsd_lightning.errors import first_line
from rlsd_lightning.priors import Prior

__all__ = ["compile_if_possible"]

log = logging.getLogger(__name__)


def compile_if_possible(prior: Prior, device: torch.device, regional: bool = False) -> None:
    """Compile a prior's networks; a warning and no change where torch.compile does not work."""
    try:
        # a cache would hide that the compiler is gone
        with TemporaryDirectory() as cache, mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=cache):
            torch.compile(lambda x: x.sin() + 1, fullgraph=True)(torch.ones(8, device=device))
    except Exception as error:  # noqa: BLE001  torch has a class for every part that may be missing
        log.warning("compile has no effect: torch.compile does not work here (%s)", first_line(error))
        return
    finally:
        torch.compiler.reset()
    prior.compile_networks(regional, fullgraph=True)
