"""What people give as a checkpoint: understood, or refused in one line when it is loaded."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from support.families import CLASSES, edited, load, noisy
from support.networks import tiny_unet
from support.original_format import in_one
from torch import Tensor

from rlsd_lightning import RLSD, GaussianMixturePrior, InputError, LatentFeatures, Measurement, Prior
from rlsd_lightning.data import ImageMeasurements
from rlsd_lightning.operators import denoising, inpainting, make_physics, super_resolution
from rlsd_lightning.priors import PixelPrior, StableDiffusionPrior
from rlsd_lightning.priors.measured.prediction import check_prediction

T = 400
SCHEDULER = "scheduler/scheduler_config.json"
FACES = Path(__file__).parents[2] / "data" / "priors" / "faces"
PHOTOS = FACES.with_name("photos")


def refused(folder: Path, kind: type[Prior] = StableDiffusionPrior, **settings) -> str:
    """The one line of a refusal."""
    with pytest.raises(InputError) as caught:
        kind(str(folder), **{"local_files_only": True, **settings})
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- schedulers ------------------------------------------------------------------------------------------------------


def with_scheduler(folder: Path, copy: Path, name: str, **values) -> Path:
    edited(folder, copy, "model_index.json", scheduler=["diffusers", name])
    (copy / SCHEDULER).write_text(json.dumps({"_class_name": name, "num_train_timesteps": 1000, **values}))
    return copy


@pytest.mark.parametrize(
    "name",
    ["FlowMatchEulerDiscreteScheduler", "ScoreSdeVeScheduler", "EDMEulerScheduler", "KarrasVeScheduler", "MyScheduler"],
)
def test_schedules_of_other_families_are_named(name: str, tiny_prior_folder: Path, tmp_path: Path):
    said = refused(with_scheduler(tiny_prior_folder, tmp_path / "s", name))
    assert f"a schedule of signal and noise levels (betas) is expected, got {name}" in said


@pytest.mark.parametrize(
    "name",
    ["PNDMScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"],
)
def test_levels_are_those_of_the_betas_whatever_the_solver(name: str, tiny_prior_folder: Path, tmp_path: Path):
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    prior = load({"faces": with_scheduler(tiny_prior_folder, tmp_path / "s", name, **betas)}, "faces")
    alphas_cumprod = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, dim=0)
    torch.testing.assert_close(prior.alphas**2, alphas_cumprod, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(prior.sigmas**2, 1 - alphas_cumprod, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("written", ["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "ScoreSdeVeScheduler"])
def test_a_configuration_that_another_family_wrote_is_named(written: str, tiny_prior_folder: Path, tmp_path: Path):
    folder = edited(tiny_prior_folder, tmp_path / "s", SCHEDULER)
    (folder / SCHEDULER).write_text(json.dumps({"_class_name": written}))
    assert f"was written by {written}, but model_index.json names DDIMScheduler" in refused(folder)


def test_stable_diffusion_3_wants_flow_matching(tiny_folders: dict[str, Path], tmp_path: Path):
    folder = with_scheduler(tiny_folders["sd3"], tmp_path / "s", "DDIMScheduler")
    assert "a flow-matching scheduler is expected, got DDIMScheduler" in refused(folder, CLASSES["sd3"])


# --- networks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "kind"),
    [(9, "an inpainting"), (8, "an instruct-pix2pix"), (5, "a depth-to-image"), (7, "an upscaling"), (6, "another")],
)
def test_networks_with_further_channels_are_named(channels: int, kind: str, tiny_prior_folder: Path, tmp_path: Path):
    folder = edited(tiny_prior_folder, tmp_path / "c", "unet/config.json", in_channels=channels)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    first = weights["conv_in.weight"]
    weights["conv_in.weight"] = torch.cat([first, first.new_zeros(len(first), channels - 4, 3, 3)], dim=1)
    save_file(weights, file)
    said = refused(folder)
    assert f"its network takes {channels} channels, but the autoencoder has 4: it is {kind} network" in said


@pytest.mark.parametrize(
    "settings", [{"num_class_embeds": 10}, {"class_embed_type": "timestep"}, {"class_embed_type": "identity"}]
)
def test_networks_with_classes_are_refused(settings: dict, tiny_prior_folder: Path, tmp_path: Path):
    unet = UNet2DModel(
        sample_size=32,
        block_out_channels=(4, 4),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=2,
        **settings,
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "pixel")
    assert "this UNet2DModel wants class_labels" in refused(tmp_path / "pixel", PixelPrior)
    folder = edited(tiny_prior_folder, tmp_path / "latent", "model_index.json")
    tiny_unet(**settings).save_pretrained(folder / "unet")
    assert "this UNet2DConditionModel wants class_labels" in refused(folder)


def test_networks_that_do_not_fit_together_are_one_line(tiny_prior_folder: Path, tmp_path: Path):
    folder = edited(tiny_prior_folder, tmp_path / "f", "model_index.json")
    tiny_unet(cross_attention_dim=20).save_pretrained(folder / "unet")
    assert "the networks of this checkpoint do not fit together" in refused(folder)


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_damaged_weights_are_refused(part: str, tiny_prior_folder: Path, tmp_path: Path):
    folder = edited(tiny_prior_folder, tmp_path / "d", "model_index.json")
    file = folder / part / "diffusion_pytorch_model.safetensors"
    weights = {name: value * (float("nan") if "conv_out" in name else 1) for name, value in load_file(file).items()}
    save_file(weights, file)
    named = {"unet": "network", "vae": "decoder"}[part]
    assert f"the output of the prior's {named} is not finite; its weights are damaged" in refused(folder)


@pytest.mark.parametrize("factor", [3e5, 3e6, 3e7])
def test_a_decoder_that_overflows_in_float16_is_refused_with_the_remedy(
    factor: float, tiny_prior_folder: Path, tmp_path: Path
):
    folder = edited(tiny_prior_folder, tmp_path / "o", "model_index.json")
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({n: v * (factor if "decoder.conv_in" in n else 1) for n, v in load_file(file).items()}, file)
    assert "decoder overflows in float16 (above 65504); set weights=bfloat16" in refused(folder, weights="float16")
    load({"faces": folder}, "faces")


def pixel_folder(folder: Path, **settings) -> Path:
    torch.manual_seed(0)
    blocks = settings.pop("blocks", 2)
    unet = UNet2DModel(
        block_out_channels=(8,) * blocks,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * blocks,
        up_block_types=("UpBlock2D",) * blocks,
        norm_num_groups=4,
        **settings,
    )
    DDPMPipeline(unet.eval(), DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("operator", [denoising, inpainting, super_resolution])
def test_a_prior_of_one_channel_reads_pictures_as_grey(operator, tmp_path: Path):
    prior = PixelPrior(str(pixel_folder(tmp_path / "p", sample_size=32, in_channels=1, out_channels=1)))
    settings = {"mask": "half"} if operator is inpainting else {}
    physics = make_physics(lambda image_shape: operator(image_shape, **settings), prior.image_shape)
    data = ImageMeasurements(prior.image_shape, physics, FACES.parents[1] / "faces" / "heldout" / "000.png")
    assert data[0].truth.shape == (1, 1, 32, 32)
    colour = ImageMeasurements((3, 32, 32), denoising((3, 32, 32)), FACES.parents[1] / "faces" / "heldout" / "000.png")
    torch.testing.assert_close(data[0].truth[0, 0], colour[0].truth[0].mean(dim=0))
    RLSD(prior, data[0], LatentFeatures(), num_steps=2, num_particles=2)


@pytest.mark.parametrize(("size", "fitting"), [(30, "[32, 32]"), (27, "[28, 28]"), ((32, 30), "[32, 32]")])
def test_pixel_priors_of_odd_sizes_say_which_size_fits(size: int | tuple, fitting: str, tmp_path: Path):
    folder = pixel_folder(tmp_path / "p", sample_size=size, blocks=3)
    said = refused(folder, PixelPrior)
    assert "image_size must be a multiple of 4" in said
    assert f"set image_size={fitting}" in said
    assert PixelPrior(str(folder), image_size=(32, 28)).image_shape == (3, 32, 28)


@pytest.mark.parametrize("size", [[32], "32x32", [32, 32, 3], 32.5, [32, None]])
def test_a_size_that_is_none_is_refused(size, tmp_path: Path):
    folder = pixel_folder(tmp_path / "p", sample_size=32, blocks=2)
    assert "image_size must be an integer, [height, width] or None, got" in refused(folder, PixelPrior, image_size=size)


def test_a_network_of_another_family_is_named(tiny_prior_folder: Path):
    said = refused(tiny_prior_folder, PixelPrior)
    assert "a UNet2DModel is expected, got UNet2DConditionModel" in said


@pytest.mark.parametrize("content", [b'{"_class_name": "Stab', b"\xff\xfe\x00", b"[3]"])
@pytest.mark.parametrize("file", ["model_index.json", SCHEDULER, "config.json"])
def test_a_broken_configuration_is_named(file: str, content: bytes, tiny_prior_folder: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_prior_folder, tmp_path / "p")
    if file == "config.json":  # the folder of one network
        (folder / "model_index.json").unlink()
    (folder / file).write_bytes(content)
    assert str(folder) in refused(folder)


def test_a_tiny_autoencoder_works(tiny_prior_folder: Path, tmp_path: Path):
    folder = edited(tiny_prior_folder, tmp_path / "t", "model_index.json", vae=["diffusers", "AutoencoderTiny"])
    shutil.rmtree(folder / "vae")
    blocks = {f"{part}_block_out_channels": (8, 8, 8) for part in ("encoder", "decoder")}
    vae = AutoencoderTiny(**blocks, num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1))
    vae.save_pretrained(folder / "vae")
    prior = load({"faces": folder}, "faces")
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(prior.encode(images), vae.encode(images).latents)
        torch.testing.assert_close(prior.decode(prior.encode(images)), vae.decode(vae.encode(images).latents).sample)


def test_means_and_deviations_of_latents_are_used(tiny_prior_folder: Path, tmp_path: Path):
    mean, std = [0.5, -1.0, 0.0, 2.0], [1.0, 2.0, 0.5, 4.0]
    settings = {"latents_mean": mean, "latents_std": std, "scaling_factor": 0.5}
    prior = load({"faces": edited(tiny_prior_folder, tmp_path / "m", "vae/config.json", **settings)}, "faces")
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    centre, spread = (torch.tensor(values).view(1, 4, 1, 1) for values in (mean, std))
    with torch.no_grad():
        raw = prior.vae.encode(images).latent_dist.mode()
        torch.testing.assert_close(prior.encode(images), (raw - centre) * 0.5 / spread)
        z = noisy(prior)
        torch.testing.assert_close(prior.decode(z), prior.vae.decode(z * spread / 0.5 + centre).sample)
    assert {"scaling", "shift"} <= prior.state_dict().keys()


# --- folders and files -----------------------------------------------------------------------------------------------


def half_precision(folder: Path, copy: Path, variant: str = "fp16") -> Path:
    edited(folder, copy, "model_index.json")
    for file in list(copy.rglob("*.safetensors")):
        file.rename(file.with_suffix(f".{variant}.safetensors"))
    return copy


@pytest.mark.parametrize("family", ["faces", "sdxl", "pixel"])
def test_a_folder_with_one_variant_only_is_read(
    family: str, tiny_folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    folder = half_precision(tiny_folders[family], tmp_path / "v")
    with caplog.at_level(logging.INFO, "rlsd_lightning"):
        prior = load({family: folder}, family)
    assert "only weights of the variant fp16 are there" in caplog.text
    z, plain = noisy(prior), load(tiny_folders, family)
    with torch.no_grad():
        torch.testing.assert_close(prior.denoise(z, T)[1], plain.denoise(z, T)[1])


def test_a_variant_that_is_not_there_is_named(tiny_prior_folder: Path):
    assert "no weights of the variant 'fp16'; leave variant out" in refused(tiny_prior_folder, variant="fp16")


def cache(root: Path, folder: Path, snapshots: list[str], current: str | None) -> Path:
    model = root / "models--someone--faces"
    for name in snapshots:
        shutil.copytree(folder, model / "snapshots" / name)
    if current is not None:
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text(current)
    return model


@pytest.mark.parametrize(
    ("snapshots", "current"), [(["a1"], "a1"), (["a1", "b2"], "b2"), (["a1"], None), (["a1"], "gone")]
)
def test_a_cache_of_the_hub_is_its_current_snapshot(
    snapshots: list[str], current: str | None, tiny_prior_folder: Path, tmp_path: Path
):
    assert load({"faces": cache(tmp_path, tiny_prior_folder, snapshots, current)}, "faces").latent_shape == (4, 8, 8)


def test_a_cache_with_several_snapshots_is_asked_about(tiny_prior_folder: Path, tmp_path: Path):
    said = refused(cache(tmp_path, tiny_prior_folder, ["a1", "b2"], None))
    assert "has 2 and no current one" in said


def test_a_single_file_gets_the_code_that_makes_a_folder_of_it(tiny_prior_folder: Path, tmp_path: Path):
    file = tmp_path / "v1-5.safetensors"
    shutil.copy(tiny_prior_folder / "unet" / "diffusion_pytorch_model.safetensors", file)
    code = f"StableDiffusionPipeline as P; P.from_single_file('{file}').save_pretrained('v1-5')"
    assert code in refused(file)
    shutil.copy(
        tiny_prior_folder / "model_index.json", tmp_path
    )  # a configuration is at hand, but the file is no pipeline
    said = refused(file)
    assert "can't be read as a whole StableDiffusionPipeline" in said
    assert code in said
    pickled = file.rename(tmp_path / "v1-5.ckpt")
    assert "set allow_pickle=true" in refused(pickled)
    pickled.rename(file).write_bytes(b"no tensors")
    assert "can't be read" in refused(file)
    assert "must be the folder of a DDPMPipeline" in refused(file, PixelPrior)


@pytest.mark.parametrize("kind", ["safetensors", "ckpt", "half"])
def test_a_single_file_is_loaded_with_the_configuration_beside_it(kind: str, tmp_path: Path):
    folder = edited(FACES, tmp_path / "s", "model_index.json")
    weights = in_one(folder)
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    one = folder / ("v1-5.ckpt" if kind == "ckpt" else "v1-5.safetensors")
    if kind == "ckpt":
        torch.save({"state_dict": weights}, one)
    else:
        save_file({name: value.half() if kind == "half" else value for name, value in weights.items()}, one)
    prior = load({"faces": one}, "faces", prompt="a beard", allow_pickle=kind == "ckpt")
    plain = StableDiffusionPrior(str(FACES), prompt="a beard")
    z = torch.randn(2, *plain.latent_shape, generator=torch.Generator().manual_seed(0))
    tolerance = {"atol": 0.05, "rtol": 0.05} if kind == "half" else {"atol": 0, "rtol": 0}
    with torch.no_grad():
        torch.testing.assert_close(prior.denoise(z, T)[1], plain.denoise(z, T)[1], **tolerance)
        torch.testing.assert_close(prior.decode(z), plain.decode(z), **tolerance)


@pytest.mark.parametrize("kind", ["folder", "peft", "file"])
def test_lora_weights_are_asked_for_with_their_base_model(kind: str, tmp_path: Path):
    name = {
        "folder": "pytorch_lora_weights.safetensors",
        "peft": "adapter_model.safetensors",
        "file": "style.safetensors",
    }
    save_file({"lora_unet_mid_block.lora_down.weight": torch.zeros(1)}, tmp_path / name[kind])
    said = refused(tmp_path / name[kind] if kind == "file" else tmp_path)
    assert "LoRA weights alone" in said
    assert "and lora='" in said


def test_parts_of_a_pipeline_and_folders_around_it_are_told(tiny_prior_folder: Path, tmp_path: Path):
    assert f"give '{tiny_prior_folder}'" in refused(tiny_prior_folder / "unet")
    shutil.copytree(tiny_prior_folder / "unet", tmp_path / "alone")
    assert "holds UNet2DConditionModel alone" in refused(tmp_path / "alone")
    shutil.copytree(tiny_prior_folder, tmp_path / "around" / "inside")
    assert f"give '{tmp_path / 'around' / 'inside'}'" in refused(tmp_path / "around")


# --- prompts and prediction types ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("repeats", "word"), [(40, "beard"), (77, "glasses"), (200, "Straße")])
def test_a_prompt_that_is_cut_is_said_to_be_with_the_words_left_out(repeats: int, word: str):
    prior = StableDiffusionPrior(str(FACES), prompt=f"{word} " * repeats + "and blue hair")
    (said,) = prior.warnings
    assert said.startswith("prompt is longer than the text encoder takes")
    left_out = said.partition("'")[2].rstrip("'").split()
    assert left_out[-3:] == ["and", "blue", "hair"]
    assert set(left_out[:-3]) <= {word}
    kept = repeats + 3 - len(left_out)
    assert kept > 0
    assert StableDiffusionPrior(str(FACES), prompt=f"{word} " * kept).warnings == []
    assert StableDiffusionPrior(str(FACES), prompt=f"{word} " * (kept + 1)).warnings != []


def test_a_short_prompt_is_not_cut(tiny_prior: StableDiffusionPrior):
    assert tiny_prior.warnings == []


class Converted(Prior):
    """A prior whose network predicts something else than that of another prior, and declares a third."""

    def __init__(self, prior: Prior, predicted: str, declared: str) -> None:
        super().__init__(prior.alphas, prior.sigmas, prior.latent_shape, prior.image_shape, declared)
        self.inner, self.predicted = prior, predicted

    def network(self, z_t: Tensor, t: int) -> Tensor:
        z, noise = self.inner.denoise(z_t, t)
        velocity = self.alpha(t) * noise - self.sigma(t) * z
        return {"epsilon": noise, "v_prediction": velocity, "sample": z}[self.predicted]


PREDICTED = ("epsilon", "v_prediction", "sample")


@pytest.fixture(scope="module")
def trained() -> dict[str, Prior]:
    means = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    return {
        "faces": StableDiffusionPrior(str(FACES)),
        "photos": StableDiffusionPrior(str(PHOTOS), image_size=64),
        "mixture": GaussianMixturePrior(means, std=0.3),
    }


@pytest.mark.parametrize("declared", PREDICTED)
@pytest.mark.parametrize("predicted", PREDICTED)
@pytest.mark.parametrize("name", ["faces", "photos", "mixture"])
def test_a_wrong_prediction_type_is_recognised(name: str, predicted: str, declared: str, trained: dict[str, Prior]):
    inner = trained[name]
    assert inner.warnings == []
    found = check_prediction(Converted(inner, predicted, declared), inner.latent_shape)
    assert found == (None if predicted == declared else predicted)


@pytest.mark.parametrize("outputs", [lambda z: 0 * z, lambda z: 0.8 * torch.ones_like(z), lambda z: 0.3 * z.flip(-1)])
@pytest.mark.parametrize("declared", PREDICTED)
def test_networks_that_know_nothing_are_not_told_what_they_predict(outputs, declared: str, tiny_prior: Prior):
    class Untrained(Prior):
        def network(self, z_t: Tensor, t: int) -> Tensor:
            return outputs(z_t)

    levels = (tiny_prior.alphas, tiny_prior.sigmas)
    assert check_prediction(Untrained(*levels, (4, 8, 8), (4, 8, 8), declared), (4, 8, 8)) is None


def test_the_warning_is_in_the_log_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = edited(FACES, tmp_path / "v", SCHEDULER, prediction_type="v_prediction")
    with caplog.at_level(logging.WARNING, "rlsd_lightning"):
        prior = StableDiffusionPrior(str(folder))
    (said,) = prior.warnings
    assert said.startswith("the network's outputs look like epsilon, but the checkpoint declares v_prediction")
    assert said in caplog.text


def test_a_prior_without_trouble_solves_with_its_measurement(tiny_prior: StableDiffusionPrior):
    physics = denoising(tiny_prior.image_shape)
    module = RLSD(tiny_prior, Measurement("m", torch.zeros(1, 3, 32, 32), physics), LatentFeatures(), num_steps=2)
    assert module.prior.warnings == []
