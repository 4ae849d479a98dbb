"""Arguments of the Python interface that are of another type, shape or range: named, with what was expected."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rlsd_lightning import RLSD, InputError, LatentFeatures, Reconstructor, StableDiffusionPrior, representatives, solve
from rlsd_lightning.data import AnySize, ImageMeasurements, ImageSizes, MeasuredData
from rlsd_lightning.features import ViTFeatures
from rlsd_lightning.operators import (
    compose,
    compressed_sensing,
    denoising,
    gaussian_blur,
    hdr,
    inpainting,
    jpeg,
    motion_blur,
    mri,
    nonlinear_blur,
    phase_retrieval,
    quantization,
    super_resolution,
    tomography,
)
from rlsd_lightning.priors import PixelPrior
from rlsd_lightning.results.store import load_run

SHAPE = (3, 32, 32)
Y = torch.zeros(1, *SHAPE)
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"y": np.zeros((1, 3, 32, 32))}, "y must be a torch.Tensor, got ndarray"),
        ({"y": [0.0]}, "y must be a torch.Tensor, got list"),
        ({"y": None}, "y must be a torch.Tensor, got NoneType"),
        ({"y": Y.to(torch.uint8)}, "real or complex numbers .* torch.uint8; .* y / 127.5 - 1"),
        ({"y": Y.long()}, "real or complex numbers .* torch.int64"),
        ({"y": Y > 0}, "real or complex numbers .* torch.bool"),
        ({"y": Y.to(torch.complex64)}, "measures torch.float32, but 'measurement' has torch.complex64"),
        ({"y": Y[0]}, r"has shape \(3, 32, 32\); add the batch's axis by y\[None\]"),
        ({"y": torch.cat([Y, Y])}, r"has shape \(2, 3, 32, 32\); solve one at a time"),
        ({"y": Y[..., :16]}, r"has shape \(1, 3, 32, 16\); crop or resize it"),
        ({"physics": "half"}, "'str' object is not callable"),
        ({"prior": "faces"}, "prior must be a Prior, .* got str"),
        ({"prior": denoising(SHAPE)}, "prior must be a Prior, .* got Denoising"),
        ({"features": "vit"}, "features must be a network, .* got str"),
        ({"method": "rlsd"}, "method must be a class, .* got 'rlsd'"),
        ({"truth": np.zeros((1, 3, 32, 32))}, "truth must be a torch.Tensor, got ndarray"),
        ({"truth": Y + 255}, r"truth must be an image in \[-1, 1\], got values from 255 to 255"),
        ({"num_steps": 2.5}, "num_steps must be an integer, got 2.5"),
        ({"num_steps": "2"}, "num_steps must be an integer, got '2'"),
        ({"num_particles": 2.0}, "num_particles must be an integer, got 2.0"),
        ({"seed": None}, "seed must be from 0 .* got None"),
        ({"seed": 1.5}, "seed must be an integer, got 1.5"),
        ({"gamma": "high"}, "gamma must be at least 0, got 'high'"),
        ({"repulsion_until": None}, "repulsion_until must be from 0 to 1, got None"),
    ],
)
def test_a_wrong_argument_of_solve_is_named(changed: dict[str, Any], said: str, tiny_prior: StableDiffusionPrior):
    arguments = {"y": Y, "physics": denoising(SHAPE), "prior": tiny_prior, "num_steps": 2, "trainer": QUIET} | changed
    with pytest.raises(InputError, match=said):
        solve(**arguments)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_the_callers_mode_of_gradients_does_not_matter(mode, tiny_prior: StableDiffusionPrior):
    physics = denoising(SHAPE)
    settings = {"num_steps": 2, "num_particles": 2, "trainer": QUIET}
    expected = solve(Y, physics, tiny_prior, **settings)
    with mode():
        assert torch.equal(solve(Y.clone(), physics, tiny_prior, **settings).particles, expected.particles)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 3, 16, 16), (2, 1, 32, 32), (2, 3, 32)])
@pytest.mark.parametrize("image_range", [(0, 1), (-1, 1)])
def test_a_measurement_of_another_shape_is_not_broadcast(shape, image_range, tiny_prior: StableDiffusionPrior):
    model = Reconstructor(tiny_prior, image_range, num_steps=2, num_particles=2)
    with pytest.raises(InputError, match=r"into measurements of shape \(1, 3, 32, 32\), but 'measurement_0' has"):
        model(torch.rand(shape), denoising(SHAPE))


@pytest.mark.parametrize(
    ("particles", "k", "said"),
    [
        (np.zeros((4, 3, 8, 8)), 2, "particles must be a torch.Tensor, got ndarray"),
        (torch.zeros(0, 3, 8, 8), 2, "at least one"),
        (torch.zeros(4, 3, 8, 8), 0, "k must be at least 1, got 0"),
        (torch.zeros(4, 3, 8, 8), "4", "k must be an integer, got '4'"),
    ],
)
def test_representatives_of_what_is_no_set_are_refused(particles, k, said: str):
    with pytest.raises(InputError, match=said):
        representatives(particles, k)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_run_is_read_from_a_path_of_either_kind(kind: type, tmp_path: Path):
    with pytest.raises(InputError, match="no finished measurement"):
        load_run(kind(tmp_path))


@pytest.mark.parametrize("value", [None, 5, b"x", ["a"]])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (StableDiffusionPrior, "pretrained"),
        (PixelPrior, "pretrained"),
        (ViTFeatures, "pretrained"),
        (partial(ImageMeasurements, SHAPE, denoising(SHAPE)), "images"),
        (partial(MeasuredData, SHAPE, denoising(SHAPE)), "measurement"),
        (load_run, "folder"),
    ],
)
def test_what_is_no_path_is_refused_by_name(make, name: str, value: object):
    with pytest.raises(InputError, match=f"^{name} must be a str or a Path, got {type(value).__name__}; give"):
        make(value)


@pytest.mark.parametrize("value", [None, 5, torch.zeros(1, *SHAPE), [None]])
def test_what_is_no_measurement_is_refused_by_name(value: object, tiny_prior: StableDiffusionPrior):
    with pytest.raises(InputError, match="measurements must be a Measurement, or a list of them, got "):
        RLSD(tiny_prior, value, LatentFeatures())


@pytest.mark.parametrize("value", [None, 1, "01"])
def test_what_is_no_range_is_refused_by_name(value: object, tiny_prior: StableDiffusionPrior):
    with pytest.raises(InputError, match="image_range must be the values of black and white"):
        Reconstructor(tiny_prior, value)


@pytest.mark.parametrize("shape", [(2,), (5,), (64, 64)])
def test_pictures_need_a_prior_of_images(shape: tuple[int, ...]):
    with pytest.raises(InputError, match=r"prior of images of shape .* choose another prior, or task=toy"):
        AnySize(ImageSizes(shape), denoising)


@pytest.mark.parametrize("make", [ImageMeasurements, MeasuredData])
@pytest.mark.parametrize("index", [slice(0, 1), "0", 0.0])
def test_one_measurement_is_read_at_a_time(make: type, index: object, tmp_path: Path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
        make(SHAPE, denoising(SHAPE), tmp_path)[index]


def test_operators_are_composed_as_they_are_or_by_their_factories():
    hides, shrinks = inpainting(SHAPE, "half"), super_resolution(SHAPE, 2)
    image = torch.rand(1, *SHAPE)
    composed: Tensor = compose(SHAPE, [hides, super_resolution], sigma=0).A(image)
    assert composed.shape == (1, 3, 8, 8)
    assert torch.equal(compose(SHAPE, [hides, shrinks], sigma=0).A(image), shrinks.A(hides.A(image)))


@pytest.mark.parametrize("mask", [torch.ones(1, 32, 32), np.ones((32, 32)), None])
def test_a_mask_in_memory_is_for_deepinvs_operator(mask: object):
    with pytest.raises(InputError, match=r"mask must be a name or a file, got .* deepinv.physics.Inpainting"):
        inpainting(SHAPE, mask)


NUMBERS = {
    "std": gaussian_blur,
    "scale": hdr,
    "levels": quantization,
    "quality": jpeg,
    "ratio": compressed_sensing,
    "sigma": denoising,
    "oversampling": phase_retrieval,
    "acceleration": mri,
    "white": tomography,
    "detector_spacing": tomography,
    "angles": tomography,
    "size": motion_blur,
    "exposure": nonlinear_blur,
    "factor": super_resolution,
}


@pytest.mark.parametrize("value", [-1, "many", float("nan")])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_of_an_operator_that_is_none_is_named(name: str, value: object):
    with pytest.raises(InputError, match=f"^{name} must be .*got {value!r}|^angles must be "):
        NUMBERS[name](SHAPE, **{name: value})
