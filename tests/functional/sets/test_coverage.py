"""Vendi score, coverage and precision, against closed forms."""

import math

import pytest
import torch

from rlsd_lightning.functional.sets.coverage import (
    cell_coverage,
    coverage,
    expected_coverage,
    precision,
    vendi_score,
)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_vendi_score_of_orthogonal_and_of_identical_features(count: int):
    assert vendi_score(3 * torch.eye(8)[:count]).item() == pytest.approx(count)
    assert vendi_score(torch.tensor([[1.0, -2.0]]).expand(count, -1)).item() == pytest.approx(1)


@pytest.mark.parametrize("cosine", [0.0, 0.5, 0.9])
def test_vendi_score_of_two_features(cosine: float):
    features = torch.tensor([[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]])
    shares = (1 + cosine) / 2, (1 - cosine) / 2
    assert vendi_score(features).item() == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))


def test_vendi_score_counts_groups():
    groups = torch.eye(4).repeat_interleave(3, dim=0)
    assert vendi_score(groups).item() == pytest.approx(4)


@pytest.mark.parametrize("count", [2, 4, 16])
def test_exact_particles_have_the_expected_coverage_and_precision(count: int):
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(200):
        draws = torch.randn(400 + count, 3, generator=generator)
        found.append([f(draws[:count], draws[count:]).item() for f in (coverage, precision)])
    mean = torch.tensor(found).mean(dim=0)
    assert mean[0].item() == pytest.approx(expected_coverage(count), abs=0.02)
    assert mean[1].item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_coverage_does_not_depend_on_the_scale(scale: float):
    generator = torch.Generator().manual_seed(0)
    draws, particles = (torch.randn(n, 5, generator=generator) for n in (64, 4))
    assert coverage(scale * particles, scale * draws) == coverage(particles, draws)


def test_particles_elsewhere_cover_nothing_and_copies_less_than_draws():
    draws = torch.randn(256, 3, generator=torch.Generator().manual_seed(0))
    assert coverage(draws[:4] + 100, draws) == precision(draws[:4] + 100, draws) == 0
    assert coverage(draws[:1].expand(4, -1), draws) < coverage(draws[:4], draws)


def test_particles_that_hold_a_middle_are_precise_but_cover_less():
    draws = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
    assert precision(0.1 * draws[:4], draws) > precision(draws[:4], draws)


def test_cell_coverage_is_the_probability_of_what_is_shown():
    draws = torch.tensor([[0, 0]] * 5 + [[0, 1]] * 3 + [[1, 1]] * 2)
    assert cell_coverage(torch.tensor([[0, 0], [0, 0]]), draws) == 0.5
    assert cell_coverage(torch.tensor([[0, 0], [1, 1]]), draws) == 0.7
    assert cell_coverage(torch.tensor([[1, 0]]), draws) == 0
