"""Health metrics and warnings, on particles and on runs that are made to fail."""

import json
import logging
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.command import train
from support.trainers import fit
from torch.nn.functional import avg_pool2d

from rlsd_lightning import (
    DWGF,
    LATINO,
    RLSD,
    Distilled,
    LatentDAPS,
    LatentDPS,
    LatentFeatures,
    Measurement,
    RLSDPaper,
    TwistedFilter,
)
from rlsd_lightning.evaluation.health import (
    HealthMetrics,
    health_metrics,
    health_warnings,
    null_space,
    problems,
)
from rlsd_lightning.evaluation.scores import Solved
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.operators import (
    NullOperator,
    colorization,
    denoising,
    gaussian_blur,
    hdr,
    inpainting,
    mri,
    super_resolution,
)
from rlsd_lightning.priors import Calibration
from rlsd_lightning.results.writer import ImageResults

SHAPE = (3, 32, 32)
GENERATOR = torch.Generator()
WHITE = Calibration(0.08, 0.2, 0.5, 1.0, (1.0, 1.0), 8, "pictures")
PRIOR = SimpleNamespace(
    calibration=WHITE,
    latent_shape=(4, 8, 8),
    image_shape=SHAPE,
    alphas=torch.ones(1),
    encode=lambda images: images,
    decode=lambda z: z,
)
"""An autoencoder without loss."""
METHOD = SimpleNamespace(prior=PRIOR, decoder_std=0.08)
"""The part of a method that health metrics need."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    GENERATOR.manual_seed(0)


def smooth(count: int = 1, size: int = 3) -> torch.Tensor:
    """Pictures without noise from pixel to pixel, within [-1, 1]."""
    noise = torch.randn(count, 3, 48, 48, generator=GENERATOR)
    return (size * avg_pool2d(noise, size, stride=1)[:, :, :32, :32] / 2).clamp(-1, 1)


def measured(operator, truth: torch.Tensor, **settings) -> Measurement:
    physics = operator(SHAPE, **settings)
    return Measurement("m", physics.A(truth), physics, truth)


def look(measurement: Measurement, images: torch.Tensor, decoded: torch.Tensor | None = None, **more) -> list[str]:
    """Warnings on particles whose features are their pixels."""
    z = torch.randn(len(images), 4, 8, 8, generator=GENERATOR)
    z = z / z.flatten(1).square().mean(dim=1).sqrt().view(-1, 1, 1, 1) * more.pop("norm", 1.0)
    decoded = images if decoded is None else decoded
    solved = Solved(measurement, images, decoded, z)
    return health_warnings(health_metrics(METHOD, solved, images.flatten(1), **more))


# --- null space ----------------------------------------------------------------------------------------------------


def energy(v: torch.Tensor) -> float:
    return v.square().sum().item()


def test_a_mask_leaves_the_energy_of_the_hidden_pixels() -> None:
    images, physics = smooth(4), inpainting(SHAPE, "half")
    share, spread = null_space(physics, images, physics.A(images[:1]))
    centred = images.mean(dim=0) - images.mean(dim=0).mean(dim=(-2, -1), keepdim=True)
    assert share == pytest.approx(energy(centred[:, 16:]) / energy(centred), rel=1e-3)
    deviation = images[..., 16:, :].var(dim=0).sum().item()
    assert spread == pytest.approx((deviation / energy(centred[:, 16:])) ** 0.5, rel=1e-3)


@pytest.mark.parametrize("sigma", [0.05, 0.2, 1.0])
def test_noise_leaves_what_shrinks_towards_zero(sigma: float) -> None:
    images, physics = smooth(4), denoising(SHAPE, sigma)
    share, _ = null_space(physics, images, images[:1])
    assert share == pytest.approx((sigma**2 / (1 + sigma**2)) ** 2, rel=1e-3)


def test_nothing_leaves_everything_and_one_particle_uses_nothing_that_is_known() -> None:
    physics = NullOperator(SHAPE)
    assert null_space(physics, smooth(1), torch.zeros(1, 1)) == (pytest.approx(1), None)


def test_grey_leaves_the_colours() -> None:
    images = smooth(4)
    grey = images.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    physics = colorization(SHAPE)
    assert null_space(physics, grey, physics.A(grey[:1]))[0] == pytest.approx(0, abs=1e-3)
    assert null_space(physics, images, physics.A(images[:1]))[0] > 0.3


@pytest.mark.parametrize("operator", [super_resolution, mri, gaussian_blur])
def test_other_linear_operators_leave_a_share(operator) -> None:
    images, physics = smooth(3), operator(SHAPE)
    share, spread = null_space(physics, images, physics.A(images[:1]))
    assert 0 < share < 1
    assert spread > 0


def test_of_nonlinear_operators_nothing_is_known() -> None:
    physics = hdr(SHAPE)
    assert null_space(physics, smooth(2), smooth(1)) is None


# --- particles made to fail ----------------------------------------------------------------------------------------


def alike(truth: torch.Tensor, count: int = 4) -> torch.Tensor:
    return (truth + 1e-3 * torch.randn(count, *SHAPE, generator=GENERATOR)).clamp(-1, 1)


def parted(truth: torch.Tensor) -> torch.Tensor:
    """Explains the visible half, with lower halves of their own."""
    images = alike(truth)
    images[..., 16:, :] = smooth(4)[..., 16:, :]
    return images


def test_healthy_particles_are_left_alone() -> None:
    truth = smooth()
    assert look(measured(inpainting, truth, mask="half"), parted(truth), repulsion_ratio=0.5) == []


def test_particles_that_are_alike_are_noticed_where_there_is_room() -> None:
    truth = smooth()
    (said,) = look(measured(inpainting, truth, mask="half"), alike(truth))
    assert "the particles have collapsed" in said
    assert "raise gamma" in said


@pytest.mark.parametrize(
    ("operator", "settings"),
    [
        (denoising, {"sigma": 0.2}),
        (denoising, {"sigma": 0.05}),
        (hdr, {}),
        (denoising, {"noise": "poisson", "sigma": 0.1}),
    ],
)
def test_particles_may_be_alike_where_the_measurement_says_it_all(operator, settings: dict) -> None:
    truth = smooth()
    assert look(measured(operator, truth, **settings), alike(truth)) == []


def test_a_lone_particle_is_not_alike() -> None:
    truth = smooth()
    assert look(measured(inpainting, truth, mask="half"), alike(truth, 1)) == []


def test_a_priors_own_diversity_moves_the_limit() -> None:
    seen = HealthMetrics(diversity=0.02, null_space_energy=0.5, null_space_spread=0.05)
    assert health_warnings(seen) == health_warnings(seen, prior_diversity=0.3) == []
    assert len(health_warnings(seen, prior_diversity=0.6)) == 1


@pytest.mark.parametrize(("sigma", "noticed"), [(0.0005, True), (0.01, False)])
def test_reconstructions_far_from_the_data_are_noticed(sigma: float, noticed: bool) -> None:
    truth = smooth()
    said = look(measured(denoising, truth, sigma=sigma), alike(truth) + 0.005)
    assert [line for line in said if "standard deviations of the noise" in line] == said
    assert bool(said) is noticed


def test_other_noise_is_not_counted_in_standard_deviations() -> None:
    truth = smooth()
    assert look(measured(denoising, truth, sigma=0.001, noise="laplace"), alike(truth) + 0.1) == []


def blurred(images: torch.Tensor, size: int) -> torch.Tensor:
    return avg_pool2d(images, size, stride=1, padding=size // 2)


@pytest.mark.parametrize(
    ("std", "lost", "shown", "noticed"),
    [
        (0.1, 1, 1, False),
        (0.1, 1, 3, True),
        (0.1, 3, 3, False),
        (0.1, 3, 1, False),
        (0.1, 3, 7, True),
        (0.1, 7, 7, False),
        (0.5, 7, 7, True),  # its loss is beyond that of pictures which the autoencoder knows
    ],
)
def test_latents_that_do_not_follow_a_sharp_image_are_noticed(std: float, lost: int, shown: int, noticed: bool) -> None:
    truth = std * torch.randn(1, *SHAPE, generator=GENERATOR).clamp(-1, 1)
    autoencoder = {"encode": lambda images: blurred(images, lost)}
    method = SimpleNamespace(prior=SimpleNamespace(**(vars(PRIOR) | autoencoder)), decoder_std=0.5)
    z = torch.ones(4, 4, 8, 8)
    solved = Solved(measured(denoising, truth), alike(truth), blurred(truth, shown).expand(4, -1, -1, -1), z)
    said = health_warnings(health_metrics(method, solved, alike(truth).flatten(1)))
    assert [line for line in said if "the latents do not follow the images" in line] == said
    assert bool(said) is noticed


def test_blurred_reconstructions_are_noticed_where_the_truth_is_known() -> None:
    truth = 0.5 * torch.randn(1, *SHAPE, generator=GENERATOR).clamp(-1, 1)
    particles = blurred(truth, 3).expand(4, -1, -1, -1)
    measurement = measured(denoising, truth, sigma=0.2)
    (said,) = look(measurement, particles)
    assert "the reconstructions are blurred" in said
    assert look(measurement._replace(truth=None), particles) == []


@pytest.mark.parametrize("norm", [0.5, 1.5, 20.0])
def test_latents_that_left_the_prior_are_noticed(norm: float) -> None:
    truth = smooth()
    (said,) = look(measured(denoising, truth), alike(truth), norm=norm)
    assert f"{norm:.3g} times the norm of the prior's samples" in said


@pytest.mark.parametrize(("scale", "ratio"), [(0.35, 0.5), (0.7, 1.0), (1.0, 1.0), (1.4, 1.0), (2.8, 2.0)])
def test_latents_are_compared_with_the_range_of_the_priors_own(scale: float, ratio: float) -> None:
    truth, z = smooth(), scale * torch.ones(4, 4, 8, 8)
    solved = Solved(measured(denoising, truth), alike(truth), alike(truth), z)
    own = WHITE._replace(latent_rms=(0.7, 1.4))
    method = SimpleNamespace(prior=SimpleNamespace(**(vars(PRIOR) | {"calibration": own})), decoder_std=0.08)
    seen = health_metrics(method, solved, alike(truth).flatten(1))
    assert seen.latent_norm == pytest.approx(ratio)
    assert any("have left the prior's" in problem for problem, _ in problems(seen)) is (ratio != 1)


def test_latents_that_are_images_have_no_range() -> None:
    truth = smooth()
    solved = Solved(measured(denoising, truth), alike(truth), alike(truth), 20 * alike(truth))
    method = SimpleNamespace(prior=SimpleNamespace(**(vars(PRIOR) | {"latent_shape": SHAPE})), decoder_std=0.0)
    seen = health_metrics(method, solved, alike(truth).flatten(1))
    assert seen.coupling is None
    assert seen.latent_norm is None


@pytest.mark.parametrize(
    ("ratio", "shift", "said"),
    [
        (1.5, 0.0, "the repulsion is 1.5 times as strong as the data gradient or score"),
        (0.5, 0.3, "the repulsion is too strong or the steps too few: RMS(x - D(z)) is 3.75 decoder errors"),
        (0.5, 0.05, None),
        (0.0, 0.3, None),
        (None, 0.3, None),
    ],
)
def test_repulsion_that_is_too_strong_is_noticed(ratio: float | None, shift: float, said: str | None) -> None:
    images = 0.6 * parted(truth := 0.6 * smooth())
    images[..., :16, :] = truth[..., :16, :]
    lines = look(measured(inpainting, truth, mask="half"), images, images + shift, repulsion_ratio=ratio)
    assert [line for line in lines if said and line.startswith(said)] == lines
    assert bool(lines) is bool(said)


# --- runs made to fail ---------------------------------------------------------------------------------------------


def warnings_of(module: RLSD, folder: Path, **options) -> list[str]:
    fit(module, folder, ImageResults(folder), **options)
    return json.loads((folder / "m" / "metrics.json").read_text())["warnings"]


FAILURES = {
    "have collapsed": (Distilled, {"gamma": 0.0, "lr_z": 1e-6}),
    "standard deviations of the noise": (RLSDPaper, {"gamma": 0.0, "lr_x": 1e-6}),
    "the latents do not follow the images": (RLSDPaper, {"gamma": 0.0, "lr_x": 1e-6}),
    "have left the prior's distribution": (Distilled, {"lr_z": 20.0}),
    "times as strong as the data gradient or score": (Distilled, {"gamma": 3.0, "repulsion_saturation": 0.0}),
}


def test_remedies_name_only_settings_of_the_method() -> None:
    seen = HealthMetrics(residual_sigmas=50.0, sharpness_to_truth=0.1, latent_norm=9.0)
    every = health_warnings(seen)
    assert [text.partition("; ")[2] for text in every] == [
        "check sigma, take more num_steps, lower gamma or lower min_mu",
        "take more num_steps, raise lr_z or lower distillation_weight",
        "lower lr_z, lower gamma or raise distillation_weight",
    ]
    assert [text.partition("; ")[2] for text in health_warnings(seen, settings={"guidance_scale", "min_mu"})] == [
        "check sigma, take more num_steps or lower min_mu",
        "take more num_steps",
        "",
    ]


def test_every_remedy_is_a_setting() -> None:
    methods = (RLSD, RLSDPaper, Distilled, DWGF, LatentDAPS, LatentDPS, LATINO, TwistedFilter)
    chains = [vars(base) for method in methods for base in method.__mro__ if issubclass(base, ParticleModule)]
    known = {name for members in chains if "__init__" in members for name in signature(members["__init__"]).parameters}
    too_strong = HealthMetrics(repulsion_ratio=2.0)
    all_else = HealthMetrics(0.001, 0.5, 0.01, 50.0, 3.0, 0.1, 9.0, 0.5, 3.0)
    found = [*problems(too_strong), *problems(all_else)]
    assert len(found) == 7
    for _, remedies in found:
        assert set(remedies) <= known | {"num_steps", "sigma", "features"}
        for name, remedy in remedies.items():
            assert name in remedy


@pytest.mark.parametrize("said", FAILURES)
def test_a_run_that_fails_says_how(said: str, tiny_prior, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    start = None
    if said == "have collapsed":
        z = torch.randn(1, *tiny_prior.latent_shape, generator=GENERATOR).expand(3, -1, -1, -1).clone()
        start = (z, torch.zeros(3, *SHAPE))
    measurement = measured(inpainting, 0.5 * smooth(), mask="half")._replace(start=start)
    method, settings = FAILURES[said]
    module = method(tiny_prior, measurement, LatentFeatures(), num_steps=6, num_particles=3, **settings)
    with caplog.at_level(logging.WARNING, "rlsd_lightning"):
        lines = warnings_of(module, tmp_path)
    assert any(said in line for line in lines)
    assert [record.getMessage() for record in caplog.records if record.name == "rlsd_lightning.results.writer"] == [
        f"m: {line}" for line in lines
    ]


def test_the_ratio_of_the_repulsion_is_that_of_the_steps_with_it(tiny_prior, tmp_path: Path) -> None:
    measurements = [measured(inpainting, smooth(), mask="half")._replace(name=name) for name in "ab"]
    settings = {"num_steps": 6, "num_particles": 3, "gamma": 0.4, "repulsion_saturation": 0.0}
    module = Distilled(tiny_prior, measurements, LatentFeatures(), **settings)
    assert module.repulsion_ratio() is None
    fit(module, tmp_path)
    assert len(module.repulsion_ratios) == 3
    assert module.repulsion_ratio() == pytest.approx(0.4, rel=1e-3)


@pytest.mark.slow
def test_a_healthy_run_of_the_embedded_prior_is_left_alone(tmp_path: Path) -> None:
    code, printed = train("task=inpaint", f"output_dir={tmp_path / 'run'}")
    assert code == 0, printed
    assert json.loads((tmp_path / "run" / "000" / "metrics.json").read_text())["warnings"] == []
