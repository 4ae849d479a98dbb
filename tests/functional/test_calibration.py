"""Coverage of particles that are exact draws is the nominal one, for any number of them."""

import math

import pytest
import torch
from torch.distributions import StudentT

from rlsd_lightning.functional.calibration import LEVELS, calibration, interval_factor, student_mass
from rlsd_lightning.functional.metrics import gradient_energy, pixel_std

ENTRIES = 200_000


def draws(count: int, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Particles and truth of Gaussian entries, each with a mean and a deviation of its own."""
    generator = torch.Generator().manual_seed(count)
    mean, std = torch.randn(ENTRIES, generator=generator), torch.rand(ENTRIES, generator=generator) + 0.1
    truth = mean + std * torch.randn(1, ENTRIES, generator=generator)
    return mean + spread * std * torch.randn(count, ENTRIES, generator=generator), truth


@pytest.mark.parametrize("degrees", range(1, 12))
@pytest.mark.parametrize("t", [0.3, 1.0, 4.0])
def test_student_mass_is_the_integral_of_the_density(t: float, degrees: int) -> None:
    points = torch.linspace(-t, t, 20_001, dtype=torch.float64)
    density = StudentT(torch.tensor(float(degrees), dtype=torch.float64)).log_prob(points).exp()
    assert student_mass(t, degrees) == pytest.approx(torch.trapezoid(density, points).item(), abs=1e-7)


@pytest.mark.parametrize(("count", "quantile"), [(2, 12.7062), (3, 4.3027), (4, 3.1824), (11, 2.2281)])
def test_intervals_have_the_tabulated_quantiles(count: int, quantile: float) -> None:
    assert interval_factor(0.95, count) == pytest.approx(quantile * math.sqrt(1 + 1 / count), rel=1e-4)


def test_intervals_of_many_particles_are_those_of_the_normal_distribution() -> None:
    assert interval_factor(0.95, 2000) == pytest.approx(1.96, rel=2e-3)


@pytest.mark.parametrize("count", [2, 3, 4, 8, 33])
def test_exact_particles_have_the_nominal_coverage(count: int) -> None:
    figures = calibration(*draws(count))
    error = 4 * 0.5 / math.sqrt(ENTRIES)  # four standard deviations of the sampling
    for level in LEVELS:
        assert figures[f"coverage_{level}"] == pytest.approx(level / 100, abs=error)
    for k in (1, 2, 3):
        assert figures[f"within_{k}_std"] == pytest.approx(figures[f"within_{k}_std_expected"], abs=error)
    assert figures["calibration_error"] < error
    assert figures["spread_to_error"] == pytest.approx(1, rel=0.02)


def test_four_exact_particles_would_fail_against_the_normal_distribution() -> None:
    assert calibration(*draws(4))["coverage_95_normal"] == pytest.approx(0.82, abs=0.01)


@pytest.mark.parametrize(("spread", "sign"), [(0.3, -1), (3.0, 1)])
def test_particles_too_alike_cover_less_and_too_different_more(spread: float, sign: int) -> None:
    figures = calibration(*draws(4, spread))
    for level in LEVELS[:3]:
        assert sign * (figures[f"coverage_{level}"] - level / 100) > 0.04
    assert sign * (figures["spread_to_error"] - 1) > 0.3


def test_only_the_region_counts() -> None:
    images, truth = torch.tensor([[0.0, 5.0], [1.0, 5.0]]), torch.tensor([[0.5, 0.0]])
    assert calibration(images, truth, torch.tensor([True, False]))["coverage_50"] == 1
    assert calibration(images, truth, torch.tensor([False, True]))["coverage_95"] == 0
    assert calibration(images, truth, torch.tensor([False, False]))["coverage_50"] is None


def test_one_particle_has_no_uncertainty() -> None:
    assert set(calibration(torch.zeros(1, 3), torch.zeros(1, 3)).values()) == {None}
    assert pixel_std(torch.zeros(1, 3)) is None


def test_the_truths_rounding_is_allowed_for() -> None:
    images, truth = torch.zeros(4, 2), torch.tensor([[0.003, 0.005]])
    assert calibration(images, truth, resolution=1 / 255)["within_1_std"] == 0.5


def test_pixel_std_is_that_of_the_draws_for_any_number() -> None:
    for count in (2, 4, 16):
        images = 0.2 * torch.randn(count, ENTRIES, generator=torch.Generator().manual_seed(0))
        assert pixel_std(images) == pytest.approx(0.2, rel=0.01)
    images[:, : ENTRIES // 2] = 0
    assert pixel_std(images, images[0] == 0) == 0


def test_gradient_energy_of_a_ramp() -> None:
    ramp = torch.arange(8.0).expand(2, 3, 8, 8) * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    assert gradient_energy(ramp).tolist() == [1, 9]
