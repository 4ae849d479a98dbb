"""Every family of priors behind the one contract, from tiny pipelines in their own on-disk formats."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    StableDiffusionPipeline,
)
from support.families import CLASSES, edited, load, noisy
from support.steps import take_step
from torch._dynamo.testing import CompileCounter

from rlsd_lightning import RLSD, Distilled, GaussianMixturePrior, InputError, LatentFeatures, Measurement
from rlsd_lightning.functional.schedules import guidance_factor
from rlsd_lightning.operators import inpainting
from rlsd_lightning.priors import (
    PixelPrior,
    Prior,
    StableDiffusionPrior,
)

T = 400
FAMILIES = pytest.mark.parametrize("family", CLASSES)
GUIDED = pytest.mark.parametrize("family", ["faces", "sdxl", "sd3"])


@FAMILIES
def test_a_family_keeps_the_contract(family: str, tiny_folders: dict[str, Path]):
    prior = load(tiny_folders, family)
    z = noisy(prior)
    assert prior.image_shape == (3, 32, 32)
    assert prior.latent_shape == ((3, 32, 32) if family == "pixel" else (4, 8, 8))
    assert not any(parameter.requires_grad for parameter in prior.parameters())
    assert (prior.alphas.diff() < 0).all()
    assert (prior.sigmas.diff() > 0).all()
    with torch.no_grad():
        clean, noise = prior.denoise(z, T)
        torch.testing.assert_close(prior.alpha(T) * clean + prior.sigma(T) * noise, z, atol=1e-5, rtol=1e-4)
        assert noise.shape == prior.encode(prior.decode(z)).shape == z.shape
        torch.testing.assert_close(prior.denoise(z[1:2], T)[1], noise[1:2], atol=1e-4, rtol=1e-3)
        assert not torch.equal(prior.denoise(z, T // 2)[1], noise)
    leaf = z.clone().requires_grad_()
    prior.decode(leaf).square().sum().backward()
    assert leaf.grad.norm() > 0


@GUIDED
def test_guidance_combines_what_two_prompts_give(family: str, tiny_folders: dict[str, Path]):
    prompts = {"prompt": "a beard", "negative_prompt": "a face, light skin"}
    guided = load(tiny_folders, family, **prompts, guidance_scale=3.0)
    z = noisy(guided)
    with torch.no_grad():
        towards = load(tiny_folders, family, prompt=prompts["prompt"]).network(z, T)
        away = load(tiny_folders, family, prompt=prompts["negative_prompt"]).network(z, T)
        torch.testing.assert_close(guided.network(z, T), away + 3 * (towards - away), atol=1e-5, rtol=1e-3)
    assert not torch.allclose(towards, away, atol=1e-5)


def test_pixel_prior_is_the_network_of_its_pipeline(tiny_folders: dict[str, Path]):
    unet = DDIMPipeline.from_pretrained(tiny_folders["pixel"], local_files_only=True).unet
    prior = load(tiny_folders, "pixel")
    z = noisy(prior)
    with torch.no_grad():
        torch.testing.assert_close(prior.network(z, T), unet(z, T).sample)
    assert prior.decode(z) is z


@pytest.mark.parametrize("settings", [{"clip_sample": True}, {"clip_sample_range": 0.5}, {"clip_sample": False}])
@pytest.mark.parametrize("t", [999, T, 1])
def test_clean_images_in_pixels_are_clipped_as_by_the_scheduler(
    settings: dict, t: int, tiny_folders: dict[str, Path], tmp_path: Path
):
    folder = edited(tiny_folders["pixel"], tmp_path / "clip", "scheduler/scheduler_config.json", **settings)
    prior, scheduler = PixelPrior(str(folder)), DDIMScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(1000)
    z = noisy(prior)
    with torch.no_grad():
        clean, noise = prior.denoise(z, t)
        expected = scheduler.step(prior.network(z, t), t, z).pred_original_sample
    if not settings.get("clip_sample", True) and t == 999:
        assert expected.abs().max() > 1  # what is clipped otherwise
    torch.testing.assert_close(clean, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(prior.alpha(t) * clean + prior.sigma(t) * noise, z)


@pytest.mark.parametrize("family", CLASSES)
def test_the_pull_is_that_of_a_linear_decoder_of_the_measured_scales(family: str, tiny_folders: dict[str, Path]):
    prior = load(tiny_folders, family)
    scales = prior.calibration
    latent, image = (math.prod(shape) for shape in (prior.latent_shape, prior.image_shape))
    # steps whose gradient has the norm (s / v) sqrt(d_x / d_z) move latents by this share of their norm v sqrt(d_z)
    latent_std = scales.image_std if family == "pixel" else scales.latent_std
    gradient = scales.image_std / latent_std * math.sqrt(image / latent)
    factor = guidance_factor(prior.latent_shape, prior.image_shape, scales.latent_std, scales.image_std)
    share = factor * gradient / (latent_std * math.sqrt(latent))
    faces = 0.467 * math.sqrt(12288 / 1024) / math.sqrt(1024)
    assert share == pytest.approx(faces)


@pytest.mark.parametrize(("side", "stride"), [(16, 4), (32, 4), (64, 4), (16, 8)])
def test_the_pull_on_the_layout_moves_brightness_alike_at_any_size(side: int, stride: int):
    v, s, alpha, sigma = 1.2, 0.5, 0.1, 0.9
    latents, pixels = side**2, (side * stride) ** 2
    # the distance of an image that is too dark everywhere, taken back through a decoder that repeats s / v times its latents,
    # and through a denoiser of latents that all have one value
    at_latents = torch.full((latents,), stride**2 * s / v / math.sqrt(pixels))
    covariance = v**2 * torch.ones(latents, latents)
    move = alpha / sigma**2 * covariance @ at_latents
    factor = guidance_factor((1, side, side), (1, side * stride, side * stride), v, s, layout_only=True)
    at_the_faces_size = v**2 / s * 0.467 * math.sqrt(12288) * alpha / sigma**2 * v * s
    torch.testing.assert_close(factor * move, torch.full((latents,), at_the_faces_size), rtol=1e-4, atol=0)


def test_zero_terminal_snr_is_taken_from_the_configuration(tiny_folders: dict[str, Path], tmp_path: Path):
    file = "scheduler/scheduler_config.json"
    settings = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    prior = StableDiffusionPrior(str(edited(tiny_folders["faces"], tmp_path / "v", file, **settings)))
    assert prior.alphas[-1] == 0
    assert prior.sigmas[-1] == 1
    z = noisy(prior)
    with torch.no_grad():
        clean, noise = prior.denoise(z, 999)
        torch.testing.assert_close(noise, z)  # pure noise is all noise
        torch.testing.assert_close(clean, -prior.network(z, 999))
    for method in METHODS.values():
        module = method(prior, measurement(prior), LatentFeatures(), num_steps=500, num_particles=2)
        assert module.timesteps[0] == 999
        take_first_step(module)
    wrong = edited(tiny_folders["faces"], tmp_path / "eps", file, rescale_betas_zero_snr=True)
    with pytest.raises(InputError, match="rescale_betas_zero_snr"):
        StableDiffusionPrior(str(wrong))


def measurement(prior: Prior) -> Measurement:
    physics = inpainting(prior.image_shape, mask="half")
    return Measurement("m", physics.A(torch.zeros(1, *prior.image_shape)), physics)


METHODS = {
    "loop": RLSD,
    "refinement": partial(RLSD, refine_share=1.0),
    "distilled": Distilled,
}
"""What takes a step of every kind."""


def take_first_step(module: RLSD | Distilled) -> None:
    """Takes a step, and finds everything finite and moved."""
    z = module.z.detach().clone()
    seen = take_step(module)
    for value in (seen, *module.state_dict().values()):
        assert torch.isfinite(value).all()
    assert seen.abs().max() > 0
    assert not torch.isclose(module.z, z).all()


@pytest.mark.parametrize(
    ("family", "method"),
    [
        *(("faces", method) for method in METHODS),
        *((family, "loop") for family in ("sdxl", "sd3", "ldm", "flux", "sana")),
    ],
)
def test_images_need_not_be_square(family: str, method: str, tiny_folders: dict[str, Path]):
    prior = load(tiny_folders, family, image_size=(32, 48))
    assert prior.image_shape == (3, 32, 48)
    take_first_step(METHODS[method](prior, measurement(prior), LatentFeatures(), num_steps=2, num_particles=2))


@pytest.mark.parametrize(
    ("family", "method", "gamma"),
    [*((family, method, 0.5) for family in CLASSES for method in ("loop", "distilled")), ("faces", "loop", 0.0)],
)
def test_chunks_of_particles_take_the_same_step(family: str, method: str, gamma: float, tiny_folders: dict[str, Path]):
    prior, gradients = load(tiny_folders, family), []
    for chunk in (None, 1, 2):
        settings = {"num_steps": 4, "num_particles": 3, "gamma": gamma, "particle_chunk": chunk}
        gradients.append(take_step(METHODS[method](prior, measurement(prior), LatentFeatures(), **settings)))
    assert gradients[0].abs().max() > 1e-5
    # rounding is relative to the largest gradient
    largest = gradients[0].abs().max().item()
    for chunked in gradients[1:]:
        torch.testing.assert_close(chunked, gradients[0], atol=1e-4 * largest, rtol=0)


def test_memory_options_do_not_change_what_is_decoded(tiny_folders: dict[str, Path]):
    plain = load(tiny_folders, "faces")
    saving = load(tiny_folders, "faces", decoder_checkpointing=True)
    gradients = []
    for prior in (plain, saving):
        leaf = noisy(prior).requires_grad_()
        prior.decode(leaf).square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("family", "weights"),
    [*((family, "bfloat16") for family in CLASSES), *((family, "float16") for family in ("faces", "sd3", "pixel"))],
)
def test_weights_may_be_held_in_half_precision(family: str, weights: str, tiny_folders: dict[str, Path]):
    full, half = load(tiny_folders, family), load(tiny_folders, family, weights=weights)
    z = noisy(full)
    with torch.no_grad():
        torch.testing.assert_close(half.denoise(z, T)[1], full.denoise(z, T)[1], atol=0.1, rtol=0.1)
        assert half.decode(z).dtype == torch.float32
    assert {parameter.dtype for parameter in half.parameters()} == {getattr(torch, weights)}


def test_an_unknown_type_of_weights_is_refused(tiny_folders: dict[str, Path]):
    with pytest.raises(InputError, match=r"^weights must be one of float32, .* got 'int8'"):
        load(tiny_folders, "faces", weights="int8")


def test_pickled_weights_are_taken_only_when_trusted(tiny_folders: dict[str, Path], tmp_path: Path):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folders["faces"], local_files_only=True)
    pipeline.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    for file in (tmp_path / "pickled").rglob("*.safetensors"):  # transformers writes these whatever it is told
        torch.save(pipeline.text_encoder.state_dict(), file.with_name("pytorch_model.bin"))
        file.unlink()
    with pytest.raises(InputError, match="set allow_pickle=true"):
        StableDiffusionPrior(str(tmp_path / "pickled"))
    trusted = StableDiffusionPrior(str(tmp_path / "pickled"), allow_pickle=True)
    z = noisy(trusted)
    with torch.no_grad():
        expected = load(tiny_folders, "faces").denoise(z, T)[1]
        torch.testing.assert_close(trusted.denoise(z, T)[1], expected)


@pytest.mark.parametrize(
    ("family", "folder"),
    [
        ("faces", "sdxl"),
        ("sdxl", "faces"),
        ("sd3", "sdxl"),
        ("faces", "sd3"),
        ("flux", "sd3"),
        ("sd3", "flux"),
        ("sana", "sd3"),
        ("ldm", "pixel"),
    ],
)
def test_a_folder_of_another_family_is_refused(family: str, folder: str, tiny_folders: dict[str, Path]):
    with pytest.raises(InputError, match=r"StableDiffusionXLPrior|complete folder of a|choose the prior of its family"):
        CLASSES[family](str(tiny_folders[folder]), local_files_only=True)


@pytest.mark.parametrize(
    ("family", "regional"),
    [
        *(("faces", False), ("sd3", False), ("pixel", True), ("sdxl", True)),
        *(pytest.param(family, family == "lcm", marks=pytest.mark.slow) for family in ("lcm", "ldm", "flux", "sana")),
    ],
)
def test_compiled_networks_are_one_graph_each_for_all_timesteps(
    family: str, regional: bool, tiny_folders: dict[str, Path]
):
    torch.compiler.reset()
    plain, compiled, counter = load(tiny_folders, family), load(tiny_folders, family), CompileCounter()
    compiled.compile_networks(regional, backend=counter, fullgraph=True)
    for t in (300, 200, 20):
        torch.testing.assert_close(compiled.denoise(noisy(plain), t)[1], plain.denoise(noisy(plain), t)[1])
    torch.testing.assert_close(compiled.decode(noisy(plain)), plain.decode(noisy(plain)))
    # a network without repeated blocks is compiled as a whole
    assert counter.frame_count == (1 if family == "pixel" else 2)
    assert (compiled.denoiser._compiled_call_impl is None) == (regional and family != "pixel")


def test_a_prior_without_networks_can_not_be_compiled():
    with pytest.raises(InputError, match="a prior with networks is expected, got GaussianMixturePrior"):
        GaussianMixturePrior(means=[[0.0, 1.0]], std=0.1).compile_networks()
