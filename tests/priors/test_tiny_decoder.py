"""Tiny decoders: what they decode, and which ones a prior takes."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from support.networks import tiny_vae
from torch.utils.flop_counter import FlopCounterMode

from rlsd_lightning import StableDiffusionPrior
from rlsd_lightning.errors import InputError
from rlsd_lightning.functional.metrics import psnr
from rlsd_lightning.identity import description
from rlsd_lightning.images import load_image
from rlsd_lightning.priors.families import stable_diffusion
from rlsd_lightning.priors.loading import TinyDecoder

DATA = Path(__file__).resolve().parents[2] / "data"
PRIORS = DATA / "priors"
STAGES = 3
"""Resolutions of images of 32 pixels and latents of 8."""


def save(folder: Path, channels: int = 4, stages: int = STAGES, seed: int = 0, **settings) -> Path:
    """A tiny autoencoder with random weights."""
    torch.manual_seed(seed)
    widths = {"encoder_block_out_channels": (8,) * stages, "decoder_block_out_channels": (8,) * stages}
    blocks = {"num_encoder_blocks": (0,) * stages, "num_decoder_blocks": (1,) * stages}
    AutoencoderTiny(latent_channels=channels, **widths, **blocks, **settings).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    return lambda **settings: save(tmp_path_factory.mktemp("tiny"), **settings)


def save_pipeline(folder: Path, like: Path, stages: int = STAGES) -> Path:
    """A pipeline whose own autoencoder is the tiny one, so that a copy of it agrees exactly."""
    pipeline = StableDiffusionPipeline.from_pretrained(like, low_cpu_mem_usage=False)
    pipeline.vae = AutoencoderTiny.from_pretrained(save(folder / "own", stages=stages), low_cpu_mem_usage=False)
    pipeline.register_to_config(vae=("diffusers", "AutoencoderTiny"))
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


@pytest.fixture
def pipeline_folder(tiny_prior_folder: Path, tmp_path: Path) -> Path:
    return save_pipeline(tmp_path, tiny_prior_folder)


def load(folder: Path, **settings) -> StableDiffusionPrior:
    return StableDiffusionPrior(str(folder), local_files_only=True, **settings)


@pytest.mark.parametrize(("scaling", "shift"), [(1.0, 0.0), (0.18215, 0.0), (1.5305, 0.0609)])
def test_latents_are_scaled_as_the_tiny_autoencoder_says(scaling: float, shift: float, folder_of: Callable):
    folder = folder_of(scaling_factor=scaling, shift_factor=shift)
    own = AutoencoderTiny.from_pretrained(folder, low_cpu_mem_usage=False).eval()
    z = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(TinyDecoder(str(folder))(z), own.decode(z / scaling + shift).sample)


def test_the_folder_of_the_pipeline_may_hold_the_tiny_decoder(pipeline_folder: Path):
    assert not load(pipeline_folder, tiny_decoder="auto").has_tiny_decoder
    save(pipeline_folder / "tiny_decoder")
    prior = load(pipeline_folder, tiny_decoder="auto")
    z = torch.randn(2, *prior.latent_shape)
    assert prior.has_tiny_decoder
    assert not any(parameter.requires_grad for parameter in prior.parameters())
    torch.testing.assert_close(prior.decode_tiny(z), prior.decode(z))
    without = load(pipeline_folder, tiny_decoder=None)
    assert not without.has_tiny_decoder
    assert torch.equal(without.decode_tiny(z), without.decode(z))


@pytest.mark.parametrize(
    ("usual", "said"),
    [
        ({"stages": 4}, "gradients go through the tiny decoder"),
        ({"stages": 4, "seed": 1}, "belongs to the latents of another model"),
        (None, "absent"),
    ],
    ids=["fits", "other", "absent"],
)
def test_auto_takes_the_usual_decoder_of_stable_diffusion_where_it_is_there_and_fits(
    usual: dict | None,
    said: str,
    tiny_prior_folder: Path,
    folder_of: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    name = str(tmp_path / "absent" if usual is None else folder_of(**usual))
    monkeypatch.setattr(stable_diffusion, "TINY_DECODER", name)
    caplog.set_level("INFO", "rlsd_lightning")
    prior = load(save_pipeline(tmp_path, tiny_prior_folder, stages=4))
    assert prior.stride == 8
    assert prior.has_tiny_decoder is said.startswith("gradients")
    [line] = [record.getMessage() for record in caplog.records if "tiny_decoder=null" in record.getMessage()]
    assert said in line
    assert "\n" not in line
    if usual is None:
        with pytest.raises(InputError, match="absent"):
            load(tmp_path / "pipeline", tiny_decoder=name)  # what was asked for is not left out


def test_auto_asks_no_one_for_a_decoder_of_other_latents(pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stable_diffusion, "TINY_DECODER", None)  # would be refused
    prior = load(pipeline_folder)
    assert (prior.stride, prior.has_tiny_decoder) == (4, False)


@pytest.mark.parametrize(
    ("other", "cause"),
    [
        ({"seed": 1}, "belongs to the latents of another model"),
        ({"seed": 2, "latent_magnitude": 5}, "belongs to the latents of another model"),
        ({"seed": 0, "scaling_factor": 1.0, "shift_factor": 9.0}, "belongs to the latents of another model"),
        ({"channels": 16}, "latents of 4 channels, as the prior's have, got one for 16"),
        ({"stages": 4}, "images of 32 pixels, as the full decoder does of the same latents, got 64"),
    ],
    ids=str,
)
def test_a_decoder_of_other_latents_is_refused_with_the_cause(
    other: dict, cause: str, pipeline_folder: Path, folder_of: Callable
):
    with pytest.raises(InputError, match=r"tiny_decoder") as refused:
        load(pipeline_folder, tiny_decoder=str(folder_of(**other)))
    assert cause in str(refused.value)
    assert "tiny_decoder=null" in str(refused.value)


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        ("absent", "absent"),
        ("empty", "config.json"),
        ("kl", "it holds the class AutoencoderKL"),
        ("half", "lacks the weights"),
    ],
)
def test_what_is_no_tiny_autoencoder_is_refused(wrong: str, cause: str, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    tiny_vae().save_pretrained(tmp_path / "kl")
    file = save(tmp_path / "half") / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file({name: weights[name] for name in list(weights)[:3]}, file)
    with pytest.raises(InputError, match="tiny_decoder must be a folder of diffusers' AutoencoderTiny") as refused:
        TinyDecoder(str(tmp_path / wrong), local_files_only=True)
    assert cause in str(refused.value)


def test_weights_have_the_type_of_the_prior(pipeline_folder: Path):
    save(pipeline_folder / "tiny_decoder")
    prior = load(pipeline_folder, weights="bfloat16", tiny_decoder="auto")
    z = torch.randn(1, *prior.latent_shape)
    assert {parameter.dtype for parameter in prior.tiny.parameters()} == {torch.bfloat16}
    assert prior.decode_tiny(z).dtype == z.dtype


def test_a_checkpoint_of_a_run_with_another_decoder_is_another_run(pipeline_folder: Path):
    save(pipeline_folder / "tiny_decoder")
    prior = load(pipeline_folder, tiny_decoder="auto")
    changed = copy.deepcopy(prior)
    next(changed.tiny.parameters()).data.add_(0.1)
    descriptions = {description(prior), description(changed), description(load(pipeline_folder, tiny_decoder=None))}
    assert len(descriptions) == 3


@pytest.mark.parametrize("folder", sorted(PRIORS.glob("*/tiny_decoder")), ids=lambda folder: folder.parent.name)
def test_an_embedded_tiny_decoder_is_small_fast_and_near_the_own_one(folder: Path):
    assert sum(file.stat().st_size for file in folder.glob("*.safetensors")) <= 1e6
    prior = load(folder.parent, image_size=64, tiny_decoder="auto")
    assert prior.has_tiny_decoder
    names = ("000", "001", "002") if folder.parent.name == "faces" else ("astronaut", "chelsea", "coffee")
    kind = DATA / "faces/heldout" if folder.parent.name == "faces" else DATA / "photos"
    images = torch.cat([load_image(next(kind.glob(f"{name}.*")), 64, 64) for name in names])
    with torch.no_grad():
        z = prior.encode(images)
        counts, decoded = [], []
        for decode in (prior.decode, prior.decode_tiny):
            with FlopCounterMode(display=False) as counter:
                decoded.append(decode(z))
            counts.append(counter.get_total_flops())
    assert counts[1] <= counts[0] / 5
    assert psnr(decoded[1].clamp(-1, 1), decoded[0].clamp(-1, 1)).min() > 24


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_embedded_tiny_decoders_load_without_a_word(dtype: torch.dtype, capfd: pytest.CaptureFixture):
    for name in ("faces", "photos"):
        decoder = TinyDecoder(str(PRIORS / name / "tiny_decoder"), dtype, local_files_only=True)
        assert {parameter.dtype for parameter in decoder.parameters()} == {dtype}
    assert capfd.readouterr() == ("", "")
