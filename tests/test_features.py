"""Features of the kernel, against the distances that they define."""

import shutil
from itertools import combinations
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.command import train
from support.networks import IMAGE_SIZE
from torch.nn.functional import cosine_similarity
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from rlsd_lightning import InputError, LPIPSFeatures, PixelFeatures, StableDiffusionPrior, VAEFeatures, ViTFeatures
from rlsd_lightning.features import _perceptual, load_lpips

LATENTS = torch.zeros(3, 4, 8, 8)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_half_precisions_activations_may_be_large() -> None:
    seen = torch.tensor([300.0, 0.0, 400.0, 0.0], dtype=torch.float16).view(1, 4, 1, 1)
    torch.testing.assert_close(_perceptual([(seen, 1.0)]), torch.tensor([[0.6, 0.0, 0.8, 0.0]]))


@pytest.mark.usefixtures("with_alexnet")
def test_the_squared_distance_of_lpips_features_is_lpips(images: torch.Tensor) -> None:
    features = LPIPSFeatures(local_files_only=True)(LATENTS, images)
    metric = LearnedPerceptualImagePatchSimilarity(net_type="alex")
    for i, j in combinations(range(3), 2):
        expected = metric(images[i : i + 1], images[j : j + 1]).detach()
        assert expected > 0
        torch.testing.assert_close((features[i] - features[j]).square().sum(), expected, rtol=1e-4, atol=1e-7)


def test_half_the_squared_distance_of_vae_features_is_the_encoders_cosine_distance(
    images: torch.Tensor, tiny_prior: StableDiffusionPrior, tiny_prior_folder: Path
) -> None:
    features = VAEFeatures(str(tiny_prior_folder), local_files_only=True)(LATENTS, images)
    seen = []
    hooks = [
        block.register_forward_hook(lambda _, inputs, output: seen.append(output))
        for block in tiny_prior.vae.encoder.down_blocks
    ]
    tiny_prior.encode(images)
    for hook in hooks:
        hook.remove()
    assert len(seen) == 3
    for i, j in combinations(range(3), 2):
        expected = sum(1 - cosine_similarity(layer[i], layer[j], dim=0).mean() for layer in seen)
        actual = (features[i] - features[j]).square().sum() / 2
        torch.testing.assert_close(actual, expected.detach(), rtol=1e-4, atol=1e-6)


def test_features_of_images_have_a_gradient_in_flat_ones_too(tiny_prior_folder: Path) -> None:
    flat = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE, requires_grad=True)
    VAEFeatures(str(tiny_prior_folder), local_files_only=True)(LATENTS[:1], flat).sum().backward()
    assert flat.grad.isfinite().all()


def test_lpips_without_weights_says_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    load_lpips.cache_clear()
    with pytest.raises(
        InputError, match=f"weights, which are not in torch's cache; copy .* to {tmp_path}/hub/checkpoints"
    ):
        LPIPSFeatures(local_files_only=True)


def test_lpips_whose_weights_cannot_be_fetched_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    load_lpips.cache_clear()
    with pytest.raises(InputError, match=r"can't be fetched .*; copy torchvision's alexnet"):
        LPIPSFeatures()


@pytest.mark.usefixtures("with_alexnet")
def test_lpips_of_images_below_its_smallest_size_is_refused() -> None:
    features = LPIPSFeatures(local_files_only=True)
    assert features(None, torch.zeros(1, 3, 31, 40)).isfinite().all()
    with pytest.raises(InputError, match="at least 31x31 pixels, got 40x30; choose PixelFeatures"):
        features(None, torch.zeros(1, 3, 30, 40))


def test_vae_features_need_the_encoders_weights_only(tiny_prior_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_prior_folder, tmp_path / "prior")
    (file,) = (folder / "vae").glob("*.safetensors")
    weights = load_file(file)

    def kept(part: str) -> None:
        save_file({key: value for key, value in weights.items() if not key.startswith(part)}, file, {"format": "pt"})

    kept("decoder.conv_out")
    VAEFeatures(folder, local_files_only=True)
    kept("encoder.conv_out")
    with pytest.raises(InputError, match=r"lacks the weights encoder\.conv_out\.bias, encoder\.conv_out\.weight"):
        VAEFeatures(folder, local_files_only=True)


@pytest.mark.parametrize(("pretrained", "fetch"), [("facebook/nothing", True), ("/no/such/folder", False)])
def test_only_a_models_name_can_be_fetched(pretrained: str, fetch: bool) -> None:
    for features in (VAEFeatures, ViTFeatures):
        with pytest.raises(InputError, match="check the path") as raised:
            features(pretrained, local_files_only=True)
        assert (f"`hf download {pretrained}`" in str(raised.value)) == fetch


def test_a_vit_without_all_of_its_weights_is_refused(tiny_features_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_features_folder, tmp_path / "vit")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("bias"))
    save_file(
        {key: value for key, value in weights.items() if key != name}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(InputError, match="lacks the weights"):
        ViTFeatures(folder, local_files_only=True)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=f"must be a folder of a transformers ViTModel, got '{folder}' \\(.+\\)"):
        ViTFeatures(folder, local_files_only=True)


def test_a_vit_sees_grey_images(tiny_features: ViTFeatures, images: torch.Tensor) -> None:
    grey = images[:, :1]
    torch.testing.assert_close(tiny_features(None, grey), tiny_features(None, grey.expand_as(images)))


def test_vae_features_see_grey_images(tiny_prior_folder: Path, images: torch.Tensor) -> None:
    features, grey = VAEFeatures(str(tiny_prior_folder), local_files_only=True), images[:, :1]
    torch.testing.assert_close(features(None, grey), features(None, grey.expand_as(images)))


@pytest.mark.parametrize("scale", [0.0, -0.1, float("nan"), float("inf")])
def test_a_scale_of_gamma_that_is_not_above_zero_is_refused(scale: float) -> None:
    with pytest.raises(InputError, match="gamma_scale must be above 0"):
        PixelFeatures(gamma_scale=scale)


def test_a_prior_without_a_vae_has_no_vae_features(tiny_pixel_folder: Path, tmp_path: Path) -> None:
    code, printed = train(
        "features=vae", "prior=pixel", f"prior.pretrained={tiny_pixel_folder}", f"output_dir={tmp_path / 'run'}"
    )
    assert code == 1, printed
    assert "features.pretrained must be a diffusers folder with a vae in safetensors, or a model's name, got" in printed
    assert str(tiny_pixel_folder) in printed


def test_vae_features_read_the_folders_that_priors_read(tiny_prior_folder: Path, tmp_path: Path) -> None:
    """A folder with weights of one variant only, in a cache of the hub."""
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0"
    shutil.copytree(tiny_prior_folder, snapshot)
    for file in snapshot.rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    plain = VAEFeatures(tiny_prior_folder, local_files_only=True)
    for folder in (snapshot, tmp_path / "models--a--b"):
        features = VAEFeatures(str(folder), local_files_only=True)
        assert torch.equal(features.encoder.conv_in.weight, plain.encoder.conv_in.weight)
