"""The prior as a model of deepinv: image ranges, batches, operators of its examples, and its own tests."""

import logging
from collections.abc import Callable

import deepinv
import pytest
import torch
from deepinv.physics import Blur, BlurFFT, Denoising, GaussianNoise, Inpainting, LaplaceNoise, LinearPhysics, Physics
from deepinv.physics.generator import GaussianMaskGenerator, MotionBlurGenerator, SigmaGenerator
from support.operator_cases import images
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rlsd_lightning import InputError, Prior, Reconstructor
from rlsd_lightning.operators import PoissonNoise, mri
from rlsd_lightning.operators.likelihood import misfit, noise_std

SHAPE = (3, 16, 16)
KERNEL = torch.ones(1, 1, 3, 3) / 9


class Pixels(Prior):
    """A network that shrinks images."""

    def __init__(self) -> None:
        alphas = torch.linspace(0.999, 0.05, 100)
        super().__init__(alphas, (1 - alphas.square()).sqrt(), SHAPE, SHAPE)
        self.freeze()

    def network(self, z_t: Tensor, t: int) -> Tensor:
        return 0.5 * z_t


def model(image_range: tuple[float, float] = (0, 1), **settings) -> Reconstructor:
    return Reconstructor(Pixels(), image_range, **{"num_steps": 2, "num_particles": 2, **settings})


def seen(count: int, image_range: tuple[float, float] = (0, 1)) -> Tensor:
    """Images in a range."""
    low, high = image_range
    return (images(count, shape=SHAPE) + 1) * ((high - low) / 2) + low


OPERATORS: dict[str, Callable[[], Physics]] = {
    "Blur": lambda: Blur(filter=deepinv.physics.blur.gaussian_blur(1.0), padding="circular"),
    "BlurFFT": lambda: BlurFFT(SHAPE, filter=KERNEL),
    "Downsampling": lambda: deepinv.physics.Downsampling(SHAPE, factor=2, filter="bicubic"),
    "Inpainting": lambda: Inpainting(SHAPE, mask=0.5, rng=torch.Generator().manual_seed(0)),
    "Tomography": lambda: deepinv.physics.Tomography(angles=4, img_width=16),
    "CompressedSensing": lambda: deepinv.physics.CompressedSensing(m=200, img_size=SHAPE),
    "SinglePixelCamera": lambda: deepinv.physics.SinglePixelCamera(m=100, img_size=SHAPE),
    "Demosaicing": lambda: deepinv.physics.Demosaicing(SHAPE),
    "Decolorize": lambda: deepinv.physics.Decolorize(),
    "composed": lambda: Inpainting((3, 8, 8), mask=0.5) * deepinv.physics.Downsampling(SHAPE, factor=2),
    "own adjoint": lambda: LinearPhysics(A=lambda x: x.flip(-1), A_adjoint=lambda y: y.flip(-1)),
    "automatic adjoint": lambda: LinearPhysics(A=lambda x: x.cumsum(-1) / 16, img_size=SHAPE),
    "our mri": lambda: mri(SHAPE),
    "not linear": lambda: Physics(A=lambda x: x.square() + x),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_of_examples_work_unchanged(name: str):
    torch.manual_seed(0)
    physics = OPERATORS[name]()
    physics.noise_model = GaussianNoise(0.01, rng=torch.Generator().manual_seed(1))
    y = physics(seen(2))
    reconstructed = model()(y, physics)
    assert reconstructed.shape == (2, *SHAPE)
    assert 0 <= reconstructed.min() < reconstructed.max() <= 1
    assert physics.noise_model.sigma.item() == pytest.approx(0.01)


def test_half_precision_and_conjugated_measurements_are_taken():
    physics = OPERATORS[next(iter(OPERATORS))]()
    physics.noise_model = GaussianNoise(0.01)
    y = physics(seen(1))
    assert model()(y.bfloat16(), physics).isfinite().all()
    fourier = LinearPhysics(
        A=lambda x, **_: torch.fft.fft2(x, norm="ortho"),
        A_adjoint=lambda y, **_: torch.fft.ifft2(y, norm="ortho").real,
        noise_model=GaussianNoise(0.01),
    )
    y = fourier(seen(1))
    assert torch.equal(model()(y.conj().clone().conj(), fourier), model()(y, fourier))


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("image_range", [(0, 1), (0, 255), (-1, 3)])
@pytest.mark.parametrize("noise", [GaussianNoise, LaplaceNoise], ids=lambda noise: noise.__name__)
def test_a_likelihood_is_the_same_in_every_range(name: str, image_range: tuple[float, float], noise: type):
    torch.manual_seed(0)
    physics = OPERATORS[name]()
    physics.noise_model = noise(0.1)
    y = physics(seen(1, image_range))
    (measurement,) = model(image_range)._measurements(y, physics)
    candidates = images(3, seed=1, shape=SHAPE)
    low, high = image_range
    given = misfit(physics.noise_model, physics.A((candidates + 1) * ((high - low) / 2) + low), y)
    ours = misfit(measurement.physics.noise_model, measurement.physics.A(candidates), measurement.y)
    before = given / noise_std(physics.noise_model, y) ** 2
    after = ours / noise_std(measurement.physics.noise_model, measurement.y) ** 2
    torch.testing.assert_close(after, before, rtol=1e-3, atol=0)


@pytest.mark.parametrize("high", [1, 255])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", ["Denoising", "Blur", "Inpainting", "CompressedSensing of weights"])
def test_counts_of_photons_have_their_own_likelihood(name: str, normalize: bool, high: float):
    torch.manual_seed(0)
    weights = torch.rand(50, 768) / 768
    physics = {
        "Denoising": Denoising(),
        "Blur": Blur(filter=KERNEL),
        "Inpainting": Inpainting(SHAPE, mask=0.5),
        "CompressedSensing of weights": LinearPhysics(A=lambda x, **_: x.flatten(1) @ weights.T, img_size=SHAPE),
    }[name]
    gain = 0.05 * high
    physics.noise_model = deepinv.physics.PoissonNoise(gain, normalize=normalize)
    y = physics(seen(1, (0, high)))
    (measurement,) = model((0, high))._measurements(y, physics)
    candidates = 0.99 * images(3, seed=1, shape=SHAPE)  # in the dark, ours has a lower bound
    rates = (physics.A((candidates + 1) / 2 * high) / gain).clamp_min(1e-9)
    counts = y / gain if normalize else y
    expected = -torch.distributions.Poisson(rates).log_prob(counts.round()).flatten(1).sum(dim=1)
    noise = measurement.physics.noise_model
    assert isinstance(noise, PoissonNoise)
    variance = noise_std(noise, measurement.y) ** 2
    actual = misfit(noise, measurement.physics.A(candidates), measurement.y) * y.numel() / (2 * variance)
    torch.testing.assert_close(actual.diff(), expected.diff(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("image_range", [(-1, 1), (0, 1), (0, 255)])
def test_what_was_measured_is_kept(image_range: tuple[float, float]):
    truth = seen(2, image_range)
    physics = Inpainting(SHAPE, mask=0.5)
    physics.noise_model = GaussianNoise(1e-4 * (image_range[1] - image_range[0]))
    kept = model(image_range, num_steps=4)(physics(truth), physics)
    mask = physics.mask.expand_as(truth) > 0
    assert (kept - truth)[mask].abs().max() < 0.01 * (image_range[1] - image_range[0])


def test_particles_are_returned_where_they_are_asked_for():
    physics = Inpainting(SHAPE, mask=0.5)
    y = physics(seen(2))
    three = model(num_particles=3)
    particles = three(y, physics, particles=True)
    assert particles.shape == (2, 3, *SHAPE)
    torch.testing.assert_close(particles.clamp(0, 1).mean(dim=1), three(y, physics))
    results = three.results(y, physics)
    assert [result.std.shape for result in results] == [(16, 16), (16, 16)]


@pytest.mark.parametrize("order", [[0], [1], [1, 0], [2, 1, 0, 1]])
def test_a_measurement_is_solved_alike_alone_and_in_any_batch(order: list[int]):
    physics = Inpainting(SHAPE, mask=0.5)
    physics.noise_model = GaussianNoise(0.05)
    y = physics(seen(3))
    torch.testing.assert_close(model()(y[order], physics), model()(y, physics)[order], rtol=0, atol=1e-5)


DRAWN: dict[str, tuple[Callable[[], Physics], Callable[[], deepinv.physics.generator.PhysicsGenerator]]] = {
    "masks": (lambda: Inpainting(SHAPE, mask=0.5), lambda: GaussianMaskGenerator(SHAPE, acceleration=2)),
    "kernels": (lambda: Blur(filter=KERNEL), lambda: MotionBlurGenerator((5, 5), num_channels=1)),
    "kernels in Fourier space": (
        lambda: BlurFFT(SHAPE, filter=KERNEL),
        lambda: MotionBlurGenerator((5, 5), num_channels=1),
    ),
    "noise": (lambda: Denoising(GaussianNoise(0.1)), lambda: SigmaGenerator(0.05, 0.2)),
    "masks and noise": (
        lambda: Inpainting(SHAPE, mask=0.5, noise_model=GaussianNoise(0.1)),
        lambda: GaussianMaskGenerator(SHAPE, acceleration=2) + SigmaGenerator(0.05, 0.2),
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_every_measurement_has_the_parameters_that_were_drawn_for_it(name: str):
    torch.manual_seed(0)
    physics, parameters = DRAWN[name][0](), DRAWN[name][1]().step(3)
    truth = seen(3)
    physics.update(**parameters)
    y = physics(truth)
    measurements = model()._measurements(y, physics)
    for index, measurement in enumerate(measurements):
        alone = DRAWN[name][0]()
        alone.update(**{key: value[index : index + 1] for key, value in parameters.items()})
        of_image = measurement.physics.A(2 * truth[index : index + 1] - 1)
        torch.testing.assert_close(of_image, alone.A(2 * truth[index : index + 1] - 1), rtol=1e-4, atol=1e-5)
        assert noise_std(measurement.physics.noise_model, y) == pytest.approx(2 * noise_std(alone.noise_model, y))
    assert model()(y, physics).isfinite().all()


def test_an_operator_that_looks_at_the_whole_batch_is_named():
    physics = LinearPhysics(A=lambda x, **_: x - x.mean(dim=0, keepdim=True), img_size=SHAPE)
    with pytest.raises(InputError, match="LinearPhysics measures an image alone in another way than in a batch of 2"):
        model()(seen(2), physics)


class Images(Dataset):
    """Three images, and their measurements if there is an operator."""

    def __init__(self, physics: Physics | None = None) -> None:
        self.x = seen(3)
        self.y = None if physics is None else physics(self.x)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index]} | ({} if self.y is None else {"y": self.y[index]})


@pytest.mark.parametrize("online", [True, False])
def test_deepinv_tests_it_as_a_model(online: bool):
    physics = Inpainting(SHAPE, mask=0.8, noise_model=GaussianNoise(0.01))
    metrics = [deepinv.metric.PSNR(), deepinv.metric.SSIM()]
    loader = DataLoader(Images(None if online else physics), batch_size=2)
    figures = deepinv.test(model(), loader, physics, metrics, online, verbose=False)
    assert figures["PSNR"] > figures["PSNR no learning"] + 3
    assert 0 < figures["SSIM"] <= 1


def test_deepinv_draws_operators_for_it():
    physics, generator = DRAWN["masks and noise"][0](), DRAWN["masks and noise"][1]()
    loader = DataLoader(Images(), batch_size=3)
    figures = deepinv.test(
        model(), loader, physics, online_measurements=True, physics_generator=generator, verbose=False
    )
    assert figures["PSNR"] > figures["PSNR no learning"]


def test_it_is_a_module_with_frozen_networks():
    reconstructor = model()
    assert isinstance(reconstructor, deepinv.models.Reconstructor)
    reconstructor.train()
    assert reconstructor.training and not reconstructor.prior.training
    assert not [parameter for parameter in reconstructor.parameters() if parameter.requires_grad]
    reconstructor.device = "cpu"  # as deepinv's benchmarks do
    with torch.inference_mode():
        physics = Denoising(GaussianNoise(0.1))
        assert reconstructor(physics(seen(1)), physics).isfinite().all()


@pytest.mark.parametrize("image_range", [(1, 0), (0, 0), (0, float("inf")), (0, 0.5, 1)])
def test_a_range_that_is_none_is_refused(image_range: tuple[float, ...]):
    with pytest.raises(InputError, match=r"image_range must be (the values of black and white|2 numbers)"):
        model(image_range)


@pytest.mark.parametrize("name", ["Blur", "Inpainting", "Downsampling", "Tomography"])
def test_images_in_another_range_are_suspected(name: str, caplog: pytest.LogCaptureFixture):
    torch.manual_seed(0)
    physics = OPERATORS[name]()
    for image_range, expected in (((0, 1), 1), ((-1, 1), 0)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "rlsd_lightning.reconstructor"):
            model((-1, 1))._measurements(physics(seen(1, image_range)), physics)
        assert sum("image_range=(0, 1)" in message for message in caplog.messages) == expected
