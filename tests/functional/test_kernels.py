"""Laws of the kernel, and the sign of the repulsion."""

import math

import pytest
import torch
from torch import Tensor

from rlsd_lightning.functional import kernels
from rlsd_lightning.functional.kernels import (
    coarse_pixels,
    log_density,
    log_density_gradient,
    mean_square_difference,
    median_bandwidth,
    official_repulsion,
    squared_distances,
)


def points(count: int, size: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def repulsion(features: Tensor, others: Tensor, bandwidth: Tensor) -> Tensor:
    """The gradient of the log density at each particle."""
    leaf = features.clone().requires_grad_()
    return torch.autograd.grad(log_density(leaf, others, bandwidth).sum(), leaf)[0]


def test_kernels_of_a_batch_are_those_of_its_members():
    f = torch.stack([points(4), points(4, seed=1)])
    h = median_bandwidth(f)
    for one, bandwidth, density in zip(f, h, log_density(f, f, h), strict=True):
        assert torch.equal(bandwidth, median_bandwidth(one))
        assert torch.equal(density, log_density(one, one, bandwidth))


def test_squared_distances_are_those_of_a_plain_loop():
    f, g = points(3), points(4, seed=1)
    expected = torch.tensor([[sum((a - b) ** 2 for a, b in zip(u, v, strict=True)) for v in g] for u in f])
    torch.testing.assert_close(squared_distances(f, g), expected.to(f), rtol=1e-12, atol=0)


def test_features_of_unequal_size_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        squared_distances(points(2, 3), points(2, 4))


@pytest.mark.parametrize("count", [2, 3, 6])
def test_bandwidth_is_the_median_over_pairs_by_log_n_plus_1(count: int):
    f = points(count)
    pairs = sorted((f[i] - f[j]).square().sum().item() for i in range(count) for j in range(i))
    median = pairs[(len(pairs) - 1) // 2]  # torch takes the lower of two middle values
    assert median_bandwidth(f).item() == pytest.approx(median / math.log(count + 1), rel=1e-12)


def test_bandwidth_carries_no_gradient():
    assert not median_bandwidth(points(3).requires_grad_()).requires_grad


@pytest.mark.parametrize("f", [points(1), points(1).expand(4, -1)], ids=["one", "coinciding"])
def test_bandwidth_is_one_where_there_is_no_distance(f: Tensor):
    assert median_bandwidth(f).item() == 1


def test_log_density_does_not_depend_on_which_of_two_asks():
    # k(f, g) = k(g, f), and both sums hold k(f, f) = 1
    first, second = log_density(*[points(2)] * 2, torch.tensor(0.7))
    assert first.item() == pytest.approx(second.item(), rel=1e-12)


def test_log_density_moves_with_the_order_of_particles():
    f, order = points(5), torch.tensor([3, 0, 4, 1, 2])
    h = median_bandwidth(f)
    torch.testing.assert_close(log_density(f[order], f[order], h), log_density(f, f, h)[order])


def test_log_density_of_a_lone_particle_is_log_one():
    assert log_density(points(1), points(1), torch.tensor(0.3)).item() == 0


def test_log_density_grows_with_the_bandwidth():
    f = points(4)
    assert (log_density(f, f, torch.tensor(2.0)) > log_density(f, f, torch.tensor(1.0))).all()


def test_a_lone_particle_is_not_pushed_at_all():
    assert (repulsion(points(1), points(1), median_bandwidth(points(1))) == 0).all()


def test_two_particles_are_pushed_by_a_finite_amount():
    f = points(2)
    push = repulsion(f, f, median_bandwidth(f))
    assert torch.isfinite(push).all()
    assert push.norm() > 0.1  # h = log 3 times smaller than their squared distance: no vanishing kernel


@pytest.mark.parametrize("count", [2, 5])
def test_repulsion_is_the_closed_form_gradient(count: int):
    f = points(count)
    h = median_bandwidth(f)
    kernel = torch.exp(-squared_distances(f, f) / h)
    expected = torch.stack(
        [
            sum(kernel[i, j] * -2 * (f[i] - f[j]) / h for j in range(count)) / sum(kernel[i, j] for j in range(count))
            for i in range(count)
        ]
    )
    torch.testing.assert_close(repulsion(f, f, h), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("at_once", [1, 10**6])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_closed_form_is_the_gradient_of_log_density(count: int, at_once: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels, "MOST_DIFFERENCES", at_once)
    f, every, h = points(count), points(count + 2, seed=1), torch.tensor(0.7, dtype=torch.float64)
    torch.testing.assert_close(log_density_gradient(f, every, h), repulsion(f, every, h), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("at_once", [1, 10**6])
def test_the_closed_form_of_a_batch_is_that_of_its_members(at_once: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels, "MOST_DIFFERENCES", at_once)
    sets = torch.stack([points(4, seed=seed) for seed in range(3)])
    together = log_density_gradient(sets, sets, median_bandwidth(sets))
    assert together.equal(torch.stack([log_density_gradient(one, one, median_bandwidth(one)) for one in sets]))


def test_gradient_of_log_density_passes_gradcheck():
    f = points(4)
    h = median_bandwidth(f)
    assert torch.autograd.gradcheck(lambda leaf: log_density(leaf, f, h), points(3, seed=1).requires_grad_())


def test_particles_on_another_device_push_as_if_they_were_here():
    f = points(5)
    h = median_bandwidth(f)
    torch.testing.assert_close(repulsion(f[2:4], f, h), repulsion(f, f, h)[2:4], rtol=1e-12, atol=0)


@pytest.mark.parametrize("distance", [0.1, 1.0, 10.0])
def test_stepping_against_the_gradient_moves_two_particles_apart(distance: float):
    f = torch.tensor([[0.0, 0.0], [distance, 0.0]], dtype=torch.float64)
    moved = f - 0.01 * distance * repulsion(f, f, median_bandwidth(f))
    assert (moved[0] - moved[1]).norm() > distance


def test_published_push_moves_three_particles_apart():
    f = points(3)
    moved = f + 0.01 * official_repulsion(f)
    assert torch.pdist(moved).sum() > torch.pdist(f).sum()


def test_coinciding_particles_stay_finite():
    f = points(1).expand(3, -1)
    push = repulsion(f, f, median_bandwidth(f))
    assert torch.isfinite(push).all()


def test_two_of_four_particles_coincide_and_all_stay_finite():
    f = torch.cat([points(1).expand(2, -1), points(2, seed=1)])
    assert torch.isfinite(repulsion(f, f, median_bandwidth(f))).all()


def double_loop(f: Tensor) -> Tensor:
    """The push of the official code, written out."""
    count = len(f)
    pushes = []
    for i in range(count):
        distances = sorted((f[i] - f[j]).norm().item() for j in range(count) if j != i)
        h = distances[(len(distances) - 1) // 2] ** 2 / math.log(count - 1)
        total, push = 0.0, torch.zeros_like(f[i])
        for j in range(count):
            if j != i:
                k = math.exp(-((f[i] - f[j]).norm().item() ** 2) / h)
                total += k
                push = push + 2 * k * (f[i] - f[j]) / h
        pushes.append(push / total)
    return torch.stack(pushes)


@pytest.mark.parametrize("count", [3, 4, 7])
def test_published_push_equals_a_double_loop(count: int):
    f = points(count)
    torch.testing.assert_close(official_repulsion(f), double_loop(f), rtol=1e-10, atol=1e-12)


def test_published_push_of_coinciding_particles_is_finite():
    f = torch.cat([points(1).expand(3, -1), points(1, seed=1)])
    push = official_repulsion(f)
    assert torch.isfinite(push).all()
    assert push[3].norm() > 0


@pytest.mark.parametrize("count", [1, 2])
def test_published_push_is_zero_for_two_or_fewer(count: int):
    # log(N - 1) = 0 makes the bandwidth infinite
    assert (official_repulsion(points(count)) == 0).all()


# --- distances of images -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 5])
def test_mean_square_difference_is_that_of_all_pairs(count: int) -> None:
    features = torch.randn(count, 7, dtype=torch.float64)
    expected = torch.cdist(features, features).square().sum(dim=1) / (count - 1) / 7
    torch.testing.assert_close(mean_square_difference(features), expected)


def test_a_lone_particle_differs_from_nothing() -> None:
    assert mean_square_difference(torch.randn(1, 7)).tolist() == [0.0]


def test_thumbnails_are_means_of_squares_of_pixels_and_no_larger_than_the_image() -> None:
    images = torch.randn(2, 3, 64, 96)
    expected = images.unfold(2, 2, 2).unfold(3, 3, 3).mean(dim=(4, 5))
    torch.testing.assert_close(coarse_pixels(images), expected.flatten(1))
    assert torch.equal(coarse_pixels(images[..., :20, :20]), images[..., :20, :20].flatten(1))
    points = torch.randn(4, 5)
    assert torch.equal(coarse_pixels(points), points)
