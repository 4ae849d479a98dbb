"""Checks an installation, or a prior whose weights were never tried here; prints a block to paste into an issue.

rlsd doctor
rlsd doctor prior=sd15
rlsd doctor prior=sd15 prior.pretrained=/models/my-finetune prior.weights=float16 data.images=photographs

Without a prior: versions, devices, memory, caches, and ten steps with the embedded prior. With one: its loading, its
autoencoder on pictures (those of data/photos, or data.images), its latents, its noise prediction at five levels, and
20 steps of inpainting. The exit code is 1 if a check fails.
"""

import logging

from omegaconf import DictConfig

from rlsd_lightning.cli.subcommands.composition import has_pictures, run_composed
from rlsd_lightning.errors import InputError

__all__ = ["main"]


def examine(cfg: DictConfig, given: list[str]) -> int:
    """Print the findings and return the exit code.

    Raises:
        InputError: If there are settings but no prior.
    """
    from rlsd_lightning.cli.subcommands.checkup import prior_checks, self_test, system_lines  # with torch

    has_prior, ok = any(name.split(".")[0] == "prior" for name in given), True
    if given and not has_prior:
        raise InputError(f"prior must be named with other settings, such as prior=sd15, got {given[0]} without it")
    log = logging.getLogger("rlsd_lightning")
    level = log.level
    log.setLevel(logging.ERROR)  # findings have what matters of the warnings
    try:
        print("\n".join(["```", *system_lines()]), flush=True)
        for finding in prior_checks(cfg, own_pictures=has_pictures(given)) if has_prior else self_test():
            print(finding, flush=True)
            ok = ok and finding.ok
        print("```")
    finally:
        log.setLevel(level)
    return 0 if ok else 1


def main(arguments: list[str] | None = None) -> int:
    """Examine what the arguments name and return the exit code."""
    return run_composed("doctor", __doc__, arguments, examine)
