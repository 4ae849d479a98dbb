"""The judge: what it knows of faces, and that figures of a set are its own."""

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from examples.face_prior.faces import attribute_labels
from rlsd_lightning import embedded
from rlsd_lightning.errors import InputError
from rlsd_lightning.evaluation.attributes import ATTRIBUTES, SHARES
from rlsd_lightning.evaluation.figures import Networks, attribute_scores, image_figures
from rlsd_lightning.evaluation.judge import JudgeFeatures, load_judge
from rlsd_lightning.images import find_images, load_image
from rlsd_lightning.measurement import SavedMeasurement

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
POSTERIOR = Path(__file__).resolve().parents[2] / "data" / "faces" / "posterior.json"
JUDGE = embedded("features/judge")


@pytest.fixture(scope="module")
def faces() -> Tensor:
    """The held-out faces."""
    return torch.cat([load_image(file, 64, 64) for file in find_images(embedded("faces/heldout"))])


def test_the_judge_names_the_attributes_of_faces_that_it_has_not_seen(faces: Tensor):
    entries = json.loads((embedded("faces/heldout") / "attributes.json").read_text())
    labels = torch.stack([attribute_labels(entry) for entry in entries])
    right = (load_judge(JUDGE).predict(faces) == labels).double().mean(dim=0)
    assert dict(zip(ATTRIBUTES, (right >= 0.93).tolist(), strict=True)) == dict.fromkeys(ATTRIBUTES, True)


def test_features_are_centred_and_do_not_change_what_the_heads_say(faces: Tensor):
    judge = load_judge(JUDGE)
    features = judge.features(faces)
    assert (features.mean(dim=0).norm() / features.norm(dim=1).mean()).item() < 0.3
    logits = judge.heads["smile"](features + judge.centre)
    torch.testing.assert_close(judge(faces)["smile"], logits)


@pytest.mark.parametrize("size", [32, 64, 100])
def test_images_of_any_size_have_features(size: int):
    assert JudgeFeatures(JUDGE)(None, torch.zeros(2, 3, size, size)).shape == (2, 96)


def test_a_folder_without_weights_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"pretrained must be a folder with judge\.safetensors, got"):
        load_judge(tmp_path)


def test_no_kernel_of_the_configs_is_the_judge():
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for task in ("inpaint", "super_resolution", "colorize"):
            cfg = compose("train", [f"task={task}", "output_dir=unused"])
            assert cfg.callbacks.results.features.pretrained != cfg.features.pretrained
            assert cfg.callbacks.results.features._target_.endswith("JudgeFeatures")


def test_different_faces_count_more_than_one_face(faces: Tensor):
    networks = Networks("unused", None, None, judge=load_judge(JUDGE))
    figures = [
        image_figures(SavedMeasurement("a", images, {}, faces[:1]), networks)
        for images in (faces[:4], faces[:1].expand(4, -1, -1, -1))
    ]
    assert figures[0]["vendi_judge"] > 3
    assert figures[1]["vendi_judge"] == pytest.approx(1, abs=0.01)
    assert figures[1]["crps"] == figures[1]["energy_score"] == 0 < figures[0]["crps"]


def test_brier_scores_of_the_right_and_of_a_wrong_face(faces: Tensor):
    judge = load_judge(JUDGE)
    labels = judge.predict(faces)[:, list(ATTRIBUTES).index("smile")]
    same, other = faces[labels == labels[0]][:1], faces[labels != labels[0]][:1]
    scores = [attribute_scores(each.expand(4, -1, -1, -1), same, judge) for each in (same, other)]
    assert scores[0] == dict.fromkeys((f"{name}_brier" for name in SHARES), 0.0)
    assert scores[1]["smile_brier"] == 2


def test_seeds_of_the_exact_posterior_are_complete():
    found = json.loads(POSTERIOR.read_text())
    assert len(found) == 32
    for face in found:
        assert len(face["sweeps"]) == 256 + 16
        assert {len(sweep) for sweep in face["sweeps"]} == {len(face["groups"])}
        # what the upper half can't show is free, and a proposal of free parts counts in most states of the others
        assert {"smile", "jersey", "bodySize"} <= set(face["groups"][0])
        assert sum(sweep[0] == "1" for sweep in face["sweeps"]) > 0.5 * len(face["sweeps"])
