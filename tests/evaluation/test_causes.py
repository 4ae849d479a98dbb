"""Causes that lie in the data or the checkpoint: each kind on three inputs, and none where there is none."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.trainers import fit
from torch.nn.functional import avg_pool2d

from rlsd_lightning import RLSD, InputError, LatentFeatures, Measurement, Prior
from rlsd_lightning.engine.callbacks import FiniteGuard
from rlsd_lightning.errors import NonFiniteError
from rlsd_lightning.evaluation.causes import cause_warnings, non_finite_cause, quantization_step
from rlsd_lightning.evaluation.scores import Solved
from rlsd_lightning.operators import (
    compressed_sensing,
    denoising,
    gaussian_blur,
    hdr,
    inpainting,
    super_resolution,
    tomography,
)

SHAPE = (3, 32, 32)
DECODER_STD = 0.05
METHOD = SimpleNamespace(decoder_std=DECODER_STD)
OPERATORS = {
    "denoising": denoising,
    "inpainting": partial(inpainting, mask="half"),
    "super_resolution": partial(super_resolution, factor=2),
    "compressed_sensing": compressed_sensing,
    "tomography": tomography,
    "hdr": hdr,
}
EACH = pytest.mark.parametrize("operator", OPERATORS)


def smooth(seed: int) -> torch.Tensor:
    """A picture without noise from pixel to pixel."""
    noise = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(seed))
    return (4 * avg_pool2d(noise, 9, stride=1)).clamp(-0.9, 0.9)


def warned(operator: str, true: float, declared: float, model_error: torch.Tensor | float = 0.0) -> list[str]:
    """Warnings on two particles that are the truth up to a decoder's error."""
    physics, truth = OPERATORS[operator](SHAPE, sigma=declared), smooth(0)
    generator = torch.Generator().manual_seed(1)
    y = physics.A(truth)
    y = y + true * torch.randn(y.shape, generator=generator)
    decoded = truth + DECODER_STD * torch.randn(2, *SHAPE, generator=generator) + model_error
    return cause_warnings(METHOD, Solved(Measurement("m", y, physics), decoded, decoded, decoded))


@EACH
@pytest.mark.parametrize("true", [0.1, 0.2, 0.4])
def test_noise_far_above_the_declared_is_estimated(operator: str, true: float):
    (said,) = warned(operator, true, 0.001)
    assert said.startswith("the noise looks like 0.")
    assert float(said.rpartition("=")[2]) == pytest.approx(true, rel=0.1)


@EACH
@pytest.mark.parametrize("true", [0.001, 0.02, 0.2])
def test_the_right_noise_level_is_left_alone(operator: str, true: float):
    assert warned(operator, true, true) == []


@EACH
@pytest.mark.parametrize(("true", "declared"), [(0.001, 0.3), (0.01, 0.4), (0.05, 0.5)])
def test_noise_far_below_the_declared_is_noticed(operator: str, true: float, declared: float):
    (said,) = warned(operator, true, declared)
    assert "at most" in said
    assert true / 2 < float(said.rpartition("=")[2]) < 0.6 * declared


@pytest.mark.parametrize("operator", ["denoising", "inpainting", "tomography"])
def test_what_the_prior_can_not_represent_is_no_noise(operator: str):
    assert warned(operator, 0.001, 0.001, model_error=0.6 * smooth(5)) == []


@pytest.mark.parametrize("levels", [5, 11, 26])
def test_rounded_data_are_called_rounded(levels: int):
    physics, truth = denoising(SHAPE, sigma=0.001), smooth(0)
    y = (truth * (levels - 1) / 2).round() * 2 / (levels - 1)
    solved = Solved(Measurement("m", y, physics), truth, truth, truth)
    (said,) = cause_warnings(METHOD, solved)
    step = 2 / (levels - 1)
    assert f"quantised in steps of {step:.2g}" in said
    assert float(said.rpartition("=")[2]) == pytest.approx(step / 12**0.5, rel=0.05)


def test_eight_bits_and_flat_and_continuous_values_are_not_rounded():
    truth = smooth(0)
    assert quantization_step(truth) is None
    assert quantization_step(torch.zeros(1000)) is None
    assert quantization_step(torch.tensor([0.0, 1.0, 3.7]).repeat(100)) is None
    eight_bits = (truth * 127.5).round() / 127.5
    assert quantization_step(eight_bits) == pytest.approx(1 / 127.5, rel=1e-2)
    solved = Solved(Measurement("m", eight_bits, denoising(SHAPE, sigma=0.001)), truth, truth, truth)
    assert cause_warnings(METHOD, solved) == []  # a rounding error of 0.0023 does no harm


@pytest.mark.parametrize("operator", [denoising, gaussian_blur, compressed_sensing])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_measurements_that_are_not_finite_are_refused_with_their_number(tiny_prior, operator, bad: float):
    physics = operator(SHAPE)
    y = physics.A(smooth(0)).contiguous()
    y.view(-1)[:3] = bad
    with pytest.raises(InputError, match=f"3 of the {y.numel()} values of 'm' are NaN or infinite"):
        RLSD(tiny_prior, Measurement("m", y, physics), LatentFeatures(), num_steps=2)


def lost(prior: Prior, folder: Path) -> str:
    """What is said of particles that became NaN."""
    module = RLSD(prior, Measurement("m", smooth(0), denoising(SHAPE)), LatentFeatures(), num_steps=2, num_particles=2)
    module.z.data.fill_(float("nan"))
    module.e.fill_(float("nan"))
    with pytest.raises(NonFiniteError) as caught:
        fit(module, folder, FiniteGuard())
    return str(caught.value)


def test_a_decoder_that_overflows_is_the_cause(tiny_prior, tmp_path):
    tiny_prior.vae.half()
    tiny_prior.vae.decoder.conv_in.weight.data.fill_(60000.0)
    assert "the prior's decoder overflows in float16 (above 65504); set weights=bfloat16" in lost(tiny_prior, tmp_path)


def test_a_damaged_network_is_the_cause(tiny_prior, tmp_path):
    tiny_prior.denoiser.conv_out.bias.data.fill_(float("nan"))
    assert "the output of the prior's network is not finite; its weights are damaged" in lost(tiny_prior, tmp_path)


def test_the_settings_are_blamed_last(tiny_prior, tmp_path):
    said = lost(tiny_prior, tmp_path)
    assert "step 2; lower guidance_scale, lr_z or gamma, or use precision 32-true" in said


@pytest.mark.parametrize("part", ["network", "decode"])
def test_a_full_memory_does_not_hide_that_particles_are_not_finite(
    part: str, tiny_prior: Prior, measurement: Measurement, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_) -> None:
        raise torch.OutOfMemoryError("out of memory")

    module = RLSD(tiny_prior, measurement, LatentFeatures(), num_particles=1, num_steps=2)
    monkeypatch.setattr(tiny_prior, part, full)
    assert non_finite_cause(module).startswith("lower guidance_scale")
