"""Every operator of deepinv either works or gets one true line; unknown noise is named."""

from functools import partial

import deepinv
import pytest
import torch
from deepinv.physics import LinearPhysics, NoiseModel, Physics
from support.deepinv_classes import ARGUMENTS, SHAPE, classes
from support.steps import take_step

from rlsd_lightning import RLSD, InputError, LatentFeatures, Measurement, Prior
from rlsd_lightning.operators import PoissonNoise, denoising, make_physics, probe_operator

WORKING = {
    *("Blur", "BlurFFT", "BlurFFTMultiScaler", "BlurMultiScaler", "CompressedSensing"),
    *("Decolorize", "DecomposablePhysics", "Demosaicing", "Denoising", "Downsampling", "DownsamplingMatlab"),
    *("Inpainting", "InpaintingMultiScaler", "LinearPhysics", "LinearPhysicsMultiScaler", "PhaseRetrieval", "Physics"),
    *("PhysicsCropper", "PhysicsMultiScaler", "SinglePixelCamera", "SpaceVaryingBlur"),
    *("SpatialUnwrapping", "StructuredRandom", "Tomography"),
}
"""Operators that work on colour images with the arguments of ``ARGUMENTS``; the list in docs/tasks.md."""


class Pixels(Prior):
    """A network that shrinks images of the operators' shape."""

    def __init__(self) -> None:
        alphas = torch.linspace(0.999, 0.05, 100)
        super().__init__(alphas, (1 - alphas.square()).sqrt(), SHAPE, SHAPE)
        self.freeze()

    def network(self, z_t: torch.Tensor, t: int) -> torch.Tensor:
        return 0.5 * z_t


def solved(name: str) -> bool:
    """Whether a step with an operator works; if not, the refusal is one line that names it."""
    factory = partial(getattr(deepinv.physics, name), sigma=0.01, **ARGUMENTS.get(name, {}))
    try:
        torch.manual_seed(0)
        physics = make_physics(factory, SHAPE)
    except InputError as error:
        assert name in str(error)
        assert "\n" not in str(error)
        return False
    measurement = Measurement("m", physics(torch.zeros(1, *SHAPE)), physics)
    module = RLSD(Pixels(), measurement, LatentFeatures(), num_steps=2, num_particles=2)
    seen = take_step(module)
    assert seen.isfinite().all()
    assert module.x.isfinite().all()
    return True


@pytest.mark.parametrize("name", classes())
def test_each_works_or_is_refused_in_one_line(name: str):
    assert solved(name) == (name in WORKING)


def test_noise_is_set_where_the_class_takes_none():
    physics = make_physics(partial(deepinv.physics.Decolorize, sigma=0.3), SHAPE)
    assert float(physics.noise_model.sigma) == pytest.approx(0.3)


UNKNOWN = {
    "UniformNoise": deepinv.physics.UniformNoise(a=0.1),
    "PoissonGaussianNoise": deepinv.physics.PoissonGaussianNoise(),
    "GammaNoise": deepinv.physics.GammaNoise(l=5.0),
    "SaltPepperNoise": deepinv.physics.SaltPepperNoise(),
    "NoiseModel": NoiseModel(lambda y: y + 1),
}


def problem(physics: Physics) -> RLSD:
    measurement = Measurement("m", torch.zeros(1, *SHAPE), physics)
    return RLSD(Pixels(), measurement, LatentFeatures(), num_steps=2, num_particles=2)


@pytest.mark.parametrize("name", UNKNOWN)
def test_noise_without_a_known_likelihood_is_named(name: str):
    physics = deepinv.physics.Denoising(UNKNOWN[name])
    with pytest.raises(InputError, match=f"got {name}; give GaussianNoise"):
        problem(physics)
    with pytest.raises(InputError, match=f"got {name}; give GaussianNoise"):
        make_physics(lambda image_shape: physics, SHAPE)


@pytest.mark.parametrize("gain", [0.05, 0.01, 0.2])
def test_photon_noise_of_deepinv_is_refused_with_its_equal_here(gain: float):
    theirs = deepinv.physics.PoissonNoise(gain=gain)
    with pytest.raises(InputError, match=r"PoissonNoise counts the photons .* \[0, 1\]") as caught:
        problem(deepinv.physics.Denoising(theirs))
    sigma = float(str(caught.value).partition("sigma=")[2].partition(")")[0])
    # the noise that the line names has the deviation of theirs, in twice the unit
    image = torch.full((1, 3, 200, 200), 0.7)
    ours = PoissonNoise(sigma)(2 * image - 1)
    assert (2 * theirs(image) - 1).std().item() == pytest.approx(ours.std().item(), rel=0.02)
    assert problem(deepinv.physics.Denoising(PoissonNoise(sigma)))


class Images01(Physics):
    """Takes roots of intensities, which negative ones do not have."""

    def A(self, x: torch.Tensor, **kwargs) -> torch.Tensor:  # noqa: N802
        return x.sqrt()


class Rounding(Physics):
    """Has no gradient."""

    def A(self, x: torch.Tensor, **kwargs) -> torch.Tensor:  # noqa: N802
        return torch.from_numpy(x.detach().numpy().round())


class Lists(Physics):
    """Measures two tensors."""

    def A(self, x: torch.Tensor, **kwargs) -> tuple:  # noqa: N802
        return x, x


class WithoutBatch(Physics):
    """Loses the first axis."""

    def A(self, x: torch.Tensor, **kwargs) -> torch.Tensor:  # noqa: N802
        return x.mean()


class Doubling(LinearPhysics):
    """Its adjoint has another scale."""

    def A(self, x: torch.Tensor, **kwargs) -> torch.Tensor:  # noqa: N802
        return 2 * x

    def A_adjoint(self, y: torch.Tensor, **kwargs) -> torch.Tensor:  # noqa: N802
        return y


class Raising(LinearPhysics):
    """Raises what no list of errors expects."""

    def A(self, x: torch.Tensor, **kwargs) -> torch.Tensor:  # noqa: N802
        raise AttributeError("no such thing\nat all")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Images01, r"Images01 is not finite for images in \[-1, 1\]"),
        (Rounding, "Rounding must be differentiable"),
        (Doubling, "Doubling has an A_adjoint that is not the adjoint of its A"),
        (Lists, "Lists must measure one tensor, got a tuple"),
        (WithoutBatch, "WithoutBatch must turn one image into one measurement"),
        (Raising, r"Raising does not take images of shape \(3, 16, 16\).*AttributeError: no such thing\)"),
    ],
)
def test_operators_of_ones_own_are_tried_too(kind: type[Physics], said: str):
    with pytest.raises(InputError, match=said):
        make_physics(partial(kind, sigma=0.01), SHAPE)
    with pytest.raises(InputError, match=said):
        problem(kind())


def test_a_trial_leaves_the_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    make_physics(denoising, SHAPE)
    assert torch.equal(torch.rand(1), expected)


def test_an_operator_is_tried_once_for_each_size():
    calls = []
    physics = Physics(A=lambda x, **kwargs: calls.append(x.shape) or 2 * x)
    make_physics(lambda image_shape: physics, SHAPE)
    tried = len(calls)
    probe_operator(physics, SHAPE)
    assert 0 < tried == len(calls)
    probe_operator(physics, (3, 32, 48))
    assert calls[-1][1:] == (3, 32, 48)
    physics.noise_model = deepinv.physics.GammaNoise(3)
    with pytest.raises(InputError, match="GammaNoise"):
        probe_operator(physics, (3, 32, 48))


class Resizing(deepinv.physics.GaussianNoise):
    """Has another shape than the measurement."""

    def forward(self, x: torch.Tensor, **kwargs) -> torch.Tensor:
        return x[..., :1]


def test_noise_of_another_shape_is_named():
    physics = denoising(SHAPE)
    physics.noise_model = Resizing(0.1)
    with pytest.raises(InputError, match=r"must keep a measurement's shape .* when it adds noise"):
        probe_operator(physics, SHAPE)
