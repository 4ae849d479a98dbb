"""Sampling without data: our loop with eta=0 beside diffusers' own pipelines, from the same initial noise."""

import json
from pathlib import Path
from unittest import mock

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline, LDMPipeline, SanaPipeline
from diffusers.pipelines.deprecated.latent_diffusion_uncond import pipeline_latent_diffusion_uncond
from support.families import CLASSES, edited, load, noisy
from support.steps import optimizers_of, take_step
from torch import Tensor

from rlsd_lightning import RLSD, InputError, LatentFeatures, Measurement
from rlsd_lightning.operators import inpainting
from rlsd_lightning.priors import FluxPrior, LatentDiffusionPrior, Prior, SanaPrior, StableDiffusionPrior

STEPS = 4


def sampled(prior: Prior, start: Tensor, spacing: str) -> tuple[Tensor, Tensor]:
    """Latents and images at the end of a run that nothing guides: DDIM, or Euler's method for flow matching."""
    physics = inpainting(prior.image_shape, mask="half")
    measured = Measurement("m", physics.A(torch.zeros(1, *prior.image_shape)), physics)
    settings = {"eta": 0.0, "gamma": 0.0, "guidance_scale": 0.0, "refine_share": 0.0, "antithetic": False}
    settings["outlier_ratio"] = None  # selection would replace samples that are far from the data
    with mock.patch.object(RLSD, "timestep_spacing", spacing):
        module = RLSD(prior, measured, LatentFeatures(), num_particles=len(start), num_steps=STEPS, **settings)
    t = module.timesteps[0]
    module.e.copy_((start - prior.alpha(t) * module.z.detach()) / prior.sigma(t))
    optimizers = optimizers_of(module)
    for step in range(STEPS):
        take_step(module, step, optimizers=optimizers)
    with torch.no_grad():
        return module.z.detach(), prior.decode(module.z)


def final(pipeline: DiffusionPipeline, **settings) -> Tensor:
    """What a pipeline samples."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(num_inference_steps=STEPS, output_type="latent", **settings)[0]


def packed(latents: Tensor) -> Tensor:
    return FluxPipeline._pack_latents(latents, *latents.shape)


@pytest.mark.parametrize(("width", "guidance_scale"), [(32, 1.0), (48, 3.5)])
def test_flux_samples_what_its_pipeline_does(width: int, guidance_scale: float, tiny_folders: dict[str, Path]):
    """Packed latents, the embedded guidance, both text encoders, and the shift of two numbers of tokens."""
    pipeline = FluxPipeline.from_pretrained(tiny_folders["flux"], local_files_only=True)
    prior = load(tiny_folders, "flux", prompt="a beard", guidance_scale=guidance_scale, image_size=(32, width))
    start = noisy(prior, 2)
    expected = final(
        pipeline,
        prompt=["a beard"] * 2,
        latents=packed(start),
        guidance_scale=guidance_scale,
        height=32,
        width=width,
    )
    z, images = sampled(prior, start, "trailing")
    assert not torch.allclose(z, start, atol=0.1)
    torch.testing.assert_close(packed(z), expected, atol=1e-4, rtol=1e-3)
    unpacked = FluxPipeline._unpack_latents(expected, 32, width, pipeline.vae_scale_factor)
    config = pipeline.vae.config
    with torch.no_grad():
        shown = pipeline.vae.decode(unpacked / config.scaling_factor + config.shift_factor).sample
    torch.testing.assert_close(images, shown, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("guided", [False, True])
def test_flux_without_an_embedded_guidance_is_guided_by_two_prompts(
    guided: bool, tiny_folders: dict[str, Path], tmp_path: Path
):
    pipeline = FluxPipeline.from_pretrained(tiny_folders["flux"], local_files_only=True)
    transformer = type(pipeline.transformer).from_config({**pipeline.transformer.config, "guidance_embeds": False})
    pipeline.register_modules(transformer=transformer.eval())
    pipeline.save_pretrained(tmp_path / "schnell")
    scale = 2.5 if guided else 1.0
    prior = FluxPrior(
        str(tmp_path / "schnell"), prompt="a beard", negative_prompt="a face", guidance_scale=scale, image_size=32
    )
    assert len(prior.text) == (2 if guided else 1)
    start = noisy(prior, 1)
    negative = {"negative_prompt": "a face", "true_cfg_scale": scale} if guided else {}
    expected = final(pipeline, prompt="a beard", latents=packed(start), height=32, width=32, **negative)
    torch.testing.assert_close(packed(sampled(prior, start, "trailing")[0]), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("channels", "kind"), [(32, "a control"), (48, "another")])
def test_a_flux_for_other_inputs_is_refused(channels: int, kind: str, tiny_folders: dict[str, Path]):
    pipeline = FluxPipeline.from_pretrained(tiny_folders["flux"], local_files_only=True)
    changed = {**pipeline.transformer.config, "in_channels": channels, "out_channels": 16}
    pipeline.register_modules(transformer=type(pipeline.transformer).from_config(changed))
    with pytest.raises(
        InputError, match=rf"takes {channels} channels, but the autoencoder has 16: it is {kind} network"
    ):
        FluxPrior(pipeline, image_size=32)


@pytest.mark.parametrize(("prompt", "guidance_scale"), [("a beard", 1.0), ("a light beard", 4.5)])
def test_sana_samples_what_its_pipeline_does(prompt: str, guidance_scale: float, tiny_folders: dict[str, Path]):
    """The instruction before the prompt, the mask of its tokens, and the schedule's shift."""
    pipeline = SanaPipeline.from_pretrained(tiny_folders["sana"], local_files_only=True)
    prior = load(tiny_folders, "sana", prompt=prompt, negative_prompt="a face", guidance_scale=guidance_scale)
    start = noisy(prior, 1)
    expected = final(
        pipeline,
        prompt=prompt,
        negative_prompt="a face",
        latents=start,
        guidance_scale=guidance_scale,
        sigmas=[1.0, 0.75, 0.5, 0.25],
        height=32,
        width=32,
        use_resolution_binning=False,
    )
    z, images = sampled(prior, start, "trailing")
    assert not torch.allclose(z, start, atol=0.1)
    torch.testing.assert_close(z, expected, atol=1e-4, rtol=1e-3)
    with torch.no_grad():
        shown = pipeline.vae.decode(expected / pipeline.vae.config.scaling_factor).sample
    torch.testing.assert_close(images, shown, atol=1e-4, rtol=1e-3)


def test_an_empty_prompt_of_sana_is_its_pipelines_negative_one(tiny_folders: dict[str, Path]):
    pipeline = SanaPipeline.from_pretrained(tiny_folders["sana"], local_files_only=True)
    _, _, text, mask = pipeline.encode_prompt("a beard", True, "")
    prior = load(tiny_folders, "sana")
    torch.testing.assert_close(prior.text, text.detach())
    assert torch.equal(prior.mask, mask)


@pytest.mark.parametrize("latents_scale", [0.5, 2.0])
def test_unconditional_latent_diffusion_samples_what_its_pipeline_does(
    latents_scale: float, tiny_folders: dict[str, Path], tmp_path: Path
):
    """Its pipeline gives pictures only, made of the nearest vectors of the codebook."""
    file = "vqvae/config.json"
    folder = edited(tiny_folders["ldm"], tmp_path / "scaled", file, scaling_factor=latents_scale)
    end = edited(folder, tmp_path / "ldm", "scheduler/scheduler_config.json", set_alpha_to_one=True)
    pipeline, prior = LDMPipeline.from_pretrained(end, local_files_only=True), CLASSES["ldm"](str(end))
    start = noisy(prior, 2)
    with mock.patch.object(pipeline_latent_diffusion_uncond, "randn_tensor", lambda *_, **__: start):
        expected = torch.from_numpy(final(pipeline, batch_size=2)).permute(0, 3, 1, 2)
    images = sampled(prior, start, "trailing")[1]
    torch.testing.assert_close((images / 2 + 0.5).clamp(0, 1), expected, atol=1e-4, rtol=1e-3)


def test_an_old_autoencoder_without_a_scaling_factor_does_not_scale_latents(
    tiny_folders: dict[str, Path], tmp_path: Path
):
    """As CompVis/ldm-celebahq-256, for which diffusers would take Stable Diffusion's 0.18215."""
    folder = edited(tiny_folders["ldm"], tmp_path / "old", "model_index.json")
    file = folder / "vqvae" / "config.json"
    config = json.loads(file.read_text())
    del config["scaling_factor"]
    file.write_text(json.dumps(config))
    old, new = CLASSES["ldm"](str(folder)), load(tiny_folders, "ldm")
    assert (old.scaling, new.scaling) == (1.0, 0.5)


def test_the_decoder_sees_the_codebook_and_its_gradient_does_not(tiny_folders: dict[str, Path]):
    prior = load(tiny_folders, "ldm")
    codebook = prior.vae.quantize.embedding.weight
    z = prior.scaling * (codebook[torch.arange(64).view(8, 8)].permute(2, 0, 1)[None] + 0.01)
    leaf = z.clone().requires_grad_()
    images = prior.decode(leaf)
    with torch.no_grad():
        torch.testing.assert_close(images, prior.decode(z - 0.005 * prior.scaling))  # the same vectors
        exact = prior.vae.decode(z / prior.scaling, force_not_quantize=True).sample
    assert not torch.allclose(images, exact, atol=1e-4)
    images.square().sum().backward()
    # the gradient at the vectors themselves
    vectors = (z / prior.scaling - 0.01).requires_grad_()
    prior.vae.decode(vectors, force_not_quantize=True).sample.square().sum().backward()
    torch.testing.assert_close(leaf.grad, vectors.grad / prior.scaling, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
def test_sanas_own_solver_has_the_same_levels(shift: float, tiny_folders: dict[str, Path], tmp_path: Path):
    """Published checkpoints name DPM-Solver with flow matching's levels."""
    file = "scheduler/scheduler_config.json"
    own = {
        "_class_name": "DPMSolverMultistepScheduler",
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": shift,
    }
    folder = edited(tiny_folders["sana"], tmp_path / "solver", file, **own)
    named = edited(
        folder, tmp_path / "named", "model_index.json", scheduler=["diffusers", "DPMSolverMultistepScheduler"]
    )
    prior = SanaPrior(str(named), local_files_only=True)
    scheduler = SanaPipeline.from_pretrained(named, local_files_only=True).scheduler
    scheduler.set_timesteps(50)
    nearest = (prior.sigmas[:, None] - scheduler.sigmas[None]).abs().amin(dim=0)
    assert nearest.max() < 2e-3 * shift
    assert prior.sigmas[499].item() == pytest.approx(shift * 0.5 / (1 + (shift - 1) * 0.5))


@pytest.mark.parametrize("family", ["flux", "sana"])
def test_a_diffusion_scheduler_is_refused_where_flow_matching_is_expected(
    family: str, tiny_folders: dict[str, Path], tmp_path: Path
):
    file = "scheduler/scheduler_config.json"
    folder = edited(tiny_folders[family], tmp_path / "a", file, _class_name="DDIMScheduler")
    named = edited(folder, tmp_path / "b", "model_index.json", scheduler=["diffusers", "DDIMScheduler"])
    with pytest.raises(InputError, match="a flow-matching scheduler is expected, got DDIMScheduler"):
        CLASSES[family](str(named), local_files_only=True)


def test_an_autoencoder_that_keeps_its_activations_says_so(tiny_folders: dict[str, Path]):
    with pytest.raises(
        InputError, match=r"^decoder_checkpointing: .* got AutoencoderDC; set decoder_checkpointing=false"
    ):
        load(tiny_folders, "sana", decoder_checkpointing=True)


def test_ldm_takes_the_sizes_that_its_levels_can_halve(tiny_folders: dict[str, Path]):
    pipeline = LDMPipeline.from_pretrained(tiny_folders["ldm"], local_files_only=True)
    deep = {
        "block_out_channels": (8,) * 4,
        "down_block_types": ["DownBlock2D"] * 4,
        "up_block_types": ["UpBlock2D"] * 4,
    }
    pipeline.register_modules(unet=type(pipeline.unet).from_config({**pipeline.unet.config, **deep}).eval())
    prior = LatentDiffusionPrior(pipeline, image_size=(64, 96))
    assert prior.multiple == 4 * 8
    z = noisy(prior, 1)
    assert prior.network(z, 500).shape == z.shape
    with pytest.raises(InputError, match="multiple"):
        LatentDiffusionPrior(pipeline, image_size=(64, 172))


@pytest.mark.parametrize(
    ("family", "settings", "warns"),
    [
        ("faces", {}, True),
        ("faces", {"guidance_scale": 2.0}, False),
        ("lcm", {"guidance_scale": 8.0}, True),
        ("flux", {"guidance_scale": 3.5}, True),
        ("sdxl", {"guidance_scale": 2.0}, False),
    ],
)
def test_a_negative_prompt_without_effect_is_warned_of(
    family: str, settings: dict[str, float], warns: bool, tiny_folders: dict[str, Path]
):
    prior = load(tiny_folders, family, negative_prompt="a face", **settings)
    assert any("negative_prompt has no effect" in warning for warning in prior.warnings) == warns


def test_a_full_memory_is_not_blamed_on_the_checkpoint(tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    monkeypatch.setattr(StableDiffusionPrior, "evaluate", full)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        load(tiny_folders, "faces")
