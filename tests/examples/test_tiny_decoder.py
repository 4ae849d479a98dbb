"""The recipe of the tiny decoders, on a tiny prior and for a few steps."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from examples import tiny_decoder
from rlsd_lightning import StableDiffusionPrior
from rlsd_lightning.priors.loading import TinyDecoder

LATENTS, SIZE = 64, 32


@pytest.fixture
def arguments(tiny_prior_folder: Path, tmp_path: Path) -> list[str]:
    """A command on pictures of noise."""
    torch.manual_seed(0)
    (tmp_path / "pictures").mkdir()
    for index in range(3):
        pixels = torch.randint(256, (SIZE + 8, SIZE + 8, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "pictures" / f"{index}.png")
    shutil.copytree(tiny_prior_folder, tmp_path / "prior")
    settings = {"prior": "prior", "images": "pictures", "work": "work"}
    options = [word for name, folder in settings.items() for word in (f"--{name}", str(tmp_path / folder))]
    sizes = {"image-size": SIZE, "latents": LATENTS, "batch-size": 4, "log-every": 1}
    return [*options, *(word for name, value in sizes.items() for word in (f"--{name}", str(value)))]


def test_a_training_goes_on_and_writes_a_decoder_that_nears_the_own_one(arguments: list[str], tmp_path: Path):
    tiny_decoder.main([*arguments, "--steps", "2"])
    latents, images = torch.load(tmp_path / "work" / "latents.pt")
    folder = tmp_path / "prior" / "tiny_decoder"

    def error() -> float:
        with torch.no_grad():
            return (TinyDecoder(str(folder))(latents) - images).square().mean().item()

    first = error()
    tiny_decoder.main([*arguments, "--steps", "60"])
    assert torch.load(tmp_path / "work" / "last.ckpt")["progress"]["step"] == 60
    assert error() < first
    assert {value.dtype for value in load_file(next(folder.glob("*.safetensors"))).values()} == {torch.float16}


def test_the_latents_are_four_kinds_in_equal_parts_and_images_their_decodes(arguments: list[str], tmp_path: Path):
    tiny_decoder.main([*arguments, "--steps", "1"])
    latents, images = torch.load(tmp_path / "work" / "latents.pt")
    prior = StableDiffusionPrior(str(tmp_path / "prior"), tiny_decoder=None)
    assert latents.shape == (LATENTS, *prior.latent_shape)
    with torch.no_grad():
        torch.testing.assert_close(prior.decode(latents), images, atol=1e-5, rtol=1e-5)
    clean, noisy, estimated, drawn = latents.chunk(4)
    means = [part.mean(0) for part in (clean, noisy, estimated, drawn)]
    assert all(not torch.allclose(one, other) for one in means for other in means if one is not other)
