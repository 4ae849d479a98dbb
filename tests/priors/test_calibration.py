"""Scales that are measured of a prior, where they are kept, and who takes them."""

import json
import logging
import os
import stat
from pathlib import Path

import pytest
import torch
from support.command import train
from torch import Tensor

from rlsd_lightning import RLSD, InputError, LatentFeatures, Measurement, Prior, TwistedFilter
from rlsd_lightning.images import load_image
from rlsd_lightning.operators import denoising
from rlsd_lightning.priors import Calibration, GaussianMixturePrior, StableDiffusionPrior, measure, save_calibration
from rlsd_lightning.priors.measured.calibration import DETAIL_OF_PICTURES, EXACT_DECODER_STD, saved_calibration
from rlsd_lightning.resources import embedded

SHAPE = (3, 16, 16)
KNOWN = Calibration(0.02, 0.03, 0.4, 0.9, (0.8, 1.1), 12, "pictures")


class Lossy(Prior):
    """Latents are images at half the size, twice as large; noise is all that the network sees."""

    def __init__(self, image_shape: tuple[int, ...] = SHAPE) -> None:
        alphas = torch.linspace(0.999, 0.01, 50)
        channels, height, width = image_shape
        super().__init__(alphas, (1 - alphas.square()).sqrt(), (channels, height // 2, width // 2), image_shape)
        self.freeze()

    def network(self, z_t: Tensor, t: int) -> Tensor:
        return self.sigma(t) * z_t  # the noise of white latents

    def encode(self, images: Tensor) -> Tensor:
        return 2 * images[..., ::2, ::2]

    def decode(self, z: Tensor) -> Tensor:
        return (z / 2).repeat_interleave(2, -1).repeat_interleave(2, -2)


def pictures(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list((0.5 * torch.randn(count, 1, *SHAPE, generator=generator)).clamp(-1, 1))


@pytest.mark.parametrize("count", [1, 2, 40])
def test_scales_of_pictures(count: int) -> None:
    found = measure(Lossy(), given := pictures(count))
    every = torch.cat(given)
    errors = (every - every[..., ::2, ::2].repeat_interleave(2, -1).repeat_interleave(2, -2)).square().mean((1, 2, 3))
    assert found.decoder_std == pytest.approx(errors.mean().sqrt().item(), rel=5e-3)
    assert found.largest_error == pytest.approx(errors.sqrt().quantile(0.95).item(), rel=5e-3)
    assert found.image_std == pytest.approx(0.48, rel=0.07)  # normal deviates of 0.5, clipped
    assert found.latent_std == pytest.approx(2 * every[..., ::2, ::2].std().item(), rel=5e-3)
    assert found.latent_rms[0] <= found.latent_std * 1.01 and found.latent_rms[1] >= found.latent_std * 0.99
    assert (found.count, found.measured_on) == (count, "pictures")


def test_levels_are_no_wider_than_the_networks() -> None:
    prior = Lossy()
    prior.alphas, prior.sigmas = prior.alphas.double(), prior.sigmas.double()
    prior.layer = torch.nn.Linear(1, 1)
    prior.freeze()
    assert prior.alphas.dtype == prior.sigmas.dtype == torch.float32
    assert measure(prior, pictures(1)).count == 1


def test_a_broken_link_among_the_weights_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "old.safetensors").symlink_to(tmp_path / "gone")
    save_calibration(tmp_path, (3, 64, 64), KNOWN)
    assert saved_calibration(tmp_path, (3, 64, 64)) == KNOWN


def test_no_picture_is_one_line() -> None:
    with pytest.raises(InputError, match="one picture at least is expected"):
        measure(Lossy(), [])


def test_scales_of_own_samples() -> None:
    prior = Lossy()
    found = measure(prior)
    assert found.measured_on == "samples"
    assert found.latent_std == pytest.approx(1, rel=0.12)  # white latents; 20 steps of DDIM lose a tenth
    # a decoder reconstructs its own samples, but not pictures; only what clamping takes away remains here
    z = torch.randn(1000, *prior.latent_shape)
    clamped = prior.decode(z).clamp(-1, 1)
    error = DETAIL_OF_PICTURES * (prior.decode(prior.encode(clamped)) - clamped).square().mean().sqrt().item()
    assert found.decoder_std == pytest.approx(error or EXACT_DECODER_STD)


@pytest.mark.parametrize(("means", "std"), [([[0, 0]], 0.8), ([[-1, 0], [1, 0]], 0.1), ([[0, 0, 0], [2, 2, 2]], 0.5)])
def test_scales_of_a_mixture_are_its_own(means: list[list[float]], std: float) -> None:
    found = measure(GaussianMixturePrior(means, std))
    spread = torch.tensor(means, dtype=torch.float32).var(dim=0, correction=0).mean().item()
    assert found.image_std == pytest.approx((spread + std**2) ** 0.5, rel=0.12)
    assert found.decoder_std == EXACT_DECODER_STD


@pytest.mark.parametrize("infinite", [float("nan"), float("inf")])
def test_samples_that_are_not_finite_are_refused(infinite: float, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = Lossy()
    monkeypatch.setattr(prior, "decode", lambda z: infinite * torch.ones(len(z), *SHAPE))
    with pytest.raises(InputError, match="finite samples is expected, got NaN or infinity; set weights=float32"):
        measure(prior)


# --- where they are kept -------------------------------------------------------------------------------------------


def test_each_size_has_its_entry_and_others_take_the_nearest(tmp_path: Path) -> None:
    large = KNOWN._replace(decoder_std=0.01)
    assert save_calibration(tmp_path, (3, 64, 64), KNOWN) == tmp_path / "calibration.json"
    save_calibration(tmp_path, (3, 256, 256), large)
    assert list(json.loads((tmp_path / "calibration.json").read_text())) == ["64x64", "256x256"]
    for side, entry in ((16, KNOWN), (64, KNOWN), (100, KNOWN), (160, large), (1024, large)):
        assert saved_calibration(tmp_path, (3, side, side)) == entry
    assert saved_calibration(tmp_path, (3, 32, 1024)) == large
    save_calibration(tmp_path, (3, 256, 256), KNOWN)
    assert saved_calibration(tmp_path, (3, 256, 256)) == KNOWN


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_calibration(tmp_path, (3, 64, 64), KNOWN)

    def half(file: Path, text: str, **options: str) -> None:
        file.write_bytes(text[: len(text) // 2].encode())
        raise OSError

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError):
        save_calibration(tmp_path, (3, 256, 256), KNOWN)
    assert saved_calibration(tmp_path, (3, 64, 64)) == KNOWN


@pytest.mark.parametrize("origin", ["org/name", "read-only", "model.safetensors"])
def test_the_cache_keeps_what_a_folder_does_not(origin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    path = Path(origin)
    if origin == "read-only":
        path.mkdir()
        save_calibration(path, (3, 64, 64), KNOWN._replace(decoder_std=0.5))
        path.chmod(stat.S_IRUSR | stat.S_IXUSR)
        monkeypatch.setattr("os.access", lambda *_: False)  # which root is never told
    elif origin.endswith("safetensors"):
        path.touch()
    file = save_calibration(path, (3, 64, 64), KNOWN)
    weights = saved_calibration(path, (3, 64, 64)).weights
    path.chmod(stat.S_IRWXU) if path.exists() else None
    assert file.is_relative_to(tmp_path / "cache" / "rlsd-lightning")
    assert saved_calibration(path, (3, 64, 64)) == KNOWN._replace(weights=weights)
    assert saved_calibration(tmp_path / "other" / origin, (3, 64, 64)) is None


def test_of_two_calibrations_the_newer_one_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prior = tmp_path / "prior"
    prior.mkdir()
    with monkeypatch.context() as no_access:
        no_access.setattr("os.access", lambda *_: False)
        cached = save_calibration(prior, (3, 64, 64), KNOWN)
    os.utime(cached, (1, 1))
    newer = KNOWN._replace(decoder_std=0.5)
    beside = save_calibration(prior, (3, 64, 64), newer)
    assert beside.parent == prior
    assert saved_calibration(prior, (3, 64, 64)) == newer
    os.utime(beside, (0, 0))
    assert saved_calibration(prior, (3, 64, 64)) == KNOWN


@pytest.mark.parametrize("file", ["vae/model.safetensors", "unet/model.bin", "model.ckpt"])
def test_a_calibration_of_other_weights_is_left_out(
    file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights, tiny = tmp_path / file, tmp_path / "tiny_decoder" / "model.safetensors"
    for path in (weights, tiny):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(100_000))
    save_calibration(tmp_path, (3, 64, 64), KNOWN)
    tiny.write_bytes(bytes(10))  # it is not measured
    assert saved_calibration(tmp_path, (3, 64, 64)).decoder_std == KNOWN.decoder_std
    assert not caplog.records
    weights.write_bytes(bytes(99_999) + b"1")
    assert saved_calibration(tmp_path, (3, 64, 64)) is None
    assert "was measured on other weights at 64x64" in caplog.text
    save_calibration(tmp_path, (3, 32, 32), KNOWN)
    assert saved_calibration(tmp_path, (3, 64, 64)).weights == saved_calibration(tmp_path, (3, 32, 32)).weights
    assert list(json.loads((tmp_path / "calibration.json").read_text())) == ["32x32"]


@pytest.mark.parametrize("name", ["faces", "photos"])
def test_the_embedded_calibrations_are_of_the_embedded_weights(name: str, caplog: pytest.LogCaptureFixture) -> None:
    found = saved_calibration(Path(embedded(f"priors/{name}")), (3, 64, 64))
    assert found.weights and not caplog.records


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"64x64": {"decoder_std": 1}}', '{"large": {}}', '{"64x64": 3}'])
def test_a_damaged_file_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(
        InputError, match=r"calibration.json' can't be read \(.+\); delete it, or run rlsd calibrate again"
    ):
        saved_calibration(tmp_path, (3, 64, 64))


@pytest.mark.parametrize(("name", "folder", "count"), [("faces", "faces/heldout", 12), ("photos", "photos", 6)])
def test_what_is_shipped_agrees_with_pictures_that_were_not_measured(name: str, folder: str, count: int) -> None:
    prior = StableDiffusionPrior(str(embedded(f"priors/{name}")), local_files_only=True)
    files = sorted(file for file in embedded(folder).iterdir() if file.suffix in (".png", ".jpg"))[:count]
    again, shipped = measure(prior, [load_image(file, 64, 64) for file in files]), prior.calibration
    assert shipped.measured_on == "pictures"
    assert again.decoder_std == pytest.approx(shipped.decoder_std, rel=0.2)
    assert again.image_std == pytest.approx(shipped.image_std, rel=0.2)
    assert again.latent_std == pytest.approx(shipped.latent_std, rel=0.1)


def test_own_samples_stand_for_pictures() -> None:
    prior = StableDiffusionPrior(str(embedded("priors/faces")), local_files_only=True)
    own, shipped = measure(prior), prior.calibration
    assert own.decoder_std == pytest.approx(shipped.decoder_std, rel=0.5)
    assert own.image_std == pytest.approx(shipped.image_std, rel=0.2)
    assert own.latent_std == pytest.approx(shipped.latent_std, rel=0.1)


# --- who takes them ------------------------------------------------------------------------------------------------


def measured_prior(monkeypatch: pytest.MonkeyPatch) -> Lossy:
    monkeypatch.setattr("rlsd_lightning.priors.base.measure", lambda prior: KNOWN)
    return Lossy()


def one() -> Measurement:
    physics = denoising(SHAPE)
    return Measurement("one", torch.zeros(1, *SHAPE), physics)


@pytest.mark.parametrize(
    ("method", "given"),
    [
        (RLSD, {}),
        (RLSD, {"image_std": 0.7}),
        (TwistedFilter, {"decoder_std": 0.0}),
        (TwistedFilter, {"latent_std": 2.0}),
    ],
)
def test_what_is_not_given_is_the_priors(
    method: type, given: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = method(measured_prior(monkeypatch), one(), LatentFeatures(), num_steps=5, **given)
    names = {"decoder_std", "image_std", "latent_std"} & module.hparams.keys()
    assert len(names) == 3
    expected = {name: given.get(name, KNOWN._asdict()[name]) for name in names}
    assert {name: module.hparams[name] for name in names} == expected
    assert {name: module.hparams_initial[name] for name in names} == expected  # what loggers write
    assert module.decoder_std == expected["decoder_std"]


def test_nothing_is_measured_where_all_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = Lossy()
    monkeypatch.setattr("rlsd_lightning.priors.base.measure", lambda prior: pytest.fail("measured"))
    RLSD(prior, one(), LatentFeatures(), num_steps=5, decoder_std=0.1, latent_std=1.0, image_std=0.5)


def test_another_calibration_is_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    prior, settings = measured_prior(monkeypatch), {"num_steps": 5, "decoder_std": 0.1}
    first, same, other = (
        RLSD(prior, one(), LatentFeatures(), image_std=std, **settings).identity.digest for std in (0.4, None, 0.5)
    )
    assert first == same != other


def test_an_unmeasured_checkpoint_is_measured_once_and_says_so(
    tiny_prior_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "prior"
    folder.mkdir()
    for entry in tiny_prior_folder.iterdir():
        if entry.name != "calibration.json":
            (folder / entry.name).symlink_to(entry)
    prior = StableDiffusionPrior(str(folder), local_files_only=True)
    with caplog.at_level(logging.INFO, "rlsd_lightning"):
        for _ in range(2):
            RLSD(
                prior,
                Measurement("one", torch.zeros(1, 3, 32, 32), denoising((3, 32, 32))),
                LatentFeatures(),
                num_steps=5,
            )
    (said,) = [line for line in caplog.messages if "were measured" in line]
    assert said.startswith("the prior's scales were measured on 16 own samples in ")
    assert f"decoder_std={prior.calibration.decoder_std:g}" in said
    assert not (folder / "calibration.json").exists()


def test_each_size_of_an_unmeasured_prior_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    prior, sizes = Lossy(), []
    monkeypatch.setattr("rlsd_lightning.priors.base.measure", lambda prior: sizes.append(prior.image_shape) or "found")
    channels, height, width = prior.image_shape
    for factor in (2, 2, 3, 1, 1):
        assert prior.resized((channels, height, factor * width)).calibration == "found"
    assert sizes == [(channels, height, factor * width) for factor in (2, 3, 1)]


# --- rlsd calibrate ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [["data.images=faces"], ["data.images=faces", "data.limit=2"], []])
def test_the_command_measures_and_keeps(
    images: list[str], tiny_prior_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "prior"
    folder.mkdir()
    for entry in tiny_prior_folder.iterdir():
        if entry.name != "calibration.json":
            (folder / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faces").mkdir()
    for name in ("000", "001", "002"):
        (tmp_path / "faces" / f"{name}.png").symlink_to(embedded(f"faces/heldout/{name}.png"))
    code, printed = train("calibrate", "prior=sd15", f"prior.pretrained={folder}", *images)
    assert code == 0, printed
    entry = json.loads((folder / "calibration.json").read_text())["32x32"]
    assert (entry["count"], entry["measured_on"]) == {0: (16, "samples"), 1: (3, "pictures"), 2: (2, "pictures")}[
        len(images)
    ]
    assert f"decoder_std: {entry['decoder_std']}" in printed
    assert f"kept for images of 32x32 in {folder / 'calibration.json'}" in printed


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["prior=gmm", "task=toy"], 1, "one with a checkpoint is expected, got GaussianMixturePrior"),
        (["prior=sd15", "prior.pretrained=nowhere", "prior.local_files_only=true"], 1, "got 'nowhere'"),
        (["prior=fases"], 2, "there is no prior=fases; did you mean faces?"),
        (["prior.weight=float16"], 2, "did you mean prior.weights?"),
    ],
)
def test_what_can_not_be_calibrated_is_one_line(arguments: list[str], code: int, said: str) -> None:
    found, printed = train("calibrate", *arguments)
    assert (found, printed.count("\n")) == (code, 1), printed
    assert printed.startswith("error: ") and said in printed
