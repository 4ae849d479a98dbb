"""What particles lack alike, against truths that are a known distance from what was decoded."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import train
from deepinv.physics import GaussianNoise, Inpainting, LinearPhysics, Physics
from safetensors.torch import load_file
from torch import Tensor

from rlsd_lightning.functional.calibration import calibration, map_calibration
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.operators import as_physics, super_resolution
from rlsd_lightning.operators.compose import Nothing
from rlsd_lightning.proximal import noise_share, proximal_step
from rlsd_lightning.saved import load_run
from rlsd_lightning.uncertainty import DecoderError, decoder_error

SHAPE = (3, 64, 64)
IMAGE_VAR = 0.08**2
"""What the decoder's variance is taken to be before it is estimated."""


def mask(noise: float) -> Inpainting:
    return Inpainting(SHAPE, mask=(torch.rand(1, 64, 64) < 0.3).float(), noise_model=GaussianNoise(noise))


def downsampling(noise: float) -> LinearPhysics:
    return super_resolution(SHAPE, factor=4, filter="average", sigma=noise)


def curve(noise: float) -> Physics:
    physics = as_physics(lambda x: torch.tanh(1.5 * x[..., ::2]))
    physics.noise_model = GaussianNoise(noise)
    return physics


def estimated(physics: Physics, std: float, noise: float, count: int = 4) -> tuple[DecoderError, Tensor, Tensor]:
    """The estimate for a truth that is off all decoded images by errors of a deviation, that truth, and the images."""
    decoded = 0.5 * torch.rand(1, *SHAPE) - 0.25
    truth = decoded + std * torch.randn(1, *SHAPE)
    y = physics.A(truth)
    y = y + noise * torch.randn_like(y)
    measurement = Measurement("one", y, physics)
    weight = max(noise_share(measurement, truth.numel()) / IMAGE_VAR, 1e-3)
    decoded = decoded.expand(count, *SHAPE)
    images = proximal_step(physics, y, decoded, weight, inner_steps=200)
    return decoder_error(measurement, images, decoded, IMAGE_VAR, weight, seed=0, key=1), truth, images


@pytest.mark.parametrize(("noise", "std"), [(0.001, 0.03), (0.001, 0.1), (0.05, 0.1)])
@pytest.mark.parametrize("make", [mask, downsampling, curve])
def test_decoders_error_is_found(make: Callable[[float], Physics], noise: float, std: float) -> None:
    torch.manual_seed(0)
    found, truth, images = estimated(make(noise), std, noise)
    # averages of 16 values have a quarter of the errors' deviation; 768 of them tell it to 2.6 %, without noise
    assert found.std == pytest.approx(std, rel=0.15)
    error = (truth - images.mean(dim=0)).square().mean().sqrt()
    assert found.variance.mean().sqrt().item() == pytest.approx(error.item(), rel=0.15)


def test_hidden_and_seen_values_have_their_own_variance() -> None:
    torch.manual_seed(0)
    std, noise = 0.1, 0.1
    physics = mask(noise)
    found, _, _ = estimated(physics, std, noise)
    seen = physics.mask[0].expand(SHAPE) > 0
    assert found.variance[~seen].mean().sqrt().item() == pytest.approx(std, rel=0.1)
    # a step that takes the error to be 0.08 keeps a share k of the way to the measurement
    share = IMAGE_VAR / (IMAGE_VAR + noise**2)
    expected = math.hypot((1 - share) * std, share * noise)
    assert found.variance[seen].mean().sqrt().item() == pytest.approx(expected, rel=0.1)


def test_estimate_is_the_same_again_and_none_where_nothing_is_measured() -> None:
    torch.manual_seed(0)
    measurement = Measurement("one", torch.zeros(1, 1), Nothing(SHAPE))
    images = torch.rand(2, *SHAPE)
    found = decoder_error(measurement, images, images, IMAGE_VAR, 1.0, seed=0, key=1)
    assert found.std == 0
    assert not found.variance.any()
    torch.manual_seed(0)
    first = estimated(mask(0.01), 0.05, 0.01)[0]
    torch.manual_seed(0)
    again = estimated(mask(0.01), 0.05, 0.01)[0]
    assert first.std == again.std
    assert torch.equal(first.variance, again.variance)


@pytest.mark.parametrize("spread", [0.0, 0.2])
@pytest.mark.parametrize("count", [1, 4])
def test_truths_lie_in_the_maps_intervals_as_often_as_promised(count: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    size, unseen = 100_000, 0.1**2
    draws = spread * torch.randn(count + 1, size, generator=generator)
    # what all particles lack alike is the truth's alone; one particle does not know the spread
    truth = draws[:1] * (count > 1) + unseen**0.5 * torch.randn(1, size, generator=generator)
    images = draws[1:] * (count > 1)
    figures = map_calibration(images, torch.full((size,), unseen), truth)
    for level in (50, 80, 90, 95):
        # a sum of a Student's and a normal variable has no interval in closed form
        assert figures[f"map_coverage_{level}"] == pytest.approx(
            level / 100, abs=0.03 if spread and count > 1 else 0.005
        )
    assert figures["map_spread_to_error"] == pytest.approx(1, abs=0.02)


def test_map_without_a_shared_part_is_that_of_the_particles() -> None:
    generator = torch.Generator().manual_seed(0)
    images, truth = torch.randn(4, 1000, generator=generator), torch.randn(1, 1000, generator=generator)
    here = torch.arange(1000) < 500
    figures, alone = map_calibration(images, torch.zeros(1000), truth, here), calibration(images, truth, here)
    for level in (50, 80, 90, 95):
        assert figures[f"map_coverage_{level}"] == alone[f"coverage_{level}"]
    assert figures["map_spread_to_error"] == pytest.approx(alone["spread_to_error"])
    assert set(map_calibration(images, None, truth).values()) == {None}
    assert set(map_calibration(images, torch.zeros(1000), truth, torch.zeros(1000, dtype=torch.bool)).values()) == {
        None
    }


@pytest.mark.parametrize("count", [1, 2])
def test_runs_uncertainty_has_both_parts(count: int, small: list[str], tmp_path: Path) -> None:
    code, printed = train(*small, f"num_particles={count}", f"output_dir={tmp_path}")
    assert code == 0, printed
    (saved,) = load_run(tmp_path)
    tensors = load_file(tmp_path / saved.name / "particles.safetensors")
    assert saved.metrics["decoder_error"] > 0
    assert saved.unseen.shape == saved.images.shape[1:]
    particles = saved.images.clamp(-1, 1).var(dim=0, correction=0)
    torch.testing.assert_close(tensors["std"], (particles + saved.unseen).mean(dim=0).sqrt())


def test_results_that_are_no_proximal_steps_have_no_shared_part(small: list[str], tmp_path: Path) -> None:
    code, printed = train(*small, "method=not_augmented", f"output_dir={tmp_path}")
    assert code == 0, printed
    (saved,) = load_run(tmp_path)
    assert saved.unseen is None
    assert saved.metrics["decoder_error"] is None
