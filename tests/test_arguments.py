"""Arguments of the Python interface that are of another type, shape or range: named, with what was expected."""

import inspect
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import rlsd_lightning
from rlsd_lightning import (
    RLSD,
    GaussianMixturePrior,
    InputError,
    LatentFeatures,
    Measurement,
    Reconstructor,
    StableDiffusionPrior,
    operators,
    representatives,
    solve,
)
from rlsd_lightning.data import AnySize, ImageMeasurements, ImageSizes, MeasuredData
from rlsd_lightning.features import ViTFeatures
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.operators import (
    compose,
    compressed_sensing,
    custom,
    denoising,
    first_coordinate,
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
        ({"y": [0.0]}, r"y must be a torch.Tensor, got \[0.0\]; make it one by torch.as_tensor"),
        ({"y": None}, "y must be a torch.Tensor, got None; make it one by torch.as_tensor"),
        ({"y": Y.to(torch.uint8)}, "real or complex numbers .* torch.uint8; .* y / 127.5 - 1"),
        ({"y": Y.long()}, "real or complex numbers .* torch.int64"),
        ({"y": Y > 0}, "real or complex numbers .* torch.bool"),
        ({"y": Y.to(torch.complex64)}, "measures torch.float32, but 'measurement' has torch.complex64"),
        ({"y": Y[0]}, r"has shape \(3, 32, 32\); add the batch's axis by y\[None\]"),
        ({"y": torch.cat([Y, Y])}, r"has shape \(2, 3, 32, 32\); solve one at a time"),
        ({"y": Y[..., :16]}, r"has shape \(1, 3, 32, 16\); crop or resize it"),
        ({"physics": "half"}, "physics must be a deepinv.physics.Physics or a class or function, got 'half'"),
        ({"prior": "faces"}, r"^prior must be a Prior such as StableDiffusionPrior\(folder\), got 'faces'"),
        ({"prior": denoising(SHAPE)}, "^prior must be a Prior .*, got Denoising"),
        (
            {"features": "vit"},
            r"^features must be a feature network such as LatentFeatures\(\) or None, got 'vit'; leave it out",
        ),
        ({"method": "rlsd"}, "method must be a class or function, got 'rlsd'; leave it out"),
        (
            {"truth": np.zeros((1, 3, 32, 32))},
            "truth must be a torch.Tensor or None, got ndarray; make it one by torch.as_tensor",
        ),
        ({"truth": Y + 255}, r"truth must be an image in \[-1, 1\], got values from 255 to 255"),
        ({"num_steps": 2.5}, "num_steps must be an integer, got 2.5; leave it out for 50"),
        ({"num_steps": "2"}, "num_steps must be an integer, got '2'"),
        ({"num_particles": 2.0}, "num_particles must be an integer, got 2.0"),
        ({"seed": None}, "seed must be an integer, got None; leave it out for 0"),
        ({"seed": 1.5}, "seed must be an integer, got 1.5"),
        ({"gamma": "high"}, "gamma must be a number, got 'high'; leave it out for 0.2"),
        ({"repulsion_until": None}, "repulsion_until must be a number, got None; leave it out for 0.5"),
    ],
)
def test_a_wrong_argument_of_solve_is_named(changed: dict[str, Any], said: str, tiny_prior: StableDiffusionPrior):
    arguments = {"y": Y, "physics": denoising(SHAPE), "prior": tiny_prior, "num_steps": 2, "trainer": QUIET} | changed
    with pytest.raises(InputError, match=said):
        solve(**arguments)


@pytest.mark.parametrize("operator", [denoising, super_resolution, tomography, mri])
def test_solve_takes_double_precision_as_numpy_has_it(operator, tiny_prior: StableDiffusionPrior):
    physics, settings = operator(SHAPE), {"num_steps": 2, "num_particles": 2, "trainer": QUIET}
    y = physics.A(Y + 0.1)
    expected = solve(y, physics, tiny_prior, truth=Y, **settings)
    found = solve(
        y.to(torch.complex128 if y.is_complex() else torch.float64), physics, tiny_prior, truth=Y.double(), **settings
    )
    assert torch.equal(found.particles, expected.particles)
    assert found.metrics["psnr_mean"] == expected.metrics["psnr_mean"]


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
        (
            np.zeros((4, 3, 8, 8)),
            2,
            "particles must be a torch.Tensor or a Result, got ndarray; make it one by torch.as_tensor",
        ),
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


@pytest.mark.parametrize(("value", "got"), [(None, "None"), (5, "5"), (b"x", "bytes"), (["a"], r"\['a'\]")])
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
def test_what_is_no_path_is_refused_by_name(make, name: str, value: object, got: str):
    with pytest.raises(
        InputError, match=rf"^{name} must be a str(, a Path)? or a .*, got {got}; give the name of a file"
    ):
        make(value)


@pytest.mark.parametrize("value", [None, 5, torch.zeros(1, *SHAPE), [None]])
def test_what_is_no_measurement_is_refused_by_name(value: object, tiny_prior: StableDiffusionPrior):
    with pytest.raises(InputError, match="measurements must be a Measurement, or a list of them, got "):
        RLSD(tiny_prior, value, LatentFeatures())


@pytest.mark.parametrize("value", [None, 1, "01", (0, 1, 2), (1, 0), (0, float("nan"))])
def test_what_is_no_range_is_refused_by_name(value: object, tiny_prior: StableDiffusionPrior):
    with pytest.raises(InputError, match=r"^image_range must be (the values of black and white, such|2 numbers, got)"):
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


@pytest.mark.parametrize("function", ["torch.sin", torch.sin, lambda images: images.sin()])
def test_a_function_of_the_users_own_is_given_by_its_name_or_itself(function: object):
    image = torch.rand(1, *SHAPE)
    assert torch.equal(custom(SHAPE, function, sigma=0).A(image), image.sin())


@pytest.mark.parametrize("array", [torch.ones(1, 32, 32), np.ones((32, 32))])
@pytest.mark.parametrize(("make", "name"), [(inpainting, "mask"), (motion_blur, "kernel"), (mri, "coil_maps")])
def test_an_array_in_place_of_a_file_is_to_be_saved(make, name: str, array: object):
    with pytest.raises(
        InputError, match=f"^{name} must be a str.* Path.*, got (Tensor|ndarray); save it with numpy.save"
    ):
        make(SHAPE, **{name: array})


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


POINTS = GaussianMixturePrior([[-1.0, 0.0], [1.0, 0.0]])
POINT = Measurement("point", torch.zeros(1, 2), first_coordinate((2,)))
METHODS = ("DWGF", "Distilled", "LATINO", "LatentDAPS", "LatentDPS", "RLSD", "RLSDPaper", "TwistedFilter")
OF_A_METHOD = {"prior": POINTS, "measurements": POINT, "features": LatentFeatures(), "decoder_std": 0.1}
OTHERS = {
    "GaussianMixturePrior": {"means": [[0.0, 0.0]]},
    "LPIPSFeatures": {},
    "LatentFeatures": {},
    "Reconstructor": {"prior": POINTS},
    "StableDiffusionPrior": {"pretrained": "folder"},
    "VAEFeatures": {"pretrained": "folder"},
    "ViTFeatures": {"pretrained": "folder"},
    "embedded": {"name": "photos"},
    "representatives": {"particles": torch.zeros(4, 3, 8, 8)},
    "solve": {"y": POINT.y, "physics": POINT.physics, "prior": POINTS},
}
OF_AN_OPERATOR = {
    "blur": {"kernel": "kernel.npy"},
    "compose": {"operators": [denoising]},
    "custom": {"function": "torch.sin"},
    "inpainting": {"mask": "half"},
    "load_kernel": {"path": "kernel.npy"},
    "make_noise": {"noise": "gaussian", "sigma": 0.1},
    "make_physics": {"factory": denoising},
    "probe_operator": {"physics": denoising(SHAPE)},
    "PoissonNoise": {"sigma": 0.1},
}
"""What the public names need; operators need an ``image_shape``, too."""


def parameters_of(made: Any) -> dict[str, inspect.Parameter]:
    """Named parameters of a function or class, also those that a method hands on to its bases."""
    chain = made.__mro__ if isinstance(made, type) and issubclass(made, ParticleModule) else [made]
    own = [each for each in chain if each.__module__.startswith("rlsd_lightning")]
    found = {name: one for each in own[::-1] for name, one in inspect.signature(each).parameters.items()}
    return {name: one for name, one in found.items() if one.kind is not one.VAR_KEYWORD}


def public_names() -> Iterator[Any]:
    """The public functions and classes, each with the arguments that a call needs."""
    for name in operators.__all__:
        if callable(made := vars(operators)[name]):
            shape = {"image_shape": SHAPE} if "image_shape" in parameters_of(made) else {}
            yield pytest.param(made, shape | OF_AN_OPERATOR.get(name, {}), id=name)
    for name, needed in {**dict.fromkeys(METHODS, OF_A_METHOD), **OTHERS}.items():
        yield pytest.param(rlsd_lightning.__getattr__(name), needed, id=name)


@pytest.mark.parametrize("value", [object(), b"bytes", 1j])
@pytest.mark.parametrize(("made", "needed"), public_names())
def test_an_argument_of_another_type_is_named_in_one_line(made, needed: dict[str, Any], value: object):
    for name in parameters_of(made):
        if name != "measurements":
            with pytest.raises(InputError, match=rf"^{name} must be .+, got {type(value).__name__}($|;)") as caught:
                made(**(needed | {name: value}))
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [object(), b"bytes", 1j])
@pytest.mark.parametrize("name", Measurement._fields)
def test_a_field_of_a_measurement_of_another_type_is_named(name: str, value: object):
    with pytest.raises(InputError, match=rf"^{name} must be .+, got {type(value).__name__}($|;)"):
        RLSD(POINTS, POINT._replace(**{name: value}), LatentFeatures())


@pytest.mark.parametrize("method", METHODS)
def test_a_method_without_features_is_refused(method: str):
    made = rlsd_lightning.__getattr__(method)
    with pytest.raises(InputError, match=r"^features must be a feature network such as LatentFeatures\(\), got None$"):
        made(**(OF_A_METHOD | {"features": None}))


@pytest.mark.parametrize("shape", [(32, 32), (1, 3, 32, 32), (3, 32, 32.0), 32])
@pytest.mark.parametrize(
    "make", [gaussian_blur, compressed_sensing, mri, tomography, super_resolution, phase_retrieval]
)
def test_a_shape_that_is_no_images_is_refused(make, shape: object):
    with pytest.raises(InputError, match=r"^image_shape must be 3 integers such as \(3, 64, 64\), got "):
        make(shape)
