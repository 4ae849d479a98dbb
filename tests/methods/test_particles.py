"""What all methods share: what is refused, what is looked at, and what particles are drawn from."""

import copy

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from support.problems import make
from support.processes import as_process
from support.steps import take_step
from support.trainers import fit
from torch import Tensor

from rlsd_lightning import (
    DWGF,
    LATINO,
    RLSD,
    Distilled,
    InputError,
    LatentDAPS,
    LatentDPS,
    LatentFeatures,
    Measurement,
    PixelFeatures,
    RLSDPaper,
    StableDiffusionPrior,
    TwistedFilter,
    solve,
)
from rlsd_lightning.distributed.shard import Shard
from rlsd_lightning.engine.callbacks import FiniteGuard, not_finite
from rlsd_lightning.errors import NonFiniteError
from rlsd_lightning.operators import inpainting, super_resolution


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_particles": 0}, "^num_particles must be at least 1, got 0"),
        ({"num_particles": -2}, "^num_particles must be at least 1, got -2"),
        ({"particle_chunk": 0}, "^particle_chunk must be at least 1, got 0"),
        ({"num_steps": 0}, "^num_steps must be from 1 to 1000, .*got 0"),
        ({"num_steps": 1001}, "^num_steps must be from 1 to 1000, .*got 1001"),
        ({"seed": -1}, "^seed must be from 0 to 2.64 - 1, got -1"),
        ({"warm_share": 0.0}, "^warm_share must be above 0 and at most 1, got 0"),
        ({"min_mu": 0.0}, "^min_mu must be above 0, got 0"),
        ({"decoder_std": -1.0}, "^decoder_std must be at least 0, got -1"),
    ],
)
def test_settings_out_of_range_are_refused_with_the_value(
    settings: dict, message: str, tiny_prior: StableDiffusionPrior
):
    with pytest.raises(InputError, match=message):
        make(tiny_prior, **settings)


def test_measurements_of_one_name_are_refused(tiny_prior: StableDiffusionPrior, measurement: Measurement) -> None:
    with pytest.raises(InputError, match=r"different names are expected, got \['noise', 'noise'\]"):
        RLSD(tiny_prior, [measurement, measurement], PixelFeatures())


def test_no_measurements_are_refused(tiny_prior: StableDiffusionPrior) -> None:
    with pytest.raises(InputError, match=r"different names are expected, got \[\]"):
        RLSD(tiny_prior, [], PixelFeatures())


def test_starts_of_some_measurements_only_are_refused(
    tiny_prior: StableDiffusionPrior, measurement: Measurement
) -> None:
    start = tuple(torch.zeros(4, *shape) for shape in (tiny_prior.latent_shape, tiny_prior.image_shape))
    with pytest.raises(InputError, match="all measurements or none must have a start"):
        RLSD(tiny_prior, [measurement, measurement._replace(name="other", start=start)], PixelFeatures())


def test_a_start_of_another_number_of_particles_is_refused(
    tiny_prior: StableDiffusionPrior, measurement: Measurement
) -> None:
    start = tuple(torch.zeros(3, *shape) for shape in (tiny_prior.latent_shape, tiny_prior.image_shape))
    with pytest.raises(InputError, match=r"shape \(4, 4, 8, 8\) is expected, got \(3, 4, 8, 8\)"):
        RLSD(tiny_prior, measurement._replace(start=start), PixelFeatures(), num_particles=4)


def test_operator_that_does_not_take_the_priors_images_is_refused(tiny_prior: StableDiffusionPrior):
    physics = inpainting((3, 16, 16), mask="half")
    with pytest.raises(InputError, match=r"\(3, 32, 32\)"):
        RLSD(tiny_prior, Measurement("face", torch.zeros(1, 3, 16, 16), physics), PixelFeatures())


def test_measurement_that_the_operator_does_not_make_is_refused_with_both_shapes(tiny_prior: StableDiffusionPrior):
    physics = super_resolution(tiny_prior.image_shape)
    with pytest.raises(InputError, match=r"\(1, 3, 8, 8\).*\(1, 3, 16, 16\)"):
        RLSD(tiny_prior, Measurement("face", torch.zeros(1, 3, 16, 16), physics), PixelFeatures())


@pytest.mark.parametrize("settings", [{"method": LatentDPS}, {"method": RLSD, "augmented": False}])
def test_values_under_a_mask_change_nothing(tiny_prior: StableDiffusionPrior, measurement: Measurement, settings: dict):
    y, physics = measurement.y, measurement.physics
    settings |= {"num_particles": 2, "num_steps": 3, "trainer": {"accelerator": "cpu", "enable_progress_bar": False}}
    black, white = (solve(each, physics, tiny_prior, **settings) for each in (y, y + (1 - physics.mask)))
    assert torch.equal(white.particles, black.particles)
    assert white.metrics["residual"] == black.metrics["residual"]


def test_the_callers_operator_stays_where_it_is(tiny_prior: StableDiffusionPrior, measurement: Measurement) -> None:
    module = RLSD(copy.deepcopy(tiny_prior), measurement, PixelFeatures()).to("meta")  # as if it were a GPU
    module.on_fit_start()
    assert {each.physics.mask.device.type for each in module.measurements} == {"meta"}
    assert measurement.physics.mask.device.type == "cpu"
    RLSD(tiny_prior, measurement, PixelFeatures())


def test_another_seed_draws_other_particles_and_other_noise(prior: StableDiffusionPrior):
    first, second = make(prior, seed=0), make(prior, seed=1)
    for values in ((first.z, second.z), (first.x, second.x), (first.noise(3), second.noise(3))):
        assert not torch.isclose(*values).any(dim=-1).all()
    assert not torch.equal(first.noise(3), first.noise(4))


@pytest.mark.parametrize("method", [RLSD, Distilled, DWGF, TwistedFilter])
def test_a_step_that_is_not_the_batch_is_a_schedule_not_restored(method: type, prior: StableDiffusionPrior):
    with pytest.raises(AssertionError, match="not restored"):
        make(prior, method=method).training_step((1, 900), 0)


STATES = {
    RLSD: ("z", "x", "e"),
    Distilled: ("z", "x", "decoder_gain"),
    RLSDPaper: ("z", "x"),
    TwistedFilter: ("z", "x", "z_t", "log_weights"),
}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("method", "name"), [(method, name) for method, names in STATES.items() for name in names])
def test_any_state_that_is_not_finite_is_noticed_with_its_measurement(
    method: type, name: str, value: float, tiny_prior: StableDiffusionPrior, measurement: Measurement
) -> None:
    measurements = [measurement._replace(name=each) for each in ("first", "second", "third")]
    module = method(tiny_prior, measurements, LatentFeatures(), num_particles=2, num_steps=4)
    state = module.state_dict()
    assert {key for key, each in state.items() if each.is_floating_point()} == set(STATES[method])
    assert not_finite(module) == []
    state[name][3].view(-1)[0] = value  # the second particle of the second measurement
    assert not_finite(module) == ["second"]


def test_the_guard_looks_at_log_weights(tiny_prior: StableDiffusionPrior, measurement: Measurement, tmp_path) -> None:
    module = TwistedFilter(tiny_prior, measurement, LatentFeatures(), num_particles=2, num_steps=4)
    module.log_weights[1] = float("nan")
    with pytest.raises(NonFiniteError, match="'noise' are no longer finite"):
        fit(module, tmp_path, FiniteGuard(every_n_steps=1))


@pytest.mark.parametrize("method", [RLSD, Distilled, DWGF])
def test_measurements_side_by_side_take_the_steps_they_would_take_alone(
    method: type, prior: StableDiffusionPrior, measurement: Measurement
) -> None:
    physics = copy.deepcopy(measurement.physics).double()
    ys = measurement.y.double() * torch.tensor([1.0, 0.5, -1.0]).double().view(3, 1, 1, 1)
    measurements = [Measurement(f"{index}", y[None], physics) for index, y in enumerate(ys)]
    settings = {"num_particles": 2, "num_steps": 20}
    together = method(prior, measurements, LatentFeatures(), **settings).double()
    seen = take_step(together, 2)
    for index, each in enumerate(measurements):
        alone = method(prior, each, LatentFeatures(), **settings).double()
        rows = slice(2 * index, 2 * index + 2)
        torch.testing.assert_close(seen[rows], take_step(alone, 2), rtol=1e-8, atol=1e-10)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(together.state_dict()[name][rows], value, rtol=1e-8, atol=1e-10)


class Hollow(Shard):
    """Exchanges with processes that send zeros."""

    def gather(self, mine: Tensor, total: int) -> Tensor:
        return mine.new_zeros(total, *mine.shape[1:])

    def sum(self, mine: Tensor) -> Tensor:
        return mine


@pytest.mark.parametrize("method", [RLSD, Distilled, DWGF, LatentDPS, LatentDAPS, LATINO, TwistedFilter, RLSDPaper])
def test_a_process_without_particles_takes_part_in_the_pictures(method: type, tiny_prior, measurement: Measurement):
    # else the processes would wait for each other in different exchanges
    module = method(tiny_prior, measurement, PixelFeatures(), num_particles=1, num_steps=4)
    as_process(module, 0, 2, Hollow)
    assert module.rows == slice(0, 0)
    take_step(module)
    images, decoded = module.intermediate_images()
    assert images.shape == decoded.shape == (1, *tiny_prior.image_shape)


def test_pictures_of_an_earlier_step_are_not_those_of_the_end(tiny_prior, measurement: Measurement, tmp_path):
    seen = []

    class Looking(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(pl_module.final_images()[0].clone())

    module = RLSD(tiny_prior, measurement, PixelFeatures(), num_particles=2, num_steps=4)
    fit(module, tmp_path, Looking())
    assert len({images.sum().item() for images in seen}) == 4
    assert torch.equal(module.final_images()[0], seen[-1])
