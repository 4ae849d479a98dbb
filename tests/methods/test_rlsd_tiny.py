"""RLSD with a tiny decoder: which decoder's values and gradient every step has."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from support.problems import back, denoised, distance_gradient, half, make, noisy, norms
from support.steps import take_step
from support.trainers import StopAt, StopError, fit, trainer_with
from torch import Tensor, nn

from rlsd_lightning import RLSD, Distilled, PixelFeatures, StableDiffusionPrior
from rlsd_lightning.errors import InputError
from rlsd_lightning.functional.losses import square_norms
from rlsd_lightning.operators import colorization, hdr, inpainting, jpeg, phase_retrieval
from rlsd_lightning.priors.loading import ShuffleDecoder, TinyDecoder

EARLY, UPDATE, BETWEEN, REFINE = 3, 11, 12, 18
"""Steps of twenty: before the updates, one of the updates, one after it, and one of the refinement."""


@pytest.fixture
def with_tiny(prior: StableDiffusionPrior, tmp_path: Path) -> StableDiffusionPrior:
    """A prior whose tiny decoder is another network, in float64."""
    torch.manual_seed(1)
    ShuffleDecoder(widths=(8, 8), blocks=(1, 0)).save_pretrained(tmp_path)
    prior = copy.deepcopy(prior)
    prior.tiny = TinyDecoder(str(tmp_path))
    prior.freeze()
    return prior.double()


def pull_only(prior: StableDiffusionPrior) -> RLSD:
    """A colourisation of steps with one gradient, without repulsion."""
    module = make(prior, operator=colorization, gamma=0.0)
    module.has_solving_step = False
    return module


def solved(module: RLSD, step: int) -> RLSD:
    """The module after a step, whose x is solved for."""
    after = copy.deepcopy(module)
    take_step(after, step)
    return after


@pytest.mark.parametrize(
    ("operator", "settings"), [(colorization, {}), (hdr, {}), (colorization, {"augmented": False})]
)
def test_the_pull_moves_the_layout_only_where_a_solving_step_follows(operator, settings: dict, with_tiny):
    module = make(with_tiny, operator=operator, **settings)
    without = copy.deepcopy(with_tiny)
    without.tiny = None
    expected = make(without, operator=operator, **settings).zeta
    if module.has_solving_step:
        expected *= 1024 / module.z[0].numel()
    assert module.z[0].numel() != 1024
    assert module.has_solving_step == (operator is colorization and not settings)
    assert module.zeta == pytest.approx(expected)


def expected_step(module: RLSD, step: int, correction: Tensor | None) -> Tensor:
    """The gradient of a step with these corrections, or those of the full decoder if they are left out."""
    z_t = noisy(module, step)
    clean = denoised(module, z_t, step)
    rough = module.prior.tiny(clean)
    image = module.prior.decode(clean) if correction is None else rough + correction
    pull = distance_gradient(module, image, solved(module, step).x.detach())
    return module.z - clean + module.zeta * back(z_t, (rough, pull)) / module.prior.alphas[module.timesteps[step + 1]]


@pytest.mark.parametrize("step", [EARLY, UPDATE])
def test_a_step_goes_through_the_tiny_decoder_and_an_update_has_the_own_ones_images(step: int, with_tiny):
    module = pull_only(with_tiny)
    expected = expected_step(module, step, None if step == UPDATE else torch.zeros_like(module.x))
    torch.testing.assert_close(take_step(module, step), expected.detach(), rtol=1e-6, atol=1e-9)


def test_an_update_corrects_the_steps_after_it(with_tiny):
    module = pull_only(with_tiny)
    z = denoised(module, noisy(module, UPDATE), UPDATE).detach()
    correction = module.prior.decode(z) - module.prior.tiny(z)
    take_step(module, UPDATE)
    torch.testing.assert_close(module.correction, correction)
    expected = expected_step(module, BETWEEN, correction)
    torch.testing.assert_close(take_step(module, BETWEEN), expected.detach(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(module.correction, correction)


@pytest.mark.parametrize(
    ("num_steps", "updates"),
    [(100, [49, 59, 69, 79, 89]), (25, [13, 15, 17, 19, 21, 23]), (20, [9, 11, 13, 15, 17])],
)
def test_updates_end_every_tenth_of_the_second_half_and_the_loop(num_steps: int, updates: list[int], with_tiny):
    module = make(with_tiny, num_steps=num_steps)
    assert [step for step in range(num_steps) if module.decoder.is_update_step(step)] == updates
    module = make(with_tiny, num_steps=num_steps, refine_share=0.0)
    assert [step for step in range(num_steps) if module.decoder.is_update_step(step)] == sorted(
        {*updates, num_steps - 1}
    )


@pytest.mark.parametrize(("num_steps", "end"), [(19, 14), (14, 10), (1, 0)])
def test_few_steps_update_once(num_steps: int, end: int, with_tiny):
    module = make(with_tiny, num_steps=num_steps)
    assert [step for step in range(num_steps) if module.decoder.is_update_step(step)] == [end]
    module = make(with_tiny, num_steps=num_steps, refine_share=0.0)
    assert [step for step in range(num_steps) if module.decoder.is_update_step(step)] == [num_steps - 1]


def test_without_a_loop_the_first_step_updates(with_tiny):
    module = make(with_tiny, num_steps=14, refine_share=1.0)
    assert [step for step in range(14) if module.decoder.is_update_step(step)] == [0]


def test_repulsion_goes_through_the_tiny_decoder_too(with_tiny, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(with_tiny, "decode", None)  # no step but the updates may call it
    steps = [take_step(make(with_tiny, PixelFeatures(), gamma=gamma), EARLY) for gamma in (0.0, 0.5)]
    assert (norms(steps[1] - steps[0]) > 0).all()


def test_the_refinement_has_corrected_images_and_the_tiny_decoders_gradient(with_tiny):
    module = make(with_tiny, operator=colorization, gamma=0.0, distillation_weight=0.0)
    module.correction.normal_(generator=torch.Generator().manual_seed(0))
    z = module.z.detach().clone().requires_grad_()
    rough = module.prior.tiny(z)
    x = solved(module, REFINE).x.detach()
    pull = (rough + module.correction - x) / x[0].numel()
    torch.testing.assert_close(take_step(module, REFINE), back(z, (rough, pull)), rtol=1e-6, atol=1e-12)


def test_the_distance_of_the_decoders_at_the_last_update_is_logged(with_tiny, monkeypatch: pytest.MonkeyPatch):
    module, logged = make(with_tiny), {}
    monkeypatch.setattr(module, "log_terms", lambda terms, step, **figures: logged.update(figures))
    take_step(module, UPDATE)
    expected = (square_norms(module.correction) / module.x[0].numel()).sqrt().mean()
    assert expected > 0
    torch.testing.assert_close(logged["tiny_decoder_distance"].double(), expected.double())


@pytest.mark.parametrize("stop", [EARLY, UPDATE, BETWEEN])
def test_the_correction_goes_on_after_a_resume(stop: int, with_tiny, tmp_path: Path):
    whole, cut, resumed = (make(with_tiny) for _ in range(3))
    fit(whole, tmp_path / "whole")
    with pytest.raises(StopError):
        trainer_with(tmp_path / "cut", StopAt(stop)).fit(cut)
    checkpoint = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    trainer_with(tmp_path / "resumed").fit(resumed, ckpt_path=checkpoint, weights_only=True)
    assert torch.equal(resumed.z, whole.z)
    assert torch.equal(resumed.correction, whole.correction)
    assert whole.correction.abs().min() > 0


@pytest.mark.parametrize("step", [EARLY, UPDATE, REFINE])
def test_a_prior_without_a_tiny_decoder_decodes_once(
    step: int, prior: StableDiffusionPrior, monkeypatch: pytest.MonkeyPatch
):
    module, calls, decode = make(prior), [], prior.decode
    monkeypatch.setattr(prior, "decode", lambda z: calls.append(len(z)) or decode(z))
    take_step(module, step)
    assert calls == [3]
    assert "correction" not in module.state_dict()


@pytest.mark.parametrize("operator", [jpeg, phase_retrieval, hdr])
def test_operators_that_are_not_linear_keep_the_own_decoder(operator, prior, with_tiny):
    module, usual = (make(each, operator=operator, gamma=0.0) for each in (with_tiny, prior.double()))
    assert "correction" not in dict(module.named_buffers())
    torch.testing.assert_close(take_step(module, UPDATE), take_step(usual, UPDATE), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("method", "remedy"), [(RLSD, "fetch it"), (RLSD, "tiny_decoder=null"), (Distilled, "fetch it")]
)
def test_a_checkpoint_of_the_other_decoder_is_refused_with_the_cause(method: type, remedy: str, prior, with_tiny):
    measurement = make(prior).measurements[0]
    priors = (with_tiny, prior) if remedy == "fetch it" else (prior, with_tiny)
    made, other = (method(each, measurement, PixelFeatures(), num_steps=4, num_particles=2) for each in priors)
    checkpoint = {"state_dict": made.state_dict()}
    made.on_save_checkpoint(checkpoint)
    with pytest.raises(InputError, match=f"tiny decoder, but .* {remedy}"):
        other.on_load_checkpoint(checkpoint)


@pytest.mark.parametrize("operator", [half, colorization, partial(inpainting, mask="random")])
@pytest.mark.parametrize("step", [0, EARLY, 9])
def test_steps_go_on_to_the_nearest_image_along_the_decoders_gradient(step: int, operator, with_tiny):
    affine = nn.ConvTranspose2d(4, 3, with_tiny.stride, with_tiny.stride).double().requires_grad_(False)
    with_tiny.tiny = affine
    solving, plain = (make(with_tiny, operator=operator, num_steps=14) for _ in range(2))
    plain.has_solving_step = False
    gradient = take_step(plain, step)
    shift = take_step(solving, step) - gradient
    assert (norms(shift) > 0).all()

    def residual(z: Tensor) -> Tensor:
        image = affine(z)
        return image - solving.proximal(solving.each_here(image.detach()), solving.decoder_std**2)

    before = (make(with_tiny, num_steps=14).z.detach() - gradient).requires_grad_()
    along = back(before, (affine(before), residual(before).detach()))
    torch.testing.assert_close(shift / norms(shift).view(-1, 1, 1, 1), along / norms(along).view(-1, 1, 1, 1))
    least = norms(residual(before - shift))
    for length in (0.0, 0.9, 1.1):
        assert (least < norms(residual(before - length * shift))).all()


@pytest.mark.parametrize(
    ("settings", "solves"),
    [
        ({"num_steps": 14}, True),
        ({"num_steps": 100}, True),
        ({"num_steps": 14, "augmented": False}, False),
        ({"num_steps": 14, "operator": hdr}, False),
    ],
)
def test_operators_that_are_not_linear_have_no_solving_step(settings: dict, solves: bool, with_tiny):
    assert make(with_tiny, **settings).has_solving_step == solves
