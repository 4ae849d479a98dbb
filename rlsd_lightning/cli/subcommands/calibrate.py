"""Measures a prior's scales on pictures that it knows, and keeps them beside its settings.

rlsd calibrate prior=sd15 data.images=photographs
rlsd calibrate prior=photos prior.image_size=256 data.images=photographs
rlsd calibrate prior=pixel

A dozen pictures do; without data.images the prior's own samples are measured. Each size of images has its own entry in
calibration.json. docs/priors.md says what is measured.
"""

from omegaconf import DictConfig

from rlsd_lightning.cli.subcommands.composition import has_pictures, run_composed
from rlsd_lightning.errors import InputError

__all__ = ["main"]


def calibrate(cfg: DictConfig, given: list[str]) -> int:
    """Measure, write and print; returns the exit code.

    Raises:
        InputError: If no prior is named, it has no checkpoint, or no picture can be read.
    """
    if not any(name.split(".")[0] == "prior" for name in given):
        raise InputError("prior must be named, such as prior=sd15: its calibration.json is written anew")
    from hydra.utils import instantiate  # with torch, as all that follows

    from rlsd_lightning.distributed.environment import lone_device
    from rlsd_lightning.priors import measure, save_calibration

    prior = instantiate(cfg.prior)
    if prior.origin is None:
        raise InputError(
            f"prior: one with a checkpoint is expected, got {type(prior).__name__}, which needs no calibration"
        )
    pictures = None
    if has_pictures(given):
        limit = cfg.data.limit if "data.limit" in given else None
        data = instantiate(cfg.data, limit=limit, fit="crop")(prior.image_shape, instantiate(cfg.physics))
        pictures = (data[index].truth for index in range(len(data)))
    found = measure(prior.to(lone_device(cfg.trainer.accelerator)), pictures)
    file = save_calibration(prior.origin, prior.image_shape, found)
    for name, value in found._asdict().items():
        if name != "weights":  # a digest, known to the file only
            print(f"{name}: {value}")
    height, width = prior.image_shape[-2:]
    print(f"kept for images of {height}x{width} in {file}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Measure a prior and return the exit code."""
    return run_composed("calibrate", __doc__, arguments, calibrate)
