"""RLSD with a tiny decoder: which decoder's values and gradient every step has."""

import copy

import pytest
import torch
from diffusers import AutoencoderTiny
from support.problems import back, denoised, distance_gradient, make, noisy, norms
from support.steps import take_step

from rlsd_lightning import PixelFeatures, StableDiffusionPrior
from rlsd_lightning.functional.losses import square_norms
from rlsd_lightning.methods import rlsd
from rlsd_lightning.operators import colorization
from rlsd_lightning.priors.tiny import TinyDecoder

STEP, LOOK, REFINE = 3, rlsd.LOOK_EVERY - 1, 17


@pytest.fixture
def tiny_prior_of_two(prior: StableDiffusionPrior, tmp_path) -> StableDiffusionPrior:
    """A prior whose tiny decoder is another network, in float64."""
    torch.manual_seed(1)
    widths = {"encoder_block_out_channels": (8,) * 3, "decoder_block_out_channels": (8,) * 3}
    blocks = {"num_encoder_blocks": (0,) * 3, "num_decoder_blocks": (1,) * 3}
    AutoencoderTiny(**widths, **blocks).save_pretrained(tmp_path)
    prior = copy.deepcopy(prior)
    prior.tiny = TinyDecoder(str(tmp_path))
    prior.freeze()
    return prior.double()


def solved(module, step: int):
    """The module after a step, whose x is solved for."""
    after = copy.deepcopy(module)
    take_step(after, step)
    return after.x.detach()


@pytest.mark.parametrize("step", [STEP, LOOK])
def test_the_loop_goes_through_the_tiny_decoder_and_looks_at_the_own_one_now_and_then(
    step: int, tiny_prior_of_two: StableDiffusionPrior
):
    module = make(tiny_prior_of_two, operator=colorization, gamma=0.0)
    z_t = noisy(module, step)
    clean = denoised(module, z_t, step)
    rough = module.prior.tiny(clean)
    image = module.prior.decode(clean) if step == LOOK else rough
    pull = distance_gradient(module, image, solved(module, step))
    alpha = module.prior.alphas[module.timesteps[step + 1]]
    expected = module.z - clean + module.zeta * back(z_t, (rough, pull)) / alpha
    torch.testing.assert_close(take_step(module, step), expected.detach(), rtol=1e-6, atol=1e-9)


def test_repulsion_goes_through_the_tiny_decoder_too(tiny_prior_of_two: StableDiffusionPrior):
    with_kernel, without = (make(tiny_prior_of_two, PixelFeatures(), gamma=g) for g in (0.5, 0.0))
    with_kernel.prior.vae.decoder = None  # no step of the loop but the looks may call it
    difference = take_step(with_kernel, STEP) - take_step(without, STEP)
    assert (norms(difference) > 0).all()


def test_the_refinement_has_the_own_decoders_images_and_the_tiny_ones_gradient(tiny_prior_of_two: StableDiffusionPrior):
    module = make(tiny_prior_of_two, operator=colorization, gamma=0.0, distillation_weight=0.0)
    z = module.z.detach().clone().requires_grad_()
    rough, own = module.prior.tiny(z), module.prior.decode(z).detach()
    x = solved(module, REFINE)
    mu = module.proximal.mu(module.measurements[0], module.decoder_std**2)
    expected = (1 + mu) * back(z, (rough, (own - x) / own[0].numel()))
    torch.testing.assert_close(take_step(module, REFINE), expected, rtol=1e-6, atol=1e-12)


def test_the_distance_of_the_decoders_is_logged_where_both_decode(
    tiny_prior_of_two: StableDiffusionPrior, monkeypatch: pytest.MonkeyPatch
):
    module = make(tiny_prior_of_two)
    logged = {}
    monkeypatch.setattr(module, "logs", lambda step: True)
    monkeypatch.setattr(module, "log", lambda name, value: logged.update({name: value}))
    z = module.z.detach()
    module.images(z, STEP, own=False)
    assert not logged
    module.images(z, STEP, own=True)
    error = module.prior.decode(z) - module.prior.tiny(z)
    expected = (square_norms(error) / error[0].numel()).sqrt().mean()
    torch.testing.assert_close(logged["tiny_decoder_distance"].double(), expected.double())


def test_a_prior_without_a_tiny_decoder_decodes_once(prior: StableDiffusionPrior, monkeypatch: pytest.MonkeyPatch):
    module = make(prior)
    calls = []
    decode = prior.decode
    monkeypatch.setattr(prior, "decode", lambda z: calls.append(len(z)) or decode(z))
    for step in (STEP, LOOK, REFINE):
        take_step(module, step)
    assert calls == [3, 3, 3]
