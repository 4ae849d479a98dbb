"""The error that particles share, against truths that are a known distance from what was decoded."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from deepinv.physics import GaussianNoise, Inpainting, LaplaceNoise, LinearPhysics, NoiseModel, Physics, UniformNoise
from safetensors.torch import load_file
from support.command import train
from torch import Tensor, nn

from rlsd_lightning.evaluation.scores import Solved
from rlsd_lightning.functional.calibration import calibration, total_calibration
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.operators import NullOperator, as_physics, hdr, phase_retrieval, quantization, super_resolution
from rlsd_lightning.operators.noise import PoissonNoise
from rlsd_lightning.operators.proximal import noise_share, proximal_step
from rlsd_lightning.priors import Calibration
from rlsd_lightning.results.store import load_run
from rlsd_lightning.results.writer import ImageResults
from rlsd_lightning.uncertainty import DecoderError, decoder_error, least_variance

SHAPE = (3, 64, 64)
IMAGE_VAR = 0.08**2
"""What the decoder's variance is taken to be before it is estimated."""


def mask(noise: float) -> Inpainting:
    return Inpainting(SHAPE, mask=(torch.rand(1, 64, 64) < 0.3).float(), noise_model=GaussianNoise(noise))


def averages(noise: float) -> Physics:
    return super_resolution(SHAPE, factor=4, filter="average", sigma=noise)


def curve(noise: float) -> Physics:
    physics = as_physics(lambda x: torch.tanh(1.5 * x[..., ::2]))
    physics.noise_model = GaussianNoise(noise)
    return physics


def photons(noise: float) -> Physics:
    physics = mask(noise)
    physics.noise_model = PoissonNoise(math.sqrt(2) * noise)  # noise at mid-grey, around which images are
    return physics


def estimated(
    physics: Physics, std: float, decoded: Tensor | None = None, **settings: float
) -> tuple[DecoderError | None, Tensor, Tensor]:
    """The estimate for a truth that is off all decoded images by errors of a deviation, that truth, and the images."""
    if decoded is None:
        decoded = 0.5 * torch.rand(1, *SHAPE) - 0.25
    truth = decoded[:1] + std * torch.randn(1, *SHAPE)
    y = physics.noise_model(physics.A(truth))
    measurement = Measurement("one", y, physics)
    weight = max(noise_share(measurement, truth.numel()) / IMAGE_VAR, 1e-3)
    images = proximal_step(physics, y, decoded, weight, inner_steps=200)
    found = decoder_error(measurement, images, decoded, IMAGE_VAR, weight, seed=0, key=1, **settings)
    return found, truth, images


@pytest.mark.parametrize(("noise", "std"), [(0.001, 0.03), (0.001, 0.15), (0.02, 0.1)])
@pytest.mark.parametrize("make", [mask, averages, curve, photons])
def test_errors_of_any_size_are_found(make: Callable[[float], Physics], noise: float, std: float) -> None:
    torch.manual_seed(0)
    found, truth, images = estimated(make(noise), std)
    # averages of 16 values have a quarter of the errors' deviation; 768 of them tell it to 2.6 %, without noise
    assert found.std == pytest.approx(std, rel=0.15)
    error = (truth - images).square().mean().sqrt()
    assert found.variance.mean().sqrt().item() == pytest.approx(error.item(), rel=0.15)


@pytest.mark.parametrize("make", [mask, photons])
def test_noise_as_large_as_the_errors_is_told_apart(make: Callable[[float], Physics]) -> None:
    torch.manual_seed(0)
    physics = make(0.1)
    assert physics.noise_model(torch.zeros(1, *SHAPE)).std().item() == pytest.approx(0.1, rel=0.05)
    found, _, _ = estimated(physics, 0.1)
    assert found.std == pytest.approx(0.1, rel=0.15)  # with the noise, errors are 0.14


@pytest.mark.parametrize(
    "make",
    [lambda: quantization(SHAPE, levels=4), lambda: quantization(SHAPE, levels=16), lambda: hdr(SHAPE)],
    ids=["4 levels", "16 levels", "hdr"],
)
@pytest.mark.parametrize("std", [0.1, 0.2])
def test_operators_that_are_not_linear_near_an_image(make: Callable[[], Physics], std: float) -> None:
    torch.manual_seed(0)
    decoded = (1.6 * torch.rand(1, *SHAPE) - 0.8).expand(4, *SHAPE)
    found, truth, images = estimated(make(), std, decoded)
    error = (truth - images).square().mean().sqrt()
    assert found.std == pytest.approx(std, rel=0.15)
    assert found.variance.mean().sqrt().item() == pytest.approx(error.item(), rel=0.2)


def found_on_average(noise: float, std: float, runs: int = 10) -> float:
    """The root mean square estimate, as variances are what is unbiased."""
    found = []
    for seed in range(runs):
        torch.manual_seed(seed)
        found.append(estimated(mask(noise), std)[0].std)
    return math.sqrt(sum(each**2 for each in found) / runs)


@pytest.mark.parametrize(("noise", "std"), [(0.1, 0.03), (0.2, 0.05), (0.3, 0.2)])
def test_errors_are_found_in_noise_that_is_larger(noise: float, std: float) -> None:
    assert found_on_average(noise, std) == pytest.approx(std, rel=0.25)


@pytest.mark.parametrize(("noise", "expected"), [(0.001, 0.0005), (0.1, 0.05), (0.3, 0.08)])
def test_latents_that_follow_the_noise_hide_no_error(noise: float, expected: float) -> None:
    """A quarter of the residual's directions is fitted, so that the rest is smaller than the noise alone."""
    torch.manual_seed(0)
    physics = Inpainting(SHAPE, mask=torch.ones(1, 64, 64), noise_model=GaussianNoise(noise))
    truth = 0.5 * torch.rand(1, *SHAPE) - 0.25
    y = physics(truth)
    decoded = torch.where(torch.rand(SHAPE) < 0.25, y, truth)
    measurement = Measurement("one", y, physics)
    weight = max(noise_share(measurement, truth.numel()) / IMAGE_VAR, 1e-3)
    images = proximal_step(physics, y, decoded, weight)
    least = least_variance(measurement, truth.numel() // 4, IMAGE_VAR)
    assert least**0.5 == pytest.approx(expected)
    found = [
        decoder_error(measurement, images, decoded, IMAGE_VAR, weight, seed=0, key=1, least_var=least_var)
        for least_var in (0.0, least)
    ]
    assert found[0].std == 0 and found[1].std == pytest.approx(expected)
    assert found[1].variance.mean() > found[0].variance.mean()


def test_noise_alone_is_hardly_taken_for_an_error() -> None:
    # 3,700 measured values tell the noise's variance to 2.4 %: a deviation of 0.047, and half of the time of 0
    assert found_on_average(0.3, 0.0) < 0.06


@pytest.mark.parametrize("first", [0.02**2, 0.3**2])
def test_where_it_starts_from_does_not_matter(first: float) -> None:
    torch.manual_seed(0)
    physics, decoded = curve(0.001), 0.5 * torch.rand(1, *SHAPE) - 0.25
    y = physics.A(decoded + 0.1 * torch.randn(1, *SHAPE))
    images = proximal_step(physics, y, decoded, 1e-3, inner_steps=200)
    found = decoder_error(Measurement("one", y, physics), images, decoded, first, 1e-3, seed=0, key=1)
    assert found.std == pytest.approx(0.1, rel=0.1)


def test_errors_are_no_larger_than_images() -> None:
    torch.manual_seed(0)
    physics, decoded = mask(0.001), -0.7 + 0.05 * torch.rand(1, *SHAPE)
    y = physics.A(torch.full((1, *SHAPE), 0.95))
    images = proximal_step(physics, y, decoded, 1e-3)
    found = decoder_error(Measurement("one", y, physics), images, decoded, IMAGE_VAR, 1e-3, seed=0, key=1)
    assert found.std == 1
    assert found.variance.isfinite().all()


@pytest.mark.parametrize("make", [mask, averages, curve])
@pytest.mark.parametrize(("largest", "expected"), [(0.05, 0.05), (0.1, 0.1), (0.9, 0.3)])
def test_latents_that_do_not_fit_are_no_error_of_the_decoder(make: Callable, largest: float, expected: float) -> None:
    torch.manual_seed(0)
    found, truth, images = estimated(make(0.001), 0.3, largest_var=largest**2)
    assert found.std == pytest.approx(expected, rel=0.15)
    left = found.variance.mean().sqrt().item()
    assert left == pytest.approx((truth - images).square().mean().sqrt().item() * expected / 0.3, rel=0.25)


def test_forms_that_an_operator_cannot_tell_apart_share_a_variance() -> None:
    torch.manual_seed(0)
    physics = phase_retrieval(SHAPE)
    found, _, _ = estimated(physics, 0.05)
    assert found.std == pytest.approx(0.05, rel=0.3)
    forms = physics.equivalents(found.variance[None])
    torch.testing.assert_close(forms, found.variance.expand_as(forms))


def test_hidden_and_seen_values_have_their_own_variance() -> None:
    torch.manual_seed(0)
    std, noise = 0.1, 0.1
    physics = mask(noise)
    found, _, _ = estimated(physics, std)
    seen = physics.mask[0].expand(SHAPE) > 0
    assert found.variance[~seen].mean().sqrt().item() == pytest.approx(std, rel=0.1)
    # a step that takes the error to be 0.08 goes a share of the way to the measurement
    share = IMAGE_VAR / (IMAGE_VAR + noise**2)
    expected = math.hypot((1 - share) * std, share * noise)
    assert found.variance[seen].mean().sqrt().item() == pytest.approx(expected, rel=0.1)


def test_errors_are_larger_where_images_have_details() -> None:
    torch.manual_seed(0)
    physics = mask(0.001)
    decoded = torch.zeros(2, *SHAPE)
    decoded[..., :32] = 0.4 * torch.rand(3, 64, 32)
    found, _, _ = estimated(physics, 0.05, decoded)
    hidden = physics.mask[0].expand(SHAPE) == 0
    left, right = found.variance[..., :28], found.variance[..., 36:]
    assert left[hidden[..., :28]].mean() > 20 * right[hidden[..., 36:]].mean() > 0


def test_memory_and_repetition_change_nothing() -> None:
    found = []
    for settings in ({}, {}, {"at_once": 1}, {"at_once": 3}):
        torch.manual_seed(0)
        found.append(estimated(mask(0.01), 0.05, **settings)[0])
    assert torch.equal(found[0].variance, found[1].variance)
    for other in found[1:]:
        assert other.std == pytest.approx(found[0].std, rel=1e-5)
        torch.testing.assert_close(other.variance, found[0].variance)


@pytest.mark.parametrize("noise_model", [LaplaceNoise(0.1), UniformNoise(0.1)], ids=["laplace", "uniform"])
def test_there_is_none_for_noise_that_is_not_simulated(noise_model: NoiseModel) -> None:
    torch.manual_seed(0)
    physics = mask(0.1)
    assert estimated(physics, 0.1)[0] is not None
    physics.noise_model = noise_model
    assert estimated(physics, 0.1)[0] is None


def test_there_is_none_where_nothing_is_measured_and_of_complex_measurements() -> None:
    images = torch.rand(2, *SHAPE)
    numbers = {"image_var": IMAGE_VAR, "weight": 1.0, "seed": 0, "key": 1}
    assert decoder_error(Measurement("one", torch.zeros(1, 1), NullOperator(SHAPE)), images, images, **numbers) is None
    y = torch.ones(1, *SHAPE, dtype=torch.complex64)
    physics = LinearPhysics(A=lambda x, **_: x + 0j, A_adjoint=lambda y, **_: y.real, noise_model=GaussianNoise(0.1))
    assert decoder_error(Measurement("one", y, physics), images, images - 0.1, **numbers) is None


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.1, 0.2])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_truths_lie_in_the_intervals_as_often_as_they_say(count: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    size, shared = 100_000, 0.1**2
    draws = spread * torch.randn(count + 1, size, generator=generator)
    # one particle does not know the spread
    truth = draws[:1] * (count > 1) + shared**0.5 * torch.randn(1, size, generator=generator)
    images = draws[1:] * (count > 1)
    figures = total_calibration(images, torch.full((size,), shared), truth)
    exact = count == 1 or not spread
    for level in (50, 80, 90, 95):
        # a sum of a Student's and a normal variable has no interval in closed form; this one may hold more
        excess = figures[f"total_coverage_{level}"] - level / 100
        assert -0.005 < excess < (0.005 if exact else {2: 0.075, 4: 0.03}[count])
    assert figures["total_spread_to_error"] == pytest.approx(1, abs=0.02)


def test_without_a_shared_error_intervals_are_those_of_the_particles() -> None:
    generator = torch.Generator().manual_seed(0)
    images, truth = torch.randn(4, 1000, generator=generator), torch.randn(1, 1000, generator=generator)
    here, nowhere = torch.arange(1000) < 500, torch.zeros(1000, dtype=torch.bool)
    figures, alone = total_calibration(images, torch.zeros(1000), truth, here), calibration(images, truth, here)
    for level in (50, 80, 90, 95):
        assert figures[f"total_coverage_{level}"] == alone[f"coverage_{level}"]
    assert figures["total_spread_to_error"] == pytest.approx(alone["spread_to_error"])
    assert set(total_calibration(images, None, truth).values()) == {None}
    assert set(total_calibration(images, torch.zeros(1000), truth, nowhere).values()) == {None}


@pytest.mark.parametrize("count", [1, 2])
def test_uncertainty_of_a_run_has_both_parts(count: int, small: list[str], tmp_path: Path) -> None:
    code, printed = train(*small, f"num_particles={count}", f"output_dir={tmp_path}")
    assert code == 0, printed
    (saved,) = load_run(tmp_path)
    tensors = load_file(tmp_path / saved.name / "particles.safetensors")
    assert saved.metrics["decoder_error"] > 0
    assert saved.shared_variance.shape == saved.images.shape[1:]
    particles = saved.images.clamp(-1, 1).var(dim=0, correction=0)
    torch.testing.assert_close(tensors["std"], (particles + saved.shared_variance).mean(dim=0).sqrt())


@pytest.mark.parametrize("method", [["method=not_augmented"], ["method=twisted", "method.decoder_std=0"]])
def test_results_that_are_no_proximal_steps_have_none(method: list[str], small: list[str], tmp_path: Path) -> None:
    code, printed = train(*small, "num_steps=4", *method, f"output_dir={tmp_path}")
    assert code == 0, printed
    (saved,) = load_run(tmp_path)
    assert saved.shared_variance is None
    assert saved.metrics["decoder_error"] is None


class _Module:
    """The part of a method that results need."""

    def __init__(self) -> None:
        self.hparams, self.decoder_std, self.has_proximal_results = {}, 0.08, True
        self.particle_chunk, self.num_particles, self.seed = None, 2, 0
        own = Calibration(0.08, 1.0, 0.5, 1.0, (1.0, 1.0), 8, "pictures")
        shapes = {"latent_shape": (4, 8, 8), "image_shape": SHAPE}
        lossless = {"encode": lambda images: images, "decode": lambda z: z, "alphas": torch.ones(1)}
        self.prior = SimpleNamespace(calibration=own, warnings=[], **shapes, **lossless)
        self.proximal = SimpleNamespace(mu=lambda measurement, variance: 1.0)

    def particle_features(self, z: Tensor, images: Tensor, network: nn.Module | None) -> Tensor:
        return z.flatten(1)


def raising() -> DecoderError:
    raise RuntimeError("takes one measurement")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (raising, "RuntimeError: takes one measurement"),
        (lambda: DecoderError(0.1, torch.full(SHAPE, math.nan)), "not finite"),
    ],
)
def test_results_are_written_whatever_becomes_of_the_estimate(
    answer: Callable[[], DecoderError],
    said: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rlsd_lightning.results.writer.decoder_error", lambda *_, **__: answer())
    physics, images = mask(0.01), torch.rand(2, *SHAPE)
    measurement = Measurement("one", physics.A(images[:1]), physics, images[:1])
    result = ImageResults().result(_Module(), Solved(measurement, images, images, images))
    assert said in caplog.text
    assert result.decoder_error is None
    result.save(tmp_path)
    tensors = load_file(tmp_path / "particles.safetensors")
    assert "shared_variance" not in tensors
    torch.testing.assert_close(tensors["std"], images.var(dim=0, correction=0).mean(dim=0).sqrt())
