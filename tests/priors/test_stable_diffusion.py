"""A diffusers pipeline folder as a prior."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from rlsd_lightning.errors import InputError
from rlsd_lightning.priors import StableDiffusionPrior

T = 400


def load(folder: Path, **settings) -> StableDiffusionPrior:
    return StableDiffusionPrior(str(folder), local_files_only=True, **settings)


def edited(folder: Path, copy: Path, config: str, **values) -> Path:
    """A copy of a pipeline folder with some values of a configuration changed."""
    shutil.copytree(folder, copy)
    file = copy / config
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return copy


def noisy(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def test_pipeline_folder_loads_and_maps_between_latents_and_images(tiny_prior: StableDiffusionPrior):
    assert tiny_prior.latent_shape == (4, 8, 8)
    assert tiny_prior.image_shape == (3, 32, 32)
    with torch.no_grad():
        images = tiny_prior.decode(noisy())
        assert images.shape == (3, 3, 32, 32)
        assert tiny_prior.encode(images).shape == tiny_prior.denoise(noisy(), T)[1].shape == (3, 4, 8, 8)


def test_a_loaded_pipeline_is_the_same_prior_as_its_folder(tiny_prior: StableDiffusionPrior, tiny_prior_folder: Path):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_prior_folder, local_files_only=True)
    prior, z = StableDiffusionPrior(pipeline), noisy()
    with torch.no_grad():
        torch.testing.assert_close(prior.denoise(z, T), tiny_prior.denoise(z, T))
        torch.testing.assert_close(prior.decode(z), tiny_prior.decode(z))


def test_schedule_is_the_checkpoints_own(tiny_prior: StableDiffusionPrior, tiny_prior_folder: Path, tmp_path: Path):
    file = "scheduler/scheduler_config.json"
    original = load(edited(tiny_prior_folder, tmp_path / "original", file, beta_end=0.012))
    # alpha of Stable Diffusion's last training step
    assert original.alphas[-1].item() == pytest.approx(0.0683, abs=1e-4)
    assert tiny_prior.alphas[-1].item() == pytest.approx(0.032, rel=0.01)
    assert tiny_prior.timestep_offset == 1
    changes = {"num_train_timesteps": 500, "beta_schedule": "linear", "beta_end": 0.012}
    other = load(edited(tiny_prior_folder, tmp_path / "other", file, **changes))
    expected = torch.cumprod(1 - torch.linspace(0.00085, 0.012, 500), dim=0)
    torch.testing.assert_close(other.alphas**2, expected)


def test_nothing_of_the_prior_is_trained(tiny_prior: StableDiffusionPrior):
    assert not any(parameter.requires_grad for parameter in tiny_prior.parameters())
    assert not any(module.training for module in tiny_prior.modules())


def test_decoder_still_carries_a_gradient_to_the_latents(tiny_prior: StableDiffusionPrior):
    z = noisy(1).requires_grad_()
    tiny_prior.decode(z).square().sum().backward()
    assert z.grad.norm() > 0


def test_image_size_may_differ_from_the_checkpoints(tiny_prior_folder: Path):
    prior = load(tiny_prior_folder, image_size=48)
    assert prior.image_shape == (3, 48, 48)
    assert prior.latent_shape == (4, 12, 12)
    with torch.no_grad():
        z = torch.randn(1, *prior.latent_shape)
        assert prior.decode(z).shape == (1, *prior.image_shape)
        assert prior.denoise(z, T)[1].shape == z.shape


def test_particles_do_not_influence_each_other(tiny_prior: StableDiffusionPrior):
    with torch.no_grad():
        together, alone = tiny_prior.denoise(noisy(), T)[1], tiny_prior.denoise(noisy()[1:2], T)[1]
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-4)


def test_guidance_is_the_combination_of_two_network_calls(tiny_prior_folder: Path):
    negative, prompt, scale, z_t = "a face, light skin", "a beard", 3.0, noisy()
    guided = load(tiny_prior_folder, prompt=prompt, negative_prompt=negative, guidance_scale=scale)
    with torch.no_grad():
        towards = load(tiny_prior_folder, prompt=prompt).network(z_t, T)
        away = load(tiny_prior_folder, prompt=negative).network(z_t, T)
        combined = guided.network(z_t, T)
    assert not torch.allclose(towards, away, atol=1e-4)  # the tiny network does listen to its text
    torch.testing.assert_close(combined, away + scale * (towards - away), atol=1e-5, rtol=1e-4)


def test_prompt_is_encoded_as_the_pipeline_encodes_it(tiny_prior_folder: Path):
    prior = load(tiny_prior_folder, prompt="a beard", negative_prompt="light skin", guidance_scale=2.0)
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_prior_folder, local_files_only=True)
    positive, negative = pipeline.encode_prompt("a beard", "cpu", 1, True, "light skin")
    torch.testing.assert_close(prior.text, torch.cat([negative, positive]).detach())


def test_v_prediction_of_the_checkpoint_is_honoured(
    tiny_prior: StableDiffusionPrior, tiny_prior_folder: Path, tmp_path: Path
):
    folder = edited(
        tiny_prior_folder, tmp_path / "v", "scheduler/scheduler_config.json", prediction_type="v_prediction"
    )
    prior, z_t = load(folder), noisy()
    assert prior.prediction_type == "v_prediction"
    with torch.no_grad():
        output = tiny_prior.denoiser(z_t, T, tiny_prior.text.expand(3, -1, -1)).sample
        torch.testing.assert_close(tiny_prior.denoise(z_t, T)[1], output)  # the same weights, read as epsilon
        expected = prior.sigma(T) * z_t + prior.alpha(T) * output
        torch.testing.assert_close(prior.denoise(z_t, T)[1], expected)


def test_latents_are_scaled_by_the_checkpoints_factor(tiny_prior: StableDiffusionPrior):
    z = noisy()
    with torch.no_grad():
        torch.testing.assert_close(tiny_prior.decode(z), tiny_prior.vae.decode(z / 0.5).sample)


def test_latents_are_scaled_and_shifted_by_the_checkpoints_factors(tiny_prior_folder: Path, tmp_path: Path):
    prior = load(edited(tiny_prior_folder, tmp_path / "s", "vae/config.json", scaling_factor=0.25, shift_factor=0.3))
    z, images = noisy(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(prior.decode(z), prior.vae.decode(z / 0.25 + 0.3).sample)
        expected = (prior.vae.encode(images).latent_dist.mode() - 0.3) * 0.25
        torch.testing.assert_close(prior.encode(images), expected)


def test_folder_loads_and_samples_with_diffusers_alone(tiny_prior_folder: Path):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_prior_folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline("a beard", num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 32, 32, 3)


def test_folder_without_a_pipeline_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"model_index\.json"):
        load(tmp_path)


def test_missing_path_is_refused_with_the_path(tmp_path: Path):
    with pytest.raises(InputError, match="nowhere"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("part", ["unet", "vae", "tokenizer", "scheduler"])
def test_folder_with_a_part_missing_is_refused(part: str, tiny_prior_folder: Path, tmp_path: Path):
    shutil.copytree(tiny_prior_folder, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / part)
    with pytest.raises(InputError, match=f"^pretrained must be .* has no {part}"):
        load(tmp_path / "copy")


@pytest.mark.parametrize("image_size", [30, 33])
def test_image_size_that_does_not_fit_the_stride_is_refused(image_size: int, tiny_prior_folder: Path):
    with pytest.raises(InputError, match=f"multiple of 4.*got {image_size}"):
        load(tiny_prior_folder, image_size=image_size)
