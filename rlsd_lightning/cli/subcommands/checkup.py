"""Checks of :mod:`rlsd_lightning.cli.subcommands.doctor`, in order; a failed one does not end the others."""

import importlib.metadata
import logging
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import diffusers
import torch
import transformers
from huggingface_hub import constants
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from rlsd_lightning.data import measure
from rlsd_lightning.distributed.environment import lone_device
from rlsd_lightning.engine.pace import peak_memory
from rlsd_lightning.errors import InputError, first_line
from rlsd_lightning.images import find_images, load_image, with_channels
from rlsd_lightning.operators import inpainting
from rlsd_lightning.priors import Prior, StableDiffusionPrior
from rlsd_lightning.priors.measured import draw
from rlsd_lightning.priors.measured.examination import (
    Finding,
    examine_autoencoder,
    examine_latents,
    examine_prediction,
    least_error,
)
from rlsd_lightning.resources import embedded
from rlsd_lightning.solving import solve

__all__ = ["prior_checks", "self_test", "system_lines"]

PACKAGES = ("rlsd-lightning", "torch", "lightning", "diffusers", "transformers", "deepinv", "hydra-core")
GIGA = 2**30
OWN_SAMPLES = 2
PICTURES = 6
"""Most pictures that are looked at."""
MOST_SIGMAS = 3.0
"""Residual of a healthy run, in standard deviations of the noise."""
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own


def system_lines() -> Iterator[str]:
    """Versions, devices, free memory and caches."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    yield ", ".join([*versions, f"Python {platform.python_version()}", platform.platform()])
    pages = os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", ()) else None
    free = "" if pages is None else f", {pages * os.sysconf('SC_PAGE_SIZE') / GIGA:.1f} GiB free"
    yield f"CPU: {os.cpu_count()} cores, {torch.get_num_threads()} threads{free}"
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        yield f"GPU {number}: {name}, {free / GIGA:.1f} of {total / GIGA:.1f} GiB free, CUDA {torch.version.cuda}"
    if torch.accelerator.is_available() and not torch.cuda.is_available():
        yield f"GPU: {torch.accelerator.current_accelerator()}"
    hub = Path(constants.HF_HUB_CACHE)
    models = len(list(hub.glob("models--*")))
    offline = ", offline" if constants.HF_HUB_OFFLINE else ""
    yield f"caches: {hub} ({models} models{offline}), {torch.hub.get_dir()}"


def self_test() -> Iterator[Finding]:
    """Ten steps of inpainting with the embedded prior."""
    prior = StableDiffusionPrior(str(embedded("priors/faces")), local_files_only=True)
    yield _checked("self-test", lambda: _inpaint(prior, load_image(embedded("faces/heldout/000.png"), 64, 64), 10))


def prior_checks(cfg: DictConfig, own_pictures: bool) -> Iterator[Finding]:
    """Checks of the prior that is configured, on the device that a run would take."""
    start = time.perf_counter()
    try:
        prior = instantiate(cfg.prior)
        prior.to(lone_device(cfg.trainer.accelerator))
    except Exception as error:  # noqa: BLE001  the reason is what the user wants to see
        yield Finding("load", False, _reason(error))
        return
    count = sum(parameter.numel() for parameter in prior.parameters()) / 1e6
    types = ", ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in prior.parameters()}))
    shapes = " and ".join("x".join(map(str, shape)) for shape in (prior.image_shape, prior.latent_shape))
    seconds = time.perf_counter() - start
    yield Finding(
        "load", True, f"{seconds:.1f} s, {type(prior).__name__}, {count:.1f} M {types}, images and latents {shapes}"
    )
    # in the checks, which may lack memory
    pictures = cache(lambda: _pictures(cfg, prior, own_pictures))
    own = cache(lambda: draw(prior, OWN_SAMPLES))
    yield _checked("prediction", lambda: examine_prediction(prior, own()))
    if prior.latent_shape != prior.image_shape:
        yield _checked("autoencoder", lambda: examine_autoencoder(prior, *pictures()))
        yield _checked("latents", lambda: examine_latents(prior, pictures()[0], own()))
    yield _checked("inpainting", lambda: _inpaint(prior, pictures()[0][0], 20))


def _checked(name: str, check: Callable[[], Finding]) -> Finding:
    """The finding of a check; an exception is one too."""
    try:
        return check()._replace(name=name)
    except Exception as error:  # noqa: BLE001  as above
        return Finding(name, False, _reason(error))


def _reason(error: Exception) -> str:
    while not isinstance(error, InputError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # Hydra's own error around it
    return first_line(error) if isinstance(error, InputError) else f"{type(error).__name__}: {first_line(error)}"


def _pictures(cfg: DictConfig, prior: Prior, own: bool) -> tuple[list[Tensor], str]:
    """Pictures that the prior should know, and what they are: the user's, photographs, or faces for a prior of faces."""
    if own:
        data = instantiate(cfg.data, limit=PICTURES, fit="crop")(prior.image_shape, instantiate(cfg.physics))
        return [data[index].truth for index in range(len(data))], OmegaConf.select(cfg, "data.images")
    found = {name: _embedded(name, prior) for name in ("photos", "faces/heldout")}
    errors = {name: least_error(prior, pictures) for name, pictures in found.items()}
    name = "faces/heldout" if errors["faces/heldout"] < errors["photos"] / 2 else "photos"
    return found[name], f"data/{name}"


def _embedded(name: str, prior: Prior) -> list[Tensor]:
    channels, *lengths = prior.image_shape
    return [with_channels(load_image(file, *lengths), channels) for file in find_images(embedded(name))[:PICTURES]]


def _inpaint(prior: Prior, picture: Tensor, steps: int) -> Finding:
    """A box of a picture from its surroundings, with two particles."""
    physics = inpainting(prior.image_shape, "box")
    place = prior.alphas.device.type
    if place == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    trainer = {"accelerator": "auto" if place != "cpu" else "cpu", "enable_progress_bar": False}
    result = solve(
        measure(physics, picture, 0), physics, prior, truth=picture, num_particles=2, num_steps=steps, trainer=trainer
    )
    seconds, figures = time.perf_counter() - start, result.metrics
    residual, better = figures["residual_sigmas"], figures["psnr_mean"] > figures["psnr_pseudo_inverse"]
    text = (
        f"{steps} steps, 2 particles in {seconds:.1f} s on {place}: residual {residual:.2g} sigmas (healthy: below "
        f"{MOST_SIGMAS:g}), {figures['psnr_mean']:.1f} dB ({figures['psnr_pseudo_inverse']:.1f} without a prior), "
        f"{peak_memory(prior.alphas.device)}"
    )
    return Finding("inpainting", residual < MOST_SIGMAS and better, text)
