"""Selection: which particles go on from others, and what they keep."""

import pytest
import torch
from deepinv.physics import GaussianNoise, Inpainting
from support.problems import half, make
from support.steps import take_step

from rlsd_lightning import RLSD, LatentFeatures, StableDiffusionPrior
from rlsd_lightning.errors import InputError
from rlsd_lightning.operators import colorization, hdr
from rlsd_lightning.timesteps import Timesteps

STEPS = [4, 7, 11]
"""Steps of twenty, of which sixteen are the loop, that end with a selection."""


def distances(module: RLSD) -> torch.Tensor:
    """Distances of the images from the decoded latents in the last step."""
    images, decoded = module.step_images
    return (images - decoded).flatten(1).norm(dim=1)


def test_thirty_fifty_and_seventy_percent_of_the_loop_end_with_a_selection(prior: StableDiffusionPrior):
    assert sorted(make(prior).selection.steps) == STEPS
    assert sorted(make(prior, num_steps=14).selection.steps) == [3, 5, 7]
    assert sorted(make(prior, num_steps=100).selection.steps) == [23, 39, 55]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("operator", [half, colorization, hdr])
def test_outliers_take_the_clean_latent_of_the_nearest_particle_and_keep_their_noise(
    step: int, operator, prior: StableDiffusionPrior
):
    selecting, plain = (make(prior, operator=operator, outlier_ratio=ratio) for ratio in (1.0, None))
    for module in (selecting, plain):
        take_step(module, step)
    nearest = distances(plain).argmin()
    assert torch.equal(selecting.z, plain.z[nearest].expand_as(plain.z))
    assert torch.equal(selecting.e, plain.e)
    assert (selecting.e[0] - selecting.e[1]).abs().mean() > 0.5  # so that copies part in the next step


def test_outliers_are_replaced_without_guidance_too(prior: StableDiffusionPrior):
    module = make(prior, outlier_ratio=1.0, guidance_scale=0.0, gamma=0.0)
    take_step(module, STEPS[0])
    assert torch.equal(module.z, module.z[:1].expand_as(module.z))


@pytest.mark.parametrize("step", [step for step in range(20) if step not in STEPS])
def test_no_other_step_selects(step: int, prior: StableDiffusionPrior):
    selecting, plain = (make(prior, outlier_ratio=ratio) for ratio in (1.0, None))
    for module in (selecting, plain):
        take_step(module, step)
    assert torch.equal(selecting.z, plain.z)


@pytest.mark.parametrize("slack", [0.99, 1.01])
def test_only_particles_beyond_the_ratio_are_outliers(slack: float, prior: StableDiffusionPrior):
    plain = make(prior, outlier_ratio=None)
    take_step(plain, STEPS[0])
    found = distances(plain)
    selecting = make(prior, outlier_ratio=slack * (found.max() / found.min()).item())
    take_step(selecting, STEPS[0])
    is_same = (selecting.z == plain.z).flatten(1).all(dim=1)
    assert is_same.tolist() == [slack > 1 or distance < found.max() for distance in found]


def test_replacements_are_counted(prior: StableDiffusionPrior):
    module = make(prior, outlier_ratio=1.0)
    nearest = []
    for step in range(6):
        take_step(module, step)
        if step in STEPS:
            nearest.append(distances(module).argmin().item())
    expected = [sum(index != near for near in nearest) for index in range(len(module.z))]
    assert module.replaced.tolist() == expected
    assert module.selection.figures()["replaced"] == sum(expected)
    assert make(prior, outlier_ratio=None).selection.figures() == {}


def test_measurements_side_by_side_select_as_they_would_alone(prior: StableDiffusionPrior):
    alone = [make(prior, operator=operator, outlier_ratio=1.0) for operator in (half, colorization)]
    measurements = [module.measurements[0]._replace(name=name) for module, name in zip(alone, "ab", strict=True)]
    settings = {"num_particles": 3, "num_steps": 20, "outlier_ratio": 1.0, "particle_chunk": 1}
    together = RLSD(prior, measurements, LatentFeatures(), **settings).double()
    alone = [RLSD(prior, each, LatentFeatures(), **settings).double() for each in measurements]
    for module in (together, *alone):
        take_step(module, STEPS[0])
    torch.testing.assert_close(together.z, torch.cat([module.z for module in alone]), rtol=1e-9, atol=1e-12)


def test_a_step_that_mixed_precision_skips_keeps_its_noise(prior: StableDiffusionPrior):
    module = make(prior, outlier_ratio=1.0)
    noise = module.e.clone()
    take_step(module, STEPS[0], skip=True)
    assert torch.equal(module.e, noise)


def test_the_tiny_decoders_correction_goes_with_the_latent(prior: StableDiffusionPrior):
    module = make(prior, outlier_ratio=1.0)
    module.decoder.has_tiny = True
    module.register_buffer("correction", 1e-3 * torch.arange(3.0).view(3, 1, 1, 1).expand_as(module.x).double())
    take_step(module, STEPS[0])
    assert module.correction.unique().tolist() == [1e-3 * distances(module).argmin()]


def test_a_single_particle_and_none_without_a_ratio_are_never_replaced(prior: StableDiffusionPrior):
    assert not make(prior, outlier_ratio=1.0, num_particles=1).selection.steps
    assert not make(prior, outlier_ratio=None).selection.steps


@pytest.mark.parametrize("ratio", [0.99, -1.0, float("nan")])
def test_a_ratio_below_one_is_refused(ratio, prior: StableDiffusionPrior):
    with pytest.raises(InputError, match="outlier_ratio must be at least 1"):
        make(prior, outlier_ratio=ratio)


@pytest.mark.parametrize("step", STEPS)
def test_the_last_step_does_not_select_as_copies_would_stay_equal(step: int, prior: StableDiffusionPrior):
    module = make(prior, outlier_ratio=1.0)
    Timesteps(module.timesteps).end_after(step)
    take_step(module, step)
    assert len(module.z.flatten(1).unique(dim=0)) == len(module.z)


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_few_steps_leave_no_equal_particles(num_steps: int, prior: StableDiffusionPrior):
    module = make(prior, num_steps=num_steps, outlier_ratio=1.0)
    for step in range(num_steps):
        take_step(module, step)
    assert len(module.z.flatten(1).unique(dim=0)) == len(module.z)


@pytest.mark.parametrize(("columns", "selects"), [(3, False), (4, True)])
def test_few_measured_values_replace_nothing(columns: int, selects: bool, prior: StableDiffusionPrior):
    """Distances of few values differ by chance: 3 x 32 values a column, above 300 with four."""
    mask = torch.zeros(prior.image_shape).index_fill(2, torch.arange(columns), 1.0)
    module = make(
        prior, operator=lambda shape: Inpainting(shape, mask, noise_model=GaussianNoise(0.1)), outlier_ratio=1.0
    )
    take_step(module, STEPS[0])
    assert bool(module.replaced.sum()) == selects
