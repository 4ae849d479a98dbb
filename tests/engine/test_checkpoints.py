"""A run stopped at an exact step goes on to the bits of one that never was; foreign checkpoints are refused."""

import copy
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from support.families import CLASSES, load
from support.trainers import StopAt, StopError, Visited, assert_same_bits, trainer_with

from rlsd_lightning import (
    RLSD,
    Distilled,
    InputError,
    LatentFeatures,
    Measurement,
    RLSDPaper,
    StableDiffusionPrior,
    operators,
)
from rlsd_lightning.engine.signals import StopOnSignal
from rlsd_lightning.errors import StoppedError
from rlsd_lightning.identity import same_output, same_tensors
from rlsd_lightning.methods.base import ParticleModule


@pytest.mark.parametrize(
    ("method", "settings", "stops"),
    [
        (RLSD, {}, (1, 2, 4, 5)),
        (RLSD, {"refine_share": 0.5}, (2, 3, 5)),
        (RLSD, {"refine_share": 0.0, "eta": 0.0}, (2, 5)),
        (RLSD, {"augmented": False}, (2, 5)),
        (Distilled, {}, (1, 4)),
        (RLSDPaper, {"num_particles": 3}, (1, 4)),
    ],
    ids=["default", "refined", "ddim", "plain", "distilled", "paper"],
)
def test_stopped_at_any_step_it_visits_the_rest_and_ends_the_same(
    method: type[ParticleModule],
    settings: dict,
    stops: tuple[int, ...],
    tiny_prior,
    tiny_features,
    measurement,
    tmp_path: Path,
) -> None:
    def module() -> ParticleModule:
        return method(tiny_prior, measurement, tiny_features, **{"num_steps": 6, "num_particles": 2, **settings})

    whole = module()
    trainer_with(tmp_path / "whole").fit(whole)
    for stop in stops:
        cut, rest, visited = tmp_path / f"cut{stop}", module(), Visited()
        with pytest.raises(StopError):
            trainer_with(cut, StopAt(stop)).fit(module())
        trainer_with(cut, visited).fit(rest, ckpt_path=cut / "checkpoints" / "last.ckpt", weights_only=True)
        assert visited.steps == list(range(stop, 6))
        for name, value in whole.state_dict().items():
            assert rest.state_dict()[name].equal(value), (stop, name)
        assert_same_bits(cut / "noise", tmp_path / "whole" / "noise")


def test_steps_after_the_last_checkpoint_are_taken_again(
    tiny_prior, tiny_features, measurement, tmp_path: Path
) -> None:
    def module() -> RLSD:
        return RLSD(tiny_prior, measurement, tiny_features, num_steps=8, num_particles=2)

    trainer_with(tmp_path / "whole", every=3).fit(module())
    with pytest.raises(StopError):
        trainer_with(tmp_path / "cut", StopAt(5), every=3).fit(module())
    visited = Visited()
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    trainer_with(tmp_path / "cut", visited, every=3).fit(module(), ckpt_path=last, weights_only=True)
    assert visited.steps == [3, 4, 5, 6, 7]
    assert_same_bits(tmp_path / "cut" / "noise", tmp_path / "whole" / "noise")


@pytest.mark.parametrize("shape", [(), (1,), (5, 3)])
def test_a_methods_own_state_is_saved_and_restored(
    shape: tuple[int, ...], tiny_prior, tiny_features, measurement, tmp_path: Path
) -> None:
    class Counting(RLSD):
        def __init__(self) -> None:
            super().__init__(tiny_prior, measurement, tiny_features, num_steps=8, num_particles=2)
            self.register_buffer("count", torch.zeros(shape))

        def training_step(self, batch: tuple[int, int], batch_idx: int) -> torch.Tensor:
            self.count += 1
            return super().training_step(batch, batch_idx)

    with pytest.raises(StopError):
        trainer_with(tmp_path, StopAt(5), every=3).fit(Counting())
    module = Counting()
    last = tmp_path / "checkpoints" / "last.ckpt"
    trainer_with(tmp_path, every=3).fit(module, ckpt_path=last, weights_only=True)
    assert torch.equal(module.count, torch.full(shape, 8.0))


def test_a_checkpoint_holds_particles_and_no_weights(tiny_prior, tiny_features, measurement, tmp_path: Path) -> None:
    module = RLSD(tiny_prior, measurement, tiny_features, num_steps=2, num_particles=2)
    trainer_with(tmp_path).fit(module)
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert state.keys() >= {"z", "x"}
    assert not [name for name in state if name.split(".")[0] in {"vae", "unet", "prior", "_frozen", "features"}]


def test_a_stopped_run_does_not_save_particles_that_are_no_longer_finite(
    tiny_prior, tiny_features, measurement, tmp_path: Path
) -> None:
    class Raise(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
            if batch_idx == 5:
                pl_module.z.data[0, 0, 0, 0] = float("nan")
                signal.raise_signal(signal.SIGTERM)

    module = RLSD(tiny_prior, measurement, tiny_features, num_steps=9, num_particles=2)
    trainer = trainer_with(tmp_path, Raise(), StopOnSignal(tmp_path / "checkpoints"), every=3)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError, match=r"SIGTERM after step 6 of"):
        trainer.fit(module)
    assert signal.getsignal(signal.SIGTERM) is before
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["state_dict"]["z"].isfinite().all()
    assert saved["global_step"] == 3


def test_a_foreign_checkpoint_is_refused(tiny_prior, tiny_features, measurement, tmp_path: Path) -> None:
    module = RLSD(tiny_prior, measurement, tiny_features, num_steps=2, num_particles=2)
    trainer_with(tmp_path / "one").fit(module)
    other = RLSD(tiny_prior, measurement._replace(name="other"), tiny_features, num_steps=2, num_particles=2)
    last = tmp_path / "one" / "checkpoints" / "last.ckpt"
    with pytest.raises(InputError, match=r"belongs to measurement 'noise' .* than 'other' here"):
        trainer_with(tmp_path / "two").fit(other, ckpt_path=last, weights_only=True)


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (partial(operators.jpeg, quality=10), partial(operators.jpeg, quality=50)),
        (partial(operators.quantization, levels=4), partial(operators.quantization, levels=8)),
        (operators.compressed_sensing, partial(operators.compressed_sensing, operator_seed=1)),
        (operators.hdr, partial(operators.hdr, scale=2.1)),
    ],
)
def test_a_checkpoint_of_another_operator_is_refused_whatever_y_was(make, other, tiny_prior, tiny_features) -> None:
    y, saved = make(tiny_prior.image_shape).A(torch.zeros(1, *tiny_prior.image_shape)), {"state_dict": {}}

    def module(physics) -> RLSD:
        return RLSD(tiny_prior, Measurement("m", y, physics), tiny_features, num_steps=4)

    module(make(tiny_prior.image_shape)).on_save_checkpoint(saved)
    module(make(tiny_prior.image_shape)).on_load_checkpoint(saved)
    with pytest.raises(InputError, match="another measurement, operator"):
        module(other(tiny_prior.image_shape)).on_load_checkpoint(saved)


def test_a_checkpoint_of_another_machine_goes_on_and_one_of_another_prompt_does_not(
    tiny_prior_folder, tiny_features, measurement
) -> None:
    def make(prompt: str) -> RLSD:
        prior = StableDiffusionPrior(str(tiny_prior_folder), prompt=prompt, local_files_only=True)
        return RLSD(prior, measurement, tiny_features, num_steps=4, num_particles=2)

    module, checkpoint = make("a beard"), {"state_dict": {}}
    module.on_save_checkpoint(checkpoint)
    elsewhere = make("a beard")
    for name in elsewhere.prior.computed_names:
        getattr(elsewhere.prior, name).mul_(1 + 1e-6)  # processors round in their own ways
    elsewhere.identity.check(checkpoint)
    with pytest.raises(InputError, match="belongs to measurement 'noise'"):
        make("a face").identity.check(checkpoint)
    elsewhere.prior.alphas.mul_(1 + 1e-3)
    with pytest.raises(InputError, match="belongs to measurement 'noise'"):
        elsewhere.identity.check(checkpoint)
    with pytest.raises(InputError, match="made by another version"):
        module.identity.check({"state_dict": {}, "evidence": {}})


@pytest.mark.parametrize(("dtype", "accepted"), [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_computed_tensors_agree_up_to_their_types_rounding(dtype: torch.dtype, accepted: float) -> None:
    one = {"prompt": torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)}
    assert same_tensors(one, {"prompt": (one["prompt"].double() * (1 + accepted)).to(dtype)}, same_output)
    assert not same_tensors(one, {"prompt": one["prompt"] * 1.2}, same_output)
    assert not same_tensors(one, {}, same_output)


@pytest.mark.parametrize("family", sorted(CLASSES))
def test_a_checkpoint_belongs_to_the_prior_that_made_it(family: str, tiny_folders: dict[str, Path]) -> None:
    """Masks of prompts are whole numbers, and so may a guidance scale be that was given as one."""
    guided = {} if family in ("ldm", "pixel") else {"prompt": "a beard", "guidance_scale": 3}
    saved: dict = {"state_dict": {}}

    def made(**settings) -> RLSD:
        prior = load(tiny_folders, family, **settings)
        physics = operators.denoising(prior.image_shape)
        measurement = Measurement("grey", torch.zeros(1, *prior.image_shape), physics)
        return RLSD(prior, measurement, LatentFeatures(), num_particles=2, num_steps=4)

    made(**guided).identity.save(saved)
    made(**guided).identity.check(saved)
    if guided:
        with pytest.raises(InputError, match="belongs to measurement 'grey'"):
            made(**{**guided, "prompt": "a light face"}).identity.check(saved)


def test_a_checkpoint_of_another_feature_network_is_refused(tiny_prior, tiny_features, measurement) -> None:
    saved = {"state_dict": {}}
    RLSD(tiny_prior, measurement, tiny_features, num_steps=4).on_save_checkpoint(saved)
    retrained = copy.deepcopy(tiny_features)
    next(retrained.parameters()).data.add_(0.1)
    for features in (LatentFeatures(), retrained):
        with pytest.raises(InputError, match="features"):
            RLSD(tiny_prior, measurement, features, num_steps=4).on_load_checkpoint(saved)
