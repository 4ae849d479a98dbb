"""The commands that make the embedded prior, on a handful of made-up faces and for a few steps."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from examples.face_prior import autoencoder, diffusion, features, report
from examples.face_prior.classifier import load_classifier
from examples.face_prior.faces import Faces, partial_caption
from rlsd_lightning.evaluation.attributes import ATTRIBUTES
from rlsd_lightning.features import ViTFeatures

SIZE = 32


def make_faces(folder: Path, count: int, seed: int = 0, size: int = SIZE) -> Path:
    """What the generator writes, with noise in place of faces."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    np.save(folder / "images.npy", rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8))
    attributes = [{name: str(rng.choice(values)) for name, values in ATTRIBUTES.items()} for _ in range(count)]
    for entry in attributes:
        entry["caption"] = f"a face, {entry['skin']} skin, {entry['hair']} hair"
    (folder / "attributes.json").write_text(json.dumps(attributes))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three trainings, one after the other; each stopped once and started again."""
    root = tmp_path_factory.mktemp("miniature")
    common = ["--faces", str(make_faces(root / "faces", 24)), "--work", str(root / "work"), "--batch-size", "4"]
    for steps in ("4", "8"):
        features.main([*common, "--steps", steps, "--out", str(root / "features")])
        perceptual = ["--perceptual", str(root / "features")]
        autoencoder.main([*common, *perceptual, "--steps", steps, "--out", str(root / "prior")])
        out = ["--out", str(root / "prior"), "--channels", "16", "32"]
        diffusion.main([*common, *out, "--steps", steps])
    return root


@pytest.mark.parametrize("name", ["features", "autoencoder", "diffusion"])
def test_a_training_goes_on_from_its_checkpoint(trained: Path, name: str) -> None:
    checkpoint = torch.load(trained / "work" / name / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 8
    (optimizer,) = checkpoint["optimizer_states"]
    assert {int(state["step"]) for state in optimizer["state"].values()} == {8}


def test_the_pipeline_loads_by_itself_and_samples(trained: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(trained / "prior", low_cpu_mem_usage=False)
    images = report.sample(pipeline, ["a face, light skin"] * 2, guidance_scale=2.0, steps=2, seed=0)
    assert images.shape == (2, 3, SIZE, SIZE)
    again = report.sample(pipeline, ["a face, light skin"] * 2, guidance_scale=2.0, steps=2, seed=0)
    other = report.sample(pipeline, ["a face, dark skin"] * 2, guidance_scale=2.0, steps=2, seed=0)
    assert torch.equal(images, again)
    assert not torch.equal(images, other)


def test_the_saved_unet_is_the_average(trained: Path) -> None:
    saved = StableDiffusionPipeline.from_pretrained(trained / "prior", low_cpu_mem_usage=False).unet.state_dict()
    checkpoint = torch.load(trained / "work" / "diffusion" / "last.ckpt", weights_only=True)
    # Lightning keeps the average where the weights are and the trained weights beside them
    average = checkpoint["state_dict"]["unet.conv_in.weight"]
    current = checkpoint["current_model_state"]["unet.conv_in.weight"]
    torch.testing.assert_close(saved["conv_in.weight"], average)
    assert not torch.equal(average, current)


def test_a_training_that_goes_on_or_starts_from_weights_keeps_its_tokenizer(trained: Path, tmp_path: Path) -> None:
    def vocabulary(folder: Path) -> dict[str, int]:
        return CLIPTokenizer.from_pretrained(folder / "tokenizer").get_vocab()

    assert vocabulary(trained / "work" / "diffusion") == vocabulary(trained / "prior")
    shutil.copytree(trained / "prior", tmp_path / "prior")
    folders = ["--faces", str(trained / "faces"), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "prior")]
    still = ["--lr", "0", "--steps", "4", "--batch-size", "4", "--channels", "16", "32"]
    diffusion.main([*folders, *still, "--start", str(trained / "prior")])
    assert vocabulary(tmp_path / "prior") == vocabulary(trained / "prior")
    for part in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        before, after = load_file(trained / "prior" / part), load_file(tmp_path / "prior" / part)
        for name in before:
            torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (1.0, 24)])
def test_a_share_of_the_faces_loses_its_caption(share: float, expected: int, trained: Path) -> None:
    faces, tokenizer = Faces(trained / "faces"), CLIPTokenizer.from_pretrained(trained / "prior" / "tokenizer")
    data = diffusion.CaptionedLatents(torch.zeros(24, 4, 8, 8), faces.captions, tokenizer, share)
    _, tokens = data.collate(list(range(24)))
    empty = tokenizer("", padding="max_length", return_tensors="pt").input_ids
    assert (tokens == empty).all(dim=1).sum() == expected


def test_the_feature_network_loads_as_features(trained: Path) -> None:
    network = ViTFeatures(str(trained / "features"), local_files_only=True)
    assert network(torch.zeros(2, 4, 8, 8), torch.rand(2, 3, SIZE, SIZE)).shape == (2, 128)
    assert load_classifier(trained / "features").predict(torch.rand(2, 3, SIZE, SIZE)).shape == (2, 7)


def test_the_report_measures_and_draws(trained: Path, tmp_path: Path) -> None:
    heldout = tmp_path / "heldout"
    heldout.mkdir()
    Image.fromarray(np.full((SIZE, SIZE, 3), 200, np.uint8)).save(heldout / "000.png")
    fresh = make_faces(tmp_path / "fresh", 8, seed=1)
    folders = {"prior": trained / "prior", "features": trained / "features", "heldout": heldout, "fresh": fresh}
    options = [f"--{name}={folder}" for name, folder in folders.items()]
    sizes = ["--count=4", "--per-prompt=2", "--steps=2"]
    report.main([*options, *sizes, f"--out={tmp_path / 'out'}"])
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert set(figures["prompts"]) == set(report.PROMPTS)
    assert all(0 <= share <= 1 for share in figures["prompts"].values())
    assert figures["frechet_samples"] > figures["frechet_fresh"] > 0
    assert (tmp_path / "out" / "samples.png").is_file()
    with pytest.raises(SystemExit, match="20 fresh faces are needed"):
        report.main([*options, "--count=10", f"--out={tmp_path / 'out'}"])


def test_whitening_leaves_reconstructions_and_makes_latents_white(tiny_prior_folder: Path) -> None:
    vae = AutoencoderKL.from_pretrained(tiny_prior_folder / "vae", low_cpu_mem_usage=False).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, 3, SIZE, SIZE, generator=generator) * 2 - 1
    with torch.no_grad():
        before = vae.encode(images).latent_dist
        reconstructed = vae.decode(before.mean).sample
    autoencoder.whiten(vae, images)
    with torch.no_grad():
        after = vae.encode(images).latent_dist
        torch.testing.assert_close(vae.decode(after.mean).sample, reconstructed, atol=1e-4, rtol=1e-3)
    latents = after.mean.movedim(1, 0).flatten(1)
    torch.testing.assert_close(latents.mean(1), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.cov(latents), torch.eye(4), atol=1e-2, rtol=0)
    assert vae.config.scaling_factor == 1

    # the posterior's variance: that of the linear map of the channels' noise
    covariance = torch.cov(before.mean.movedim(1, 0).flatten(1))
    eigenvalues, vectors = torch.linalg.eigh(covariance.double())
    whitening = (vectors * eigenvalues.rsqrt()) @ vectors.T
    wanted = torch.einsum("ij,njhw->nihw", whitening**2, before.var.double())
    torch.testing.assert_close(after.var.double(), wanted, rtol=0.2, atol=0)


def test_a_partial_caption_keeps_its_beginning() -> None:
    rng = random.Random(0)
    kept = {partial_caption("a face, tan skin, a beard", 0.5, rng) for _ in range(50)}
    assert kept == {"a face", "a face, tan skin", "a face, a beard", "a face, tan skin, a beard"}
    assert partial_caption("a face, tan skin", 0.0, rng) == "a face"
    assert partial_caption("a face, tan skin", 1.0, rng) == "a face, tan skin"


def test_missing_faces_name_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"generate\.mjs --split train"):
        Faces(tmp_path)
