"""The particle filter against posteriors that are known exactly, and the laws every particle method keeps."""

from pathlib import Path

import pytest
import torch
from deepinv.physics import GaussianNoise, Inpainting, LinearPhysics
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file
from support.command import train
from support.operator_cases import EVERY
from support.trainers import trainer_with
from torch import Tensor

from benchmarks.distances import within_mode_spread
from rlsd_lightning import GaussianMixturePrior, InputError, LatentFeatures, Measurement, TwistedFilter
from rlsd_lightning.functional.metrics import mode_total_variation
from rlsd_lightning.operators import make_noise
from rlsd_lightning.priors import GaussianMixture
from rlsd_lightning.results.density import exact_posterior
from rlsd_lightning.results.writer import ImageResults

pytestmark = pytest.mark.usefixtures("noise_in_one_draw")

EXACT = {"decoder_std": 0.0, "min_mu": 1e-9, "num_steps": 200}


def seen(value: float, noise_std: float, name: str = "seen") -> Measurement:
    """Of a point in the plane, the first coordinate."""
    physics = Inpainting((2,), mask=torch.tensor([1.0, 0.0]), noise_model=GaussianNoise(sigma=noise_std))
    return Measurement(name, torch.tensor([[value, 0.0]]), physics)


def fit(module: TwistedFilter, folder: Path, *callbacks: Callback) -> TwistedFilter:
    """Without results on disk, which are for images."""
    trainer = trainer_with(folder, *callbacks)
    trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, ImageResults)]
    trainer.log_every_n_steps = 1
    trainer.fit(module)
    return module


def draws(prior: GaussianMixturePrior, measurement: Measurement, folder: Path, **settings) -> tuple:
    """Particles and the exact posterior."""
    module = TwistedFilter(prior, measurement, LatentFeatures(), **{**EXACT, **settings})
    return fit(module, folder).reconstructions()[0], exact_posterior(prior, measurement)


@pytest.mark.parametrize("noise_std", [0.05, 1.0])
def test_gaussian_posterior_has_its_mean_and_covariance(noise_std: float, tmp_path: Path):
    prior = GaussianMixturePrior([[0.0, 0.0]], std=0.8)
    settings = {"num_particles": 1000, "latent_std": 0.8, "image_std": 0.8}
    points, posterior = draws(prior, seen(0.6, noise_std), tmp_path, **settings)
    scale = posterior.covariances[0].diagonal().sqrt()
    # five standard errors of a mean and of a deviation
    assert ((points.mean(dim=0) - posterior.means[0]).abs() < 5 * scale / 1000**0.5).all()
    assert (points.std(dim=0) / scale - 1).abs().max() < 5 / 2000**0.5


def test_last_draws_perturb_both_parts_of_a_complex_measurement(tiny_prior):
    physics = LinearPhysics(
        A=lambda x, **_: torch.fft.fft2(x, norm="ortho"),
        A_adjoint=lambda y, **_: torch.fft.ifft2(y, norm="ortho").real,
        noise_model=GaussianNoise(sigma=0.1),
    )
    y = torch.zeros(1, *tiny_prior.image_shape, dtype=torch.complex64)
    module = TwistedFilter(
        tiny_prior, Measurement("fourier", y, physics), LatentFeatures(), num_particles=2, num_steps=2
    )
    (perturbed,) = module._perturbed(0)
    assert perturbed.shape == (2, *y.shape[1:])
    for part in (perturbed.real, perturbed.imag):  # deepinv's deviation is that of both parts together
        assert part.std().item() == pytest.approx(0.1 / 2**0.5, rel=0.05)


class Shares(Callback):
    """What share of the particles was effective, at every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        self.values.append(float(trainer.callback_metrics["effective_share"]))


def test_weights_stay_equal_where_the_twist_is_exact(tmp_path: Path):
    prior = GaussianMixturePrior([[0.0, 0.0]], std=1.0)
    settings = {**EXACT, "image_std": 1.0, "num_particles": 100, "resample_below": 0.0}
    shares = Shares()
    fit(TwistedFilter(prior, seen(0.6, 0.3), LatentFeatures(), **settings), tmp_path, shares)
    assert len(shares.values) == 200
    # nothing is drawn anew before the end: what is lost is that of 200 steps instead of endlessly many
    assert min(shares.values) > 0.9


def test_a_timestep_that_comes_twice_leaves_the_weights_finite(tmp_path: Path):
    prior = GaussianMixturePrior([[-1.0, 0.0], [1.0, 0.0]], std=0.3)
    prior.alphas, prior.sigmas = prior.alphas[49::100], prior.sigmas[49::100]
    settings = {**EXACT, "num_steps": 10, "latent_std": 1.0, "image_std": 1.0, "num_particles": 100}
    module, shares = TwistedFilter(prior, seen(0.0, 1.0), LatentFeatures(), **settings), Shares()
    assert module.timesteps[:2] == [9, 9]
    points = fit(module, tmp_path, shares).reconstructions()[0]
    assert all(0 < share <= 1.001 for share in shares.values)
    assert points.std(dim=0).min() > 0.1


MEANS = [[-2.0, 2.0], [0.1, -1.5], [0.0, 0.0], [2.0, 0.0]]


def mixture() -> GaussianMixturePrior:
    """Two modes that the first coordinate can't tell well apart, unequal in weight, and two that it excludes."""
    return GaussianMixturePrior(MEANS, std=0.3, weights=[0.3, 0.2, 0.4, 0.1])


@pytest.mark.parametrize(("seed", "noise_std"), [(0, 0.1), (1, 0.5)])
def test_modes_have_their_weights_and_their_spread(seed: int, noise_std: float, tmp_path: Path):
    settings = {"num_particles": 500, "latent_std": 1.3, "image_std": 1.3, "seed": seed}
    points, posterior = draws(mixture(), seen(0.0, noise_std), tmp_path, **settings)
    modes = posterior.assign(points)
    assert 0.25 < posterior.weights.sort().values[-2] < 0.5  # there are two to get right
    # 500 independent draws are 0.02 off on average, and within 0.03 of the spread
    assert mode_total_variation(modes, posterior.weights) < 0.06
    assert within_mode_spread(points, modes, posterior.covariances).item() == pytest.approx(1, abs=0.08)


def test_measurements_side_by_side_end_as_they_would_alone(tmp_path: Path):
    measurements = [seen(0.0, 0.2, "first"), seen(-2.0, 0.1, "second"), seen(0.4, 0.5, "third")]
    settings = {**EXACT, "num_particles": 20, "num_steps": 50}

    def points(of: list[Measurement], folder: str) -> Tensor:
        return fit(TwistedFilter(mixture(), of, LatentFeatures(), **settings), tmp_path / folder).reconstructions()[0]

    together = points(measurements, "together")
    for index, measurement in enumerate(measurements):
        torch.testing.assert_close(
            together[20 * index :][:20], points([measurement], measurement.name), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("noise", ["laplace", "poisson"])
@pytest.mark.parametrize("decoder_std", [0.0, 0.1])
def test_other_noise(noise: str, decoder_std: float, tiny_prior, tmp_path: Path):
    physics = EVERY["denoising"](tiny_prior.image_shape)
    physics.noise_model = make_noise(noise, 0.1)
    measurement = Measurement("m", torch.zeros(1, *tiny_prior.image_shape), physics)
    settings = {"num_particles": 2, "num_steps": 4, "decoder_std": decoder_std}
    module = TwistedFilter(tiny_prior, measurement, LatentFeatures(), **settings)
    assert fit(module, tmp_path).reconstructions()[0].isfinite().all()


def test_it_runs_on_the_toy_and_on_a_sequence(small: list[str], tmp_path: Path):
    toy = ["task=toy", "method=twisted", "method.decoder_std=0", "num_particles=8", "num_steps=5"]
    code, printed = train(*toy, f"output_dir={tmp_path / 'toy'}")
    assert code == 0, printed
    code, printed = train(*small, "method=twisted", "data.limit=2", "data.sequence=true", "num_steps=4")
    assert code == 0, printed


def test_results_of_latents_that_are_the_images(small: list[str], tiny_folders: dict[str, Path], tmp_path: Path):
    own = ["prior=pixel", f"prior.pretrained={tiny_folders['pixel']}", *small[1:]]
    code, printed = train(*own, "method=twisted", "method.decoder_std=0", "num_steps=4", f"output_dir={tmp_path}")
    assert code == 0, printed
    saved = load_file(tmp_path / "000" / "particles.safetensors")
    assert saved["x"].equal(saved["z"])


def test_half_precision_draws_what_full_precision_does(small: list[str], tmp_path: Path):
    found = []
    for precision in ("32-true", "bf16-mixed"):
        own = [f"trainer.precision={precision}", "method=twisted", "num_steps=4", f"output_dir={tmp_path / precision}"]
        code, printed = train(*small, *own)
        assert code == 0, printed
        found.append(load_file(tmp_path / precision / "000" / "particles.safetensors")["x"])
    assert found[0].isfinite().all()
    # bfloat16 has 8 bits of a fraction, and errors of networks add up over steps
    assert (found[0] - found[1]).square().mean().sqrt() < 0.05
    assert not found[0].equal(found[1])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"resample_below": 1.5}, "^resample_below must be from 0 to 1, got 1.5"),
        ({"image_std": 0.0}, "^image_std must be above 0, got 0.0"),
        ({"decoder_std": -1.0}, "^decoder_std must be at least 0, got -1.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, said: str):
    with pytest.raises(InputError, match=said):
        TwistedFilter(mixture(), seen(0.0, 0.1), LatentFeatures(), **settings)


def test_posterior_of_the_mixture_is_what_the_tests_take_it_for():
    posterior: GaussianMixture = exact_posterior(mixture(), seen(0.0, 0.1))
    likelihood = torch.tensor([-(m[0] ** 2) / (2 * (0.3**2 + 0.1**2)) for m in MEANS]).exp()
    torch.testing.assert_close(
        posterior.weights, (likelihood * mixture().mixture.weights) / (likelihood @ mixture().mixture.weights)
    )
