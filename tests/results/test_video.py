"""Frames and slices whose particles start from each other."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.command import train

from rlsd_lightning import RLSD, Distilled, InputError, LatentFeatures, Measurement
from rlsd_lightning.data import ImageMeasurements
from rlsd_lightning.operators import denoising
from rlsd_lightning.reading.frames import Frame
from rlsd_lightning.results.video import write_sequence

STEPS = 8


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Three frames of a square that moves."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(3):
        frame = Image.new("RGB", (32, 32), (200, 180, 160))
        frame.paste((20, 40, 200), (4 + 4 * index, 8, 16 + 4 * index, 20))
        frame.save(folder / f"{index}.png")
    return folder


def arguments(prior: Path, features: Path, run: Path, images: Path, *more: str) -> list[str]:
    return [
        f"prior.pretrained={prior}",
        f"num_steps={STEPS}",
        "num_particles=2",
        f"data.images={images}",
        "data.limit=null",
        "data.sequence=true",
        f"output_dir={run}",
        *more,
    ]


def module(prior, measurement: Measurement, **settings) -> RLSD:
    return RLSD(prior, measurement, LatentFeatures(), num_particles=2, num_steps=STEPS, **settings)


def blank(prior, **fields) -> Measurement:
    physics = denoising(prior.image_shape)
    return Measurement("frame", torch.zeros(1, *prior.image_shape), physics, **fields)


def test_frames_start_from_each_other_and_become_a_film(
    frames: Path, tmp_path: Path, tiny_prior_folder: Path, tiny_features_folder: Path
):
    run = tmp_path / "run"
    code, printed = train(*arguments(tiny_prior_folder, tiny_features_folder, run, frames))
    assert code == 0, printed
    story = np.load(run / "sequence.npy")
    assert story.shape == (2, 3, 3, 32, 32)
    for index in range(3):
        saved = load_file(run / str(index) / "particles.safetensors")["x"].clamp(-1, 1)
        assert np.array_equal(story[:, index], saved.numpy())
    with av.open(str(run / "sequence.mp4")) as film:
        shown = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(shown) == 3
    assert shown[0].shape == (128, 4 * 128, 3)  # truth, two particles, mean, enlarged
    truth = np.asarray(Image.open(frames / "1.png").resize((128, 128), Image.Resampling.NEAREST)).astype(float)
    assert np.abs(shown[1][:, :128] - truth).mean() < 12  # the codec loses a little


def test_a_stopped_sequence_goes_on_to_the_same_bits(
    frames: Path, tmp_path: Path, tiny_prior_folder: Path, tiny_features_folder: Path
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    first = arguments(tiny_prior_folder, tiny_features_folder, whole, frames)
    assert train(*first)[0] == 0
    second = arguments(tiny_prior_folder, tiny_features_folder, parts, frames, "data.limit=1")
    assert train(*second)[0] == 0
    assert train(f"resume={parts}", "data.limit=null")[0] == 0
    assert np.array_equal(np.load(whole / "sequence.npy"), np.load(parts / "sequence.npy"))


def test_a_given_start_takes_the_last_share_of_the_schedule(tiny_prior):
    generator = torch.Generator().manual_seed(0)
    start = tuple(torch.randn(2, *shape, generator=generator) for shape in (tiny_prior.latent_shape, (3, 32, 32)))
    cold = module(tiny_prior, blank(tiny_prior), repulsion_until=1.0)
    warm = module(tiny_prior, blank(tiny_prior, start=start), repulsion_until=1.0, warm_share=0.25)
    assert warm.z.equal(start[0])
    assert warm.x.equal(start[1])
    assert warm.timesteps == cold.timesteps[-2:]
    assert warm.noise(0).equal(cold.noise(6))
    acts = [[m.repulsion.acts(step) for step in range(len(m.timesteps))] for m in (cold, warm)]
    assert acts[1] == acts[0][-2:] == [True, False]
    annealed = [
        Distilled(tiny_prior, m.measurements, LatentFeatures(), num_particles=2, num_steps=STEPS, warm_share=0.25)
        for m in (cold, warm)
    ]
    rates = [m.configure_optimizers()["lr_scheduler"]["scheduler"].lr_lambdas[0](0) for m in annealed]
    assert rates == pytest.approx([1, 0.5 * (1 + np.cos(0.75 * np.pi))])
    moved = module(tiny_prior, blank(tiny_prior, start=(start[0] + 1, start[1])), warm_share=0.25)
    saved = {"state_dict": {}}
    warm.on_save_checkpoint(saved)
    warm.on_load_checkpoint(saved)
    with pytest.raises(InputError, match="belongs to"):
        moved.on_load_checkpoint(saved)


def test_items_of_a_series_share_their_particles_noise_but_not_the_measurements(tiny_prior, frames: Path):
    data = ImageMeasurements(tiny_prior.image_shape, denoising(tiny_prior.image_shape), frames, sequence=True)
    first, second = (module(tiny_prior, data[index]) for index in (0, 1))
    assert first.z.equal(second.z)
    assert first.noise(3).equal(second.noise(3))
    errors = [item.y - item.truth for item in (data[0], data[1])]
    assert not errors[0].equal(errors[1])
    apart = ImageMeasurements(tiny_prior.image_shape, denoising(tiny_prior.image_shape), frames)
    assert not module(tiny_prior, apart[0]).z.equal(module(tiny_prior, apart[1]).z)


def test_a_volume_is_a_sequence_of_its_slices(tmp_path: Path, tiny_prior_folder: Path, tiny_features_folder: Path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "volume.npy", rng.integers(0, 2**16, (2, 32, 32), dtype=np.uint16))
    run = tmp_path / "run"
    code, printed = train(*arguments(tiny_prior_folder, tiny_features_folder, run, tmp_path / "volume.npy"))
    assert code == 0, printed
    assert np.load(run / "sequence.npy").shape == (2, 2, 3, 32, 32)
    assert (run / "0001" / "grid.png").is_file()


def test_fit_crops_the_centre():
    image = torch.zeros(1, 3, 8, 16)
    image[..., 4:12] = 1
    assert (Frame.cropped((8, 16), (4, 4)).of_values(image) > 0.9).all()
    assert Frame.cropped((8, 16), (8, 16)).of_values(image) is image


@pytest.mark.parametrize("share", [0, 1.5])
def test_a_share_of_the_schedule_out_of_range_is_refused(share: float, tiny_prior):
    with pytest.raises(InputError, match=rf"warm_share must .*got {share}"):
        module(tiny_prior, blank(tiny_prior), warm_share=share)


def test_a_start_of_another_shape_is_refused(tiny_prior):
    with pytest.raises(InputError, match=r"shape \(2, 4, 8, 8\) is expected, got \(3, 4, 8, 8\)"):
        module(tiny_prior, blank(tiny_prior, start=(torch.zeros(3, 4, 8, 8), torch.zeros(3, 3, 32, 32))))


def test_a_film_of_odd_sides_loses_a_row(tmp_path: Path):
    (tmp_path / "a").mkdir()
    save_file({"x": torch.zeros(1, 3, 129, 131)}, tmp_path / "a" / "particles.safetensors")
    write_sequence(tmp_path, ["a"])
    with av.open(str(tmp_path / "sequence.mp4")) as film:
        assert next(film.decode(video=0)).to_ndarray(format="rgb24").shape == (128, 262, 3)


def test_a_film_has_the_truth_only_if_every_frame_has_one(tmp_path: Path):
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
        save_file({"x": torch.zeros(2, 3, 128, 128)}, tmp_path / name / "particles.safetensors")
    Image.new("RGB", (128, 128), "grey").save(tmp_path / "1" / "truth.png")
    write_sequence(tmp_path, ["0", "1"])
    with av.open(str(tmp_path / "sequence.mp4")) as film:
        assert [frame.width for frame in film.decode(video=0)] == [384, 384]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_film_has_the_truth_beside_particles_of_any_channels(channels: int, tmp_path: Path):
    for name in ("0", "1", "2"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32), "grey").save(tmp_path / name / "truth.png")
        save_file({"x": torch.zeros(2, channels, 32, 32)}, tmp_path / name / "particles.safetensors")
    write_sequence(tmp_path, ["0", "1", "2"])
    assert np.load(tmp_path / "sequence.npy").shape == (2, 3, channels, 32, 32)
    assert (tmp_path / "sequence.mp4").is_file()


@pytest.mark.parametrize("names", [(), ("0", "1")], ids=["nothing", "two sizes"])
def test_no_old_film_stays_where_there_is_no_new_one(names: tuple[str, ...], tmp_path: Path):
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
        save_file({"x": torch.zeros(2, 3, 16, 16 + int(name))}, tmp_path / name / "particles.safetensors")
    for old in ("sequence.mp4", "sequence.npy"):
        (tmp_path / old).touch()
    write_sequence(tmp_path, names)
    assert not list(tmp_path.glob("sequence.*"))


@pytest.mark.parametrize(("count", "size"), [(64, 256), (3, 48)])
def test_a_film_of_many_particles_has_rows(count: int, size: int, tmp_path: Path):
    particles = torch.linspace(-1, 1, count).view(count, 1, 1, 1).expand(count, 3, 16, size)
    for name in "ab":
        (tmp_path / name).mkdir()
        save_file({"x": particles.contiguous()}, tmp_path / name / "particles.safetensors")
    write_sequence(tmp_path, ["a", "b"])
    with av.open(str(tmp_path / "sequence.mp4")) as film:
        frame = next(film.decode(video=0)).to_ndarray(format="rgb24")
    columns = min(count + 1, 16384 // (8 * size))
    assert frame.shape == (128 * -(-(count + 1) // columns), 8 * size * columns, 3)
    first, last = frame[:128, : 8 * size], frame[-128:, 8 * size * (count % columns) :][:, : 8 * size]
    assert abs(first.mean() - 0) < 4 and abs(last.mean() - 127.5) < 4  # the first particle, and the mean
