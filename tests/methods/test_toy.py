"""The whole idea in seconds: five equal modes that a measurement can't tell apart."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor

from rlsd_lightning.functional.metrics import mode_total_variation
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.priors import GaussianMixture, GaussianMixturePrior
from rlsd_lightning.results.density import exact_posterior

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def problem(*overrides: str) -> tuple[Tensor, GaussianMixture, GaussianMixturePrior, Measurement]:
    """The particles of task=toy as it is configured, its posterior, prior and measurement."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", ["task=toy", "output_dir=unused", *overrides])
    prior = instantiate(cfg.prior)
    measurement = instantiate(cfg.data)(prior.image_shape, instantiate(cfg.physics))[0]
    module = instantiate(cfg.method)(prior, measurement, instantiate(cfg.features))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    instantiate(cfg.trainer)(**quiet, accelerator="cpu", precision="32-true").fit(module)
    return module.reconstructions()[0], exact_posterior(prior, measurement), prior, measurement


@pytest.fixture(scope="module")
def repelled() -> tuple:
    return problem()


@pytest.fixture(scope="module")
def free() -> tuple:
    return problem("method.gamma=0")


def total_variation(solution: tuple) -> float:
    images, posterior, *_ = solution
    return mode_total_variation(posterior.assign(images), posterior.weights).item()


def test_repulsion_covers_the_modes(repelled: tuple):
    assert total_variation(repelled) <= 0.15


def test_without_repulsion_the_particles_collapse(free: tuple):
    # 0.8 is all in one of five
    assert total_variation(free) >= 0.6


@pytest.mark.parametrize("name", ["repelled", "free"])
def test_particles_agree_with_the_measurement(name: str, request: pytest.FixtureRequest):
    images, _, _, measurement = request.getfixturevalue(name)
    assert torch.isfinite(images).all()
    # four standard deviations of the noise
    assert (images[:, 0] - measurement.y[0, 0]).abs().max() < 4 * measurement.physics.noise_model.sigma.max()


def test_exact_posterior_is_five_equal_modes(free: tuple):
    _, posterior, prior, _ = free
    torch.testing.assert_close(posterior.weights[:5], torch.full((5,), 0.2), atol=1e-6, rtol=0)
    assert posterior.weights[5:].max() < 1e-6
    # the hidden coordinate is untouched, the seen one is a product of two Gaussians
    torch.testing.assert_close(posterior.means[:5, 1], prior.mixture.means[:5, 1])
    torch.testing.assert_close(posterior.covariances[0, 1, 1].item(), 0.15**2, rtol=1e-5, atol=0)
    torch.testing.assert_close(posterior.covariances[0, 0, 0].item(), 1 / (1 / 0.15**2 + 1 / 0.1**2), rtol=1e-5, atol=0)
