"""The recipe of the photo prior: its patches, its resumable training and the folder that it writes."""

import argparse

import pytest
import torch
from PIL import Image
from torch import nn

from examples.photo_prior import autoencoder, denoiser, report
from examples.photo_prior.patches import Patches, augment, pyramid
from examples.photo_prior.photographs import read_table
from examples.photo_prior.training import Progress, learning_rate, train
from rlsd_lightning.images import find_images
from rlsd_lightning.priors import StableDiffusionPrior


def test_table_leaves_out_the_photographs_of_the_figures():
    rows = read_table()
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert not {path.stem for path in find_images("data/photos")} & set(names)
    assert {row.use for row in rows} == {"training", "validation"}
    assert all(all(row) for row in rows)


def test_patches_are_parts_of_the_pictures_or_mirrored():
    picture = torch.arange(12 * 10 * 3).view(12, 10, 3).remainder(251).to(torch.uint8)
    patches = Patches([picture]).sample(200, 9)
    whole = picture.movedim(-1, 0).float() / 255
    parts = [whole[:, top : top + 9, left : left + 9] for top in range(4) for left in range(2)]
    parts += [part.flip(-1) for part in parts]
    counts = [sum(torch.equal(patch, part) for patch in patches) for part in parts]
    assert sum(counts) == 200
    assert min(counts) > 0


def test_pictures_that_are_too_small_are_never_drawn():
    small, large = torch.zeros(8, 8, 3), torch.full((16, 16, 3), 255)
    patches = Patches([small.to(torch.uint8), large.to(torch.uint8)]).sample(64, 9)
    assert patches.min() == 1


def test_pyramid_ends_at_the_smallest_side():
    sizes = [scale.shape for scale in pyramid(torch.zeros(64, 128, 3, dtype=torch.uint8), 32)]
    assert sizes == [(64, 128, 3), (45, 91, 3), (32, 64, 3)]


def test_augmented_patches_stay_in_range():
    images = augment(torch.rand(8, 3, 16, 16))
    assert images.min() >= -1
    assert images.max() <= 1


@pytest.mark.parametrize(("minutes", "seconds", "share"), [(None, 0, 0.5), (2.0, 30, 0.25), (0.0, 1, 1.0)])
def test_share_counts_steps_or_minutes(minutes, seconds, share):
    progress = Progress(steps=1000, minutes=minutes, step=500, seconds=seconds)
    assert progress.share == pytest.approx(share)
    assert (learning_rate(1.0, progress) == 0) == (share == 1)


def test_training_goes_on_from_its_checkpoint(tmp_path):
    args = argparse.Namespace(lr=0.1, steps=4, minutes=None, log_every=100, save_every=1e9)
    model, calls = nn.Linear(2, 1), []

    def loss():
        calls.append(1)
        return {"loss": model(torch.ones(1, 2)).square().sum()}

    train(model, loss, args, tmp_path / "model.pt")
    weights = model.weight.detach().clone()
    args.steps = 6
    model.weight.data.zero_()
    train(model, loss, args, tmp_path / "model.pt")
    assert len(calls) == 6
    assert not torch.equal(model.weight, torch.zeros_like(weights))


def test_recipe_writes_a_prior_that_loads(tmp_path):
    for use in ("training", "validation"):
        (tmp_path / use).mkdir()
        Image.effect_noise((48, 40), 60).convert("RGB").save(tmp_path / use / "noise.png")
    common = ["--photographs", str(tmp_path / "training"), "--out", str(tmp_path / "prior"), "--work", str(tmp_path)]
    common += ["--steps", "2", "--batch-size", "2", "--patch-size", "32", "--log-every", "1"]
    autoencoder.main([*common, "--channels", "16", "16", "16", "--latent-channels", "4"])
    denoiser.main([*common, "--channels", "32", "32"])
    folders = ["--photos", str(tmp_path / "training"), "--validation", str(tmp_path / "validation")]
    report.main(["--prior", str(tmp_path / "prior"), "--out", str(tmp_path / "report"), "--steps", "2", *folders])
    prior = StableDiffusionPrior(str(tmp_path / "prior"), image_size=(32, 48))
    image = torch.rand(1, 3, 32, 48) * 2 - 1
    z = prior.encode(image)
    assert prior.decode(z).shape == image.shape
    assert prior.denoise(torch.randn_like(z), 999)[0].isfinite().all()
    assert prior.prediction_type == "v_prediction"
    assert prior.alphas[-1] == 0
    assert (tmp_path / "report" / "samples_64.png").is_file()
