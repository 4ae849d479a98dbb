"""The recipes of the two small priors, on faces of noise and for a few steps; each is stopped once and started again."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from examples.small_priors import flow, pixels
from rlsd_lightning.priors import PixelPrior, Prior, SanaPrior
from tests.examples.test_face_prior import make_faces

MOST_BYTES = 3_000_000


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    common = [
        "--faces",
        str(make_faces(root / "faces", 24, size=64)),
        "--work",
        str(root / "work"),
        "--batch-size",
        "4",
    ]
    for steps in ("2", "4"):
        flow.main([*common, "--steps", steps, "--autoencoder-steps", steps, "--out", str(root / "flow")])
        pixels.main([*common, "--steps", steps, "--out", str(root / "pixels")])
    return root


@pytest.mark.parametrize("name", ["flow/autoencoder", "flow/transformer", "pixels"])
def test_a_training_goes_on_from_its_checkpoint(trained: Path, name: str):
    checkpoint = torch.load(trained / "work" / name / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4


@pytest.mark.parametrize("name", ["flow", "pixels"])
def test_the_weights_are_small_and_in_half_precision(trained: Path, name: str):
    files = list((trained / name).rglob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) < MOST_BYTES
    assert {value.dtype for file in files for value in load_file(file).values()} == {torch.float16}


@pytest.mark.parametrize(
    ("name", "kind", "latent_shape", "prediction"),
    [("flow", SanaPrior, (16, 8, 8), "flow"), ("pixels", PixelPrior, (3, 32, 32), "epsilon")],
)
def test_the_folder_loads_as_a_prior(trained: Path, name: str, kind: type[Prior], latent_shape: tuple, prediction: str):
    prior = kind(str(trained / name), local_files_only=True)
    assert prior.latent_shape == latent_shape
    assert prior.prediction_type == prediction
    with torch.no_grad():
        z_hat, eps_hat = prior.denoise(torch.zeros(1, *latent_shape), 500)
    assert z_hat.isfinite().all() and eps_hat.isfinite().all()


def test_the_prior_asks_the_network_as_the_training_did(trained: Path):
    prior = SanaPrior(str(trained / "flow"), local_files_only=True)
    torch.manual_seed(0)
    z, noise = torch.randn(2, 1, *prior.latent_shape)
    t = 500
    level = prior.sigma(t)
    tokenizer, encoder = flow.make_text_parts()
    assert len(tokenizer) == encoder.config.vocab_size
    pipeline = prior.pipeline.from_pretrained(trained / "flow", torch_dtype=torch.float32)
    text, mask, *_ = pipeline.encode_prompt("", do_classifier_free_guidance=False)
    module = flow.FlowMatching(text.detach(), mask)
    module.transformer.load_state_dict(pipeline.transformer.state_dict())
    z_t = (1 - level) * z + level * noise
    with torch.no_grad():
        torch.testing.assert_close(prior.network(z_t, t), module.velocity(z_t, level.view(1)), atol=1e-4, rtol=1e-4)
