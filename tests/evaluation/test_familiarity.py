"""Pictures that a prior does not know: the warning comes for these, and for no others."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from deepinv.physics import Physics
from support.trainers import fit
from torch import Tensor

from rlsd_lightning import RLSD, LatentFeatures, Measurement
from rlsd_lightning.data import measure
from rlsd_lightning.evaluation.familiarity import unknown_picture
from rlsd_lightning.images import load_image
from rlsd_lightning.operators import NullOperator, denoising, gaussian_blur, hdr, inpainting, super_resolution
from rlsd_lightning.priors import PixelPrior, Prior, StableDiffusionPrior
from rlsd_lightning.resources import embedded
from rlsd_lightning.results.writer import ImageResults

SHAPE = (3, 64, 64)
OPERATORS = {
    "inpaint": lambda: inpainting(SHAPE, "half"),
    "inpaint_random": lambda: inpainting(SHAPE, "random"),
    "super_resolution": lambda: super_resolution(SHAPE),
    "denoise": lambda: denoising(SHAPE),
    "gaussian_deblur": lambda: gaussian_blur(SHAPE),
    "hdr": lambda: hdr(SHAPE),
}
PICTURES = {
    "faces": [load_image(embedded(f"faces/heldout/{number:03d}.png"), 64, 64) for number in range(0, 100, 12)],
    "photos": [load_image(file, 64, 64) for file in sorted(embedded("photos").iterdir())],
    "noise": [torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in range(2)],
}
UNKNOWN = {("faces", "photos"), ("faces", "noise"), ("photos", "noise")}
"""Cartoons are no wrong pictures for the prior of photographs, which reconstructs them as well as photographs."""


@pytest.fixture(scope="module")
def prior_of() -> Callable[[str], Prior]:
    return {
        name: StableDiffusionPrior(str(embedded(f"priors/{name}")), image_size=64, local_files_only=True)
        for name in ("faces", "photos")
    }.__getitem__


def measured(picture: Tensor, physics: Physics) -> Measurement:
    return Measurement("one", measure(physics, picture, 0), physics, picture)


@pytest.mark.parametrize("name", ["faces", "photos"])
@pytest.mark.parametrize("kind", PICTURES)
def test_a_known_truth_warns_exactly_where_it_is_foreign(name: str, kind: str, prior_of: Callable) -> None:
    said = [unknown_picture(prior_of(name), measured(each, denoising(SHAPE))) for each in PICTURES[kind]]
    assert [line is not None for line in said] == [(name, kind) in UNKNOWN] * len(said)
    for line in filter(None, said):
        assert line.startswith(
            "the prior does not know such pictures: its autoencoder reconstructs this one with an error of "
        )
        assert ("choose prior=photos, or a checkpoint" in line) is (name == "faces")


@pytest.mark.parametrize("name", ["faces", "photos"])
@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("task", OPERATORS)
def test_without_a_truth_what_is_seen_decides(task: str, kind: str, name: str, prior_of: Callable) -> None:
    for picture in PICTURES[kind][:2]:
        physics = OPERATORS[task]()
        measurement = measured(picture, physics)._replace(truth=None)
        said = unknown_picture(prior_of(name), measurement, picture.expand(2, -1, -1, -1))
        if task in ("super_resolution", "gaussian_deblur") and (kind == "noise" or (name, kind) == ("photos", "faces")):
            continue  # these leave nothing of noise; and of cartoons their colours, some of which photographs lack
        assert (said is not None) is ((name, kind) in UNKNOWN), said


def test_hidden_pixels_do_not_count(prior_of: Callable) -> None:
    face, foreign = PICTURES["faces"][0], PICTURES["noise"][0]
    physics = inpainting(SHAPE, "half")
    hidden = face * physics.mask + foreign * (1 - physics.mask)
    assert unknown_picture(prior_of("faces"), measured(face, physics)._replace(truth=None), hidden) is None
    assert unknown_picture(prior_of("faces"), measured(hidden, physics)) is not None


def test_priors_in_pixels_and_particles_without_data_have_no_such_warning(
    prior_of: Callable, tiny_pixel_folder: Path
) -> None:
    noise = PICTURES["noise"][0]
    pixels = PixelPrior(str(tiny_pixel_folder), local_files_only=True)
    small = noise[..., :32, :32]
    assert unknown_picture(pixels, measured(small, denoising(small.shape[1:]))) is None
    nothing = NullOperator(SHAPE)
    measurement = Measurement("generated", nothing.A(noise), nothing)
    assert unknown_picture(prior_of("faces"), measurement, noise) is None


@pytest.mark.parametrize("has_truth", [True, False])
def test_a_run_says_it_once_and_keeps_it(
    has_truth: bool,
    tiny_prior: Prior,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = tiny_prior.calibration._replace(largest_error=0.05)
    monkeypatch.setattr(tiny_prior, "calibration", own)
    physics = inpainting(tiny_prior.image_shape, "half")
    picture = torch.rand(1, *tiny_prior.image_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    measurement = Measurement("m", measure(physics, picture, 0), physics, picture if has_truth else None)
    module = RLSD(tiny_prior, measurement, LatentFeatures(), num_steps=4, num_particles=2)
    with caplog.at_level(logging.WARNING, "rlsd_lightning"):
        fit(module, tmp_path, ImageResults(tmp_path))
    (logged,) = [line for line in caplog.messages if "does not know such pictures" in line]
    warnings = json.loads((tmp_path / "m" / "metrics.json").read_text())["warnings"]
    assert logged == f"m: {warnings[0]}"
    assert [line for line in warnings if "does not know" in line] == warnings[:1]
