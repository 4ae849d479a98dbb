"""Priors beside the pipelines of diffusers that their networks come from."""

from pathlib import Path

import pytest
import torch
from diffusers import (
    LatentConsistencyModelPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from support.families import edited, load, noisy
from torch import Tensor

from rlsd_lightning.priors import StableDiffusionPrior, StableDiffusionXLPrior


def one_step(pipeline, **settings) -> Tensor:
    """The latent that a pipeline has after the first of its sampling steps, and what it started from."""
    seen = {}

    def callback(pipeline, step, timestep, kwargs):
        seen.setdefault("latents", kwargs["latents"])
        return kwargs

    pipeline.set_progress_bar_config(disable=True)
    pipeline(prompt="a beard", output_type="latent", callback_on_step_end=callback, **settings)
    return seen["latents"]


def test_velocity_becomes_the_noise_that_diffusers_steps_along(tiny_folders: dict[str, Path]):
    """One Euler step of the pipeline is a step along the velocity that our noise implies."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        tiny_folders["sd3"], text_encoder_3=None, tokenizer_3=None, local_files_only=True
    )
    prior = load(tiny_folders, "sd3", prompt="a beard")
    z = noisy(prior, 1)
    after = one_step(pipeline, latents=z, guidance_scale=1.0, num_inference_steps=4, height=32, width=32)
    sigmas = pipeline.scheduler.sigmas
    t = int((prior.sigmas - sigmas[0]).abs().argmin())
    assert prior.sigmas[t].item() == pytest.approx(sigmas[0].item(), abs=1e-5)
    with torch.no_grad():
        noise = prior.denoise(z, t)[1]
    clean = (z - prior.sigma(t) * prior.network(z, t)).detach()
    velocity = noise - clean
    torch.testing.assert_close(after, z + (sigmas[1] - sigmas[0]) * velocity, atol=1e-4, rtol=1e-3)


def test_a_pipeline_on_a_gpu_is_moved_to_the_cpu(tiny_prior_folder: Path, monkeypatch: pytest.MonkeyPatch):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_prior_folder, local_files_only=True)
    moved_to, moving = [], type(pipeline).to
    monkeypatch.setattr(type(pipeline), "device", torch.device("cuda"))  # where the networks say they are
    monkeypatch.setattr(type(pipeline), "to", lambda self, place: moved_to.append(place) or moving(self, place))
    StableDiffusionPrior(pipeline)
    assert moved_to == ["cpu"]


def test_sdxl_sees_the_same_conditions_as_its_pipeline(tiny_folders: dict[str, Path]):
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_folders["sdxl"], local_files_only=True)
    prior = load(tiny_folders, "sdxl", prompt="a beard")
    z, seen = noisy(prior, 1), {}

    def spy(module, arguments, keywords, output):
        seen.setdefault("output", output[0])
        seen.setdefault("input", arguments[0])
        seen.setdefault("t", int(arguments[1]))

    pipeline.unet.register_forward_hook(spy, with_kwargs=True)
    one_step(pipeline, latents=z, guidance_scale=1.0, num_inference_steps=2, height=32, width=32)
    with torch.no_grad():
        torch.testing.assert_close(prior.network(seen["input"], seen["t"]), seen["output"], atol=1e-5, rtol=1e-4)


def edited_pipeline(folder: Path, copy: Path, **values) -> Path:
    """A copy of a pipeline folder with some values of its index changed."""
    return edited(folder, copy, "model_index.json", **values)


@pytest.mark.parametrize("forces", [True, False])
def test_sdxls_absent_negative_prompt_is_what_its_pipeline_takes(
    forces: bool, tiny_folders: dict[str, Path], tmp_path: Path
):
    folder = edited_pipeline(tiny_folders["sdxl"], tmp_path / "xl", force_zeros_for_empty_prompt=forces)
    prior = StableDiffusionXLPrior(str(folder), prompt="a beard", guidance_scale=3.0, local_files_only=True)
    assert len(prior.text) == len(prior.pooled) == 2
    for value in (prior.text, prior.pooled):
        assert (value[0] == 0).all() == forces
        assert value[1].abs().max() > 0
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    z, seen = noisy(prior, 1), {}

    def spy(module, arguments, keywords, output):
        seen.setdefault("output", output[0])
        seen.setdefault("input", arguments[0])
        seen.setdefault("t", int(arguments[1]))

    pipeline.unet.register_forward_hook(spy, with_kwargs=True)
    one_step(pipeline, latents=z, guidance_scale=3.0, num_inference_steps=2, height=32, width=32)
    negative, positive = seen["output"].chunk(2)
    with torch.no_grad():
        found = prior.network(seen["input"][:1], seen["t"])
    torch.testing.assert_close(found, negative + 3 * (positive - negative), atol=1e-5, rtol=1e-4)


def test_sdxls_own_negative_prompt_is_encoded(tiny_folders: dict[str, Path]):
    prior = load(tiny_folders, "sdxl", prompt="a beard", negative_prompt="a face, light skin", guidance_scale=3.0)
    other = load(tiny_folders, "sdxl", prompt="a face, light skin")
    torch.testing.assert_close(prior.text[:1], other.text)
    torch.testing.assert_close(prior.pooled[:1], other.pooled)


def test_a_consistency_model_is_told_the_guidance_as_by_its_pipeline(tiny_folders: dict[str, Path]):
    pipeline = LatentConsistencyModelPipeline.from_pretrained(tiny_folders["lcm"], local_files_only=True)
    prior, seen = load(tiny_folders, "lcm", prompt="a beard", guidance_scale=8.5), {}
    assert len(prior.text) == 1  # one network call

    def spy(module, arguments, keywords, output):
        seen.setdefault("output", output[0])
        seen.setdefault("input", arguments[0])
        seen.setdefault("t", int(arguments[1]))

    pipeline.unet.register_forward_hook(spy, with_kwargs=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline("a beard", height=32, width=32, guidance_scale=8.5, num_inference_steps=1, output_type="latent")
    with torch.no_grad():
        torch.testing.assert_close(prior.network(seen["input"], seen["t"]), seen["output"], atol=1e-5, rtol=1e-4)
