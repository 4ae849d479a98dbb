"""LoRA weights: those of peft give the adapted network's outputs, and those of another model are refused."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from examples.face_prior.consistency import Consistency, save_lora
from rlsd_lightning import InputError, StableDiffusionPrior

NAME = "pytorch_lora_weights.safetensors"


def adapted(folder: Path, saved: Path) -> Consistency:
    """A consistency model of a pipeline with random LoRA weights, which it saves."""
    torch.manual_seed(0)
    module = Consistency(StableDiffusionPipeline.from_pretrained(folder), rank=4)
    with torch.no_grad():
        for name, weights in module.unet.named_parameters():
            if "lora_B" in name:
                weights.normal_(std=0.1, generator=torch.Generator().manual_seed(0)).copy_(weights.half())
            elif "lora_A" in name:
                weights.copy_(weights.half())
    save_lora(saved, module.unet)
    module.unet.float()
    return module


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_lora_gives_the_outputs_of_the_adapted_network(kind: str, tiny_prior_folder: Path, tmp_path: Path):
    module = adapted(tiny_prior_folder, tmp_path)
    given = tmp_path if kind == "folder" else shutil.move(tmp_path / NAME, tmp_path / "style.safetensors")
    prior, plain = (StableDiffusionPrior(str(tiny_prior_folder), lora=lora) for lora in (str(given), None))
    z = torch.randn(2, *prior.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = module.unet(z, 500, prior.text.expand(2, -1, -1)).sample
        torch.testing.assert_close(prior.network(z, 500), expected, rtol=1e-3, atol=1e-3)
        assert (plain.network(z, 500) - expected).abs().max() > 0.05
    assert not any("lora" in name for name in prior.state_dict())


def renamed(weights: dict) -> dict:
    return {name.replace("down_blocks.0", "down_blocks.7"): value for name, value in weights.items()}


def larger(weights: dict) -> dict:
    return {name: torch.cat((value, value)) if "lora_B" in name else value for name, value in weights.items()}


def zero(weights: dict) -> dict:
    return {name: torch.zeros_like(value) for name, value in weights.items()}


@pytest.mark.parametrize("spoil", [renamed, larger, zero])
def test_a_lora_of_another_model_is_refused(spoil, tiny_prior_folder: Path, tmp_path: Path):
    adapted(tiny_prior_folder, tmp_path)
    save_file(spoil(load_file(tmp_path / NAME)), tmp_path / NAME)
    with pytest.raises(InputError, match=r"^lora.*made for (its|the same) base model"):
        StableDiffusionPrior(str(tiny_prior_folder), lora=str(tmp_path))


@pytest.mark.parametrize("content", [None, b"no weights"])
def test_what_is_no_lora_is_refused(content: bytes | None, tiny_prior_folder: Path, tmp_path: Path):
    given = tmp_path / "lora.safetensors"
    if content:
        given.write_bytes(content)
    with pytest.raises(
        InputError, match=rf"^lora must be LoRA weights for this StableDiffusionPipeline, got '{given}'"
    ):
        StableDiffusionPrior(str(tiny_prior_folder), lora=str(given), local_files_only=True)
