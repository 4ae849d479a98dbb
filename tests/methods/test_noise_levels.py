"""Laws that every method keeps whose particles go down the noise levels."""

from pathlib import Path

import pytest
from deepinv.physics import Blur, Downsampling, LinearPhysics, Physics
from support.operator_cases import EVERY
from support.processes import as_process
from support.trainers import StopAt, StopError, assert_same_bits, fit, trainer_with
from torch import Generator, Tensor, cat, ones, rand
from torch.testing import assert_close

from rlsd_lightning import (
    DWGF,
    LATINO,
    RLSD,
    Distilled,
    LatentDAPS,
    LatentDPS,
    LatentFeatures,
    Measurement,
    TwistedFilter,
)
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.operators import denoising, inpainting, proximal
from rlsd_lightning.operators.proximal import proximal_step
from rlsd_lightning.results.writer import ImageResults

FORMS = {
    "twisted": (TwistedFilter, {}),
    "twisted that always draws anew": (TwistedFilter, {"decoder_std": 0.0, "resample_below": 1.0}),
    "dps": (LatentDPS, {}),
    "psld": (LatentDPS, {"gluing": 0.1}),
    "daps": (LatentDAPS, {"ode_steps": 2, "langevin_steps": 2}),
    "latino": (LATINO, {}),
    "dwgf": (DWGF, {}),
    "distilled": (Distilled, {}),
    "rlsd": (RLSD, {"refine_share": 0.5}),
    "rlsd of fresh noise": (RLSD, {"eta": float("inf"), "refine_share": 0.0}),
    "not augmented": (RLSD, {"augmented": False}),
}


def make(form: str, prior, measurement: Measurement, **numbers: int) -> ParticleModule:
    method, settings = FORMS[form]
    return method(prior, measurement, LatentFeatures(), **numbers, **settings)


def seen_by(physics: Physics, shape: tuple[int, ...]) -> Measurement:
    return Measurement("m", physics.A(rand(1, *shape, generator=Generator().manual_seed(0))), physics)


SOLVERS = ("twisted", "dps", "daps", "rlsd")
LONE = ("inpainting", "mri_by_coils", "jpeg")
"""Operators of a lone particle: a closed form, conjugate gradients, Adam."""


@pytest.mark.parametrize(
    ("name", "count"), [*((name, 3) for name in EVERY), *((name, 1) for name in LONE)], ids=lambda value: f"{value}"
)
def test_every_operator_with_any_number(name: str, count: int, tiny_prior, tmp_path: Path):
    physics = EVERY[name](tiny_prior.image_shape)
    measurement = seen_by(physics, tiny_prior.image_shape)
    for solver in SOLVERS:
        # gluing is all of dps and more
        form = "psld" if solver == "dps" and isinstance(physics, LinearPhysics) else solver
        module = make(form, tiny_prior, measurement, num_particles=count, num_steps=3)
        # results depend on the operator, not on the method; the decoder's error takes ten times as long as the steps
        fit(module, tmp_path, *([ImageResults(tmp_path)] if (form, count) == ("rlsd", 3) else []))
        images, decoded = module.reconstructions()
        assert images.shape == decoded.shape == (count, *tiny_prior.image_shape), form
        assert images.isfinite().all(), form


@pytest.mark.parametrize("form", FORMS)
def test_stopped_at_any_step_it_ends_the_same(form: str, tiny_prior, measurement, tmp_path: Path):
    def module() -> ParticleModule:
        return make(form, tiny_prior, measurement, num_steps=5, num_particles=3)

    whole = module()
    trainer_with(tmp_path / "whole").fit(whole)
    for stop in (1, 4):
        folder, rest = tmp_path / f"cut{stop}", module()
        with pytest.raises(StopError):
            trainer_with(folder, StopAt(stop)).fit(module())
        trainer_with(folder).fit(rest, ckpt_path=folder / "checkpoints" / "last.ckpt", weights_only=True)
        for name, value in whole.state_dict().items():
            assert rest.state_dict()[name].equal(value), (stop, name)
        assert_same_bits(folder / "noise", tmp_path / "whole" / "noise")


def test_neighbours_under_one_operator_are_solved_for_at_once(tiny_prior, monkeypatch: pytest.MonkeyPatch):
    shape, count = tiny_prior.image_shape, 2
    masked, other, photons = inpainting(shape, "half"), inpainting(shape, "box"), denoising(shape, 0.2, "poisson")
    # conjugate gradients, which stop for all images at once
    solved = [Blur(filter=ones(1, 1, 3, 3) / 9, padding="valid"), Downsampling(shape, "bicubic", 2, padding="reflect")]
    operators = [
        masked,
        masked,
        other,
        masked,
        *(o for o in solved for _ in range(2)),
        photons,
        photons,
        masked,
        masked,
    ]
    truths = rand(len(operators), *shape, generator=Generator().manual_seed(0)) * 2 - 1
    measurements = [
        Measurement(f"{index}", physics.A(truth[None]), physics)
        for index, (physics, truth) in enumerate(zip(operators, truths, strict=True))
    ]
    module = make("rlsd", tiny_prior, measurements, num_particles=count, num_steps=4)
    decoded = rand(count * len(operators), *shape, generator=Generator().manual_seed(1)) * 2 - 1
    apart = cat(
        [proximal_step(m.physics, m.y, particles, module.proximal.mu(m, 0.01)) for m, particles in module.each(decoded)]
    )
    sizes = []

    def counted(physics: Physics, y: Tensor, images: Tensor, *args, **settings) -> Tensor:
        sizes.append(len(images))
        return proximal_step(physics, y, images, *args, **settings)

    monkeypatch.setattr(proximal, "proximal_step", counted)
    assert module.solve_images(decoded, 0.01).equal(apart)
    assert sizes == [4, 2, 2, 2, 2, 2, 2, 2, 2, 4]  # two measurements of photons are never equally noisy
    for processes in (3, 5, 7):
        for position in range(processes):  # a process's share begins and ends anywhere
            as_process(module, position, processes)
            mine = module.solve_images(decoded[module.rows], 0.01)
            assert_close(mine, apart[module.rows], rtol=1e-5, atol=1e-5)


def test_where_memory_is_saved_each_measurement_is_solved_for_by_itself(tiny_prior, monkeypatch: pytest.MonkeyPatch):
    physics = inpainting(tiny_prior.image_shape, "half")
    measurements = [seen_by(physics, tiny_prior.image_shape)._replace(name=name) for name in "abc"]
    module = make("rlsd", tiny_prior, measurements, num_particles=2, num_steps=4, particle_chunk=1)
    sizes = []
    monkeypatch.setattr(proximal, "proximal_step", lambda _, __, images, *args: sizes.append(len(images)) or images)
    module.solve_images(module.x.detach(), 0.01)
    assert sizes == [2, 2, 2]
