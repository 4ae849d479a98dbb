"""The doctor's checks: a healthy prior passes all, and each fault is named by its own check."""

import copy
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.command import train

from rlsd_lightning.images import load_image
from rlsd_lightning.priors import StableDiffusionPrior
from rlsd_lightning.priors.measured import draw
from rlsd_lightning.priors.measured.examination import (
    Finding,
    examine_autoencoder,
    examine_latents,
    examine_prediction,
)
from rlsd_lightning.priors.measured.prediction import try_networks
from rlsd_lightning.resources import embedded

FACES = [load_image(embedded(f"faces/heldout/{number:03d}.png"), 64, 64) for number in range(2)]
PHOTOS = [load_image(file, 64, 64) for file in sorted(embedded("photos").iterdir())][:2]


@pytest.fixture(scope="module")
def faces() -> StableDiffusionPrior:
    return StableDiffusionPrior(str(embedded("priors/faces")), local_files_only=True)


def findings(prior: StableDiffusionPrior, pictures: list[torch.Tensor]) -> dict[str, Finding]:
    own = draw(prior, 2)
    found = [
        examine_prediction(prior, own),
        examine_autoencoder(prior, pictures, "pictures"),
        examine_latents(prior, pictures, own),
    ]
    return {one.name: one for one in found}


def test_a_healthy_prior_of_faces_passes(faces: StableDiffusionPrior) -> None:
    found = findings(faces, FACES)
    assert [one.ok for one in found.values()] == [True] * 3, found
    assert str(found["prediction"]).startswith("prediction   ok   epsilon: error over a blind guess's 0.")


def test_a_healthy_prior_of_photographs_passes() -> None:
    prior = StableDiffusionPrior(str(embedded("priors/photos")), local_files_only=True)
    assert [one.ok for one in findings(prior, PHOTOS).values()] == [True] * 3


def test_pictures_that_the_prior_does_not_know_fail(faces: StableDiffusionPrior) -> None:
    found = findings(faces, PHOTOS)
    assert not found["autoencoder"].ok
    assert "it does not know such pictures" in found["autoencoder"].text
    assert found["prediction"].ok


def rescaled(factor: float) -> Callable[[StableDiffusionPrior], None]:
    def spoil(prior: StableDiffusionPrior) -> None:
        prior.scaling *= factor

    return spoil


def swapped(order: list[int], *, going_in: bool = False, coming_out: bool = False) -> Callable:
    def spoil(prior: StableDiffusionPrior) -> None:
        first, last = prior.vae.encoder.conv_in, prior.vae.decoder.conv_out
        if going_in:
            first.weight.data = first.weight[:, order].contiguous()
        if coming_out:
            last.weight.data, last.bias.data = last.weight[order].contiguous(), last.bias[order].contiguous()

    return spoil


def foreign_latents(prior: StableDiffusionPrior) -> None:
    """The autoencoder has its channels in another order than the network."""
    encode, decode, order = prior.encode, prior.decode, [2, 0, 3, 1]
    prior.encode = lambda images: encode(images)[:, order]
    prior.decode = lambda z: decode(z[:, torch.tensor(order).argsort()])


def random_decoder(prior: StableDiffusionPrior) -> None:
    torch.manual_seed(0)
    for module in prior.vae.decoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.reset_parameters()


def declared(kind: str) -> Callable[[StableDiffusionPrior], None]:
    def spoil(prior: StableDiffusionPrior) -> None:
        prior.prediction_type = kind
        try_networks(prior, prior.latent_shape)

    return spoil


SPOILED = {
    "scaling_factor too large": (
        rescaled(4),
        "latents",
        "divide scaling_factor in the autoencoder's config.json by 4.",
    ),
    "scaling_factor left out": (
        rescaled(0.18),
        "latents",
        "divide scaling_factor in the autoencoder's config.json by 0.1",
    ),
    "scaling_factor of another model": (rescaled(1.8), "latents", "divide scaling_factor"),
    "red and blue swapped on the way out": (swapped([2, 1, 0], coming_out=True), "autoencoder", "bgr out works"),
    "channels turned on the way in": (
        swapped([1, 2, 0], going_in=True),
        "autoencoder",
        "its channels are swapped: gbr in works",
    ),
    "blue first on both ways": (
        swapped([2, 1, 0], going_in=True, coming_out=True),
        "autoencoder",
        "bgr in and out works",
    ),
    "latents of another autoencoder": (foreign_latents, "latents", "was trained on another autoencoder"),
    "decoder without training": (random_decoder, "autoencoder", "its weights are not those of its config.json"),
    "velocities declared": (declared("v_prediction"), "prediction", "set prediction_type to epsilon"),
    "clean latents declared": (declared("sample"), "prediction", "set prediction_type to epsilon"),
}


@pytest.mark.parametrize("fault", SPOILED)
def test_each_fault_is_named_by_its_own_check(fault: str, faces: StableDiffusionPrior) -> None:
    spoil, name, said = SPOILED[fault]
    prior = copy.deepcopy(faces)
    spoil(prior)
    found = findings(prior, FACES)
    assert not found[name].ok
    assert said in found[name].text
    others = {other for other, finding in found.items() if not finding.ok} - {name}
    assert others <= {"latents"}  # which are of other colours, or compared with samples of a wrong type
    assert name != "latents" or not others


# --- rlsd doctor ---------------------------------------------------------------------------------------------------


def spoiled_copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "prior")
    return tmp_path / "prior"


def test_weights_that_are_cut_off_are_named(tiny_prior_folder: Path, tmp_path: Path) -> None:
    folder = spoiled_copy(tiny_prior_folder, tmp_path)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    code, printed = train("doctor", "prior=sd15", f"prior.pretrained={folder}")
    assert code == 1
    lines = printed.splitlines()
    assert lines[0] == lines[-1] == "```"
    assert lines[1].startswith("rlsd-lightning ")
    assert lines[-2].startswith("load         FAIL pretrained must be a complete diffusers folder")


def test_half_precision_that_overflows_is_named(tiny_prior_folder: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    folder = spoiled_copy(tiny_prior_folder, tmp_path)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    vae.decoder.conv_out.weight.data *= 1e6
    vae.save_pretrained(folder / "vae")
    code, printed = train("doctor", "prior=sd15", f"prior.pretrained={folder}", "prior.weights=float16")
    assert code == 1
    assert "load         FAIL the prior's decoder overflows in float16 (above 65504)" in printed


def test_a_prior_of_random_weights_fails_and_the_run_goes_on(tiny_prior_folder: Path) -> None:
    code, printed = train("doctor", "prior=sd15", f"prior.pretrained={tiny_prior_folder}")
    assert code == 1
    names = [line.split()[0] for line in printed.splitlines() if " ok " in line or " FAIL " in line]
    assert names == ["load", "prediction", "autoencoder", "latents", "inpainting"]
    assert "\nload         ok   " in printed
    assert "\nautoencoder  FAIL " in printed
    assert "20 steps, 2 particles in " in printed


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [(), ("prior=faces",), ("prior=photos",)])
def test_the_embedded_priors_pass(arguments: tuple[str, ...]) -> None:
    code, printed = train("doctor", *arguments)
    assert code == 0, printed
    assert "FAIL" not in printed


def test_samples_that_memory_does_not_hold_do_not_end_the_other_checks(
    tiny_prior_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("rlsd_lightning.cli.subcommands.checkup.draw", full)
    code, printed = train("doctor", "prior=sd15", f"prior.pretrained={tiny_prior_folder}")
    assert code == 1
    assert "OutOfMemoryError: CUDA out of memory." in printed
    assert re.search(r"^autoencoder ", printed, re.MULTILINE) and re.search(r"^inpainting ", printed, re.MULTILINE)
    assert printed.rstrip().endswith("```")
    monkeypatch.setattr("rlsd_lightning.priors.measure", full)
    code, printed = train("calibrate", "prior=sd15", f"prior.pretrained={tiny_prior_folder}")
    assert (code, printed.count("error: memory is too small (CUDA out of memory.); set prior.weights=")) == (1, 1)


def test_settings_that_the_self_test_would_ignore_are_refused() -> None:
    code, printed = train("doctor", "data.images=nowhere")
    assert code == 1
    assert "prior must be named with other settings, such as prior=sd15, got data.images" in printed
