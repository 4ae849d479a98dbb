"""Figures about particles, against torchmetrics and against cases with a known value."""

import pytest
import torch
from torch.nn.functional import cosine_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio

from rlsd_lightning.functional.metrics import (
    diversity,
    mode_total_variation,
    psnr,
    residual_rms,
)


def test_psnr_of_each_image_is_that_of_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    truth = 2 * torch.rand(1, 3, 8, 8, generator=generator) - 1
    noise = torch.randn(4, 3, 8, 8, generator=generator)
    images = truth + torch.tensor([0.01, 0.1, 1.0, 3.0]).view(-1, 1, 1, 1) * noise  # the last are far out of range
    # one at a time: torchmetrics averages the error over a batch
    expected = torch.stack([peak_signal_noise_ratio(image[None], truth, data_range=(-1.0, 1.0)) for image in images])
    torch.testing.assert_close(psnr(images, truth), expected)


def test_psnr_of_black_against_white_is_zero():
    assert psnr(-torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2)).item() == 0


def test_identical_features_have_no_diversity():
    features = torch.tensor([[1.0, 2.0, -3.0]]).expand(4, -1)
    assert diversity(features).item() == pytest.approx(0, abs=1e-6)


def test_scale_of_features_does_not_count_as_diversity():
    assert diversity(torch.tensor([[1.0, 2.0], [10.0, 20.0]])).item() == pytest.approx(0, abs=1e-6)


def test_orthogonal_features_have_diversity_one():
    assert diversity(torch.eye(5)).item() == pytest.approx(1, abs=1e-6)


def test_opposite_features_have_diversity_two():
    assert diversity(torch.tensor([[1.0, 2.0], [-1.0, -2.0]])).item() == pytest.approx(2, abs=1e-6)


def test_one_particle_has_no_diversity():
    assert diversity(torch.ones(1, 3)).item() == 0


def test_diversity_is_one_minus_the_mean_cosine_of_pairs():
    features = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    cosines = [cosine_similarity(features[i], features[j], dim=0) for i in range(5) for j in range(i)]
    torch.testing.assert_close(diversity(features), 1 - torch.stack(cosines).mean())


def test_residual_rms_is_in_units_of_the_measurement():
    y = torch.zeros(1, 2)
    measured = torch.tensor([[3.0, -3.0], [3.0, 3.0]])
    assert residual_rms(measured, y).item() == 3


@pytest.mark.parametrize(
    ("assignments", "weights", "expected"),
    [
        ([0, 1, 2, 3, 4], [0.2] * 5, 0.0),
        ([2] * 10, [0.2] * 5, 0.8),  # all in one of five
        ([0] * 3 + [1], [0.5, 0.5], 0.25),
        ([1, 1], [1.0, 0.0], 1.0),  # all where nothing is
        ([0], [0.25, 0.25, 0.5], 0.75),  # the last modes are counted though nobody is there
    ],
)
def test_total_variation_of_known_shares(assignments: list, weights: list, expected: float):
    value = mode_total_variation(torch.tensor(assignments), torch.tensor(weights))
    assert value.item() == pytest.approx(expected, abs=1e-6)
