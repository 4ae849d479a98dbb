"""Pictures of any size: nothing is cropped unless asked for, and results come back at the picture's own size."""

import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from support.command import train

from rlsd_lightning import InputError
from rlsd_lightning.data import ImageSizes, measurements
from rlsd_lightning.data.original import FilePicture
from rlsd_lightning.evaluation.scores import Solved
from rlsd_lightning.images import Reader
from rlsd_lightning.operators import (
    colorization,
    compose,
    demosaicing,
    denoising,
    gaussian_blur,
    inpainting,
    super_resolution,
    tomography,
)
from rlsd_lightning.priors import StableDiffusionPrior
from rlsd_lightning.reading.frames import Frame
from rlsd_lightning.results.result import Result, image_result

SIZES = ImageSizes((3, 64, 64), multiple=4, trained=32)
PHOTO = Path(__file__).resolve().parents[1] / "data" / "photos" / "china.jpg"


def photo(path: Path, width: int, height: int, **options) -> Path:
    """A photograph of some size."""
    Image.open(PHOTO).convert("RGB").resize((width, height)).save(path, **options)
    return path


# --- frames ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (40, 64), (64, 24)])
@pytest.mark.parametrize("own", [(64, 64), (100, 37), (33, 300), (16, 16), (480, 641)])
def test_the_middle_is_what_pillow_fits(own: tuple[int, int], size: tuple[int, int]) -> None:
    picture = Image.open(PHOTO).convert("RGB").resize(own[::-1])
    expected = ImageOps.fit(picture, size[::-1], Image.Resampling.LANCZOS)
    assert np.array_equal(Frame.cropped(own, size).of_picture(picture), expected)


@pytest.mark.parametrize("frame", [Frame.whole((90, 70), (45, 35), (48, 40)), Frame.extended((30, 50), 16)])
def test_padding_continues_a_picture_and_is_taken_off_again(frame: Frame) -> None:
    picture = Image.open(PHOTO).convert("RGB").resize(frame.picture_size[::-1])
    image = frame.of_picture(picture)
    pixels, (height, width) = np.asarray(image), frame.fitted_size
    assert pixels.shape[:2] == frame.image_size
    assert np.array_equal(pixels[height], pixels[height - 1]) and np.array_equal(pixels[:, width], pixels[:, width - 1])
    back = np.asarray(frame.to_picture(image), dtype=float)
    assert back.shape[:2] == frame.picture_size
    assert np.abs(back - np.asarray(picture)).mean() < (12 if frame.fitted_size != frame.picture_size else 1e-9)


# --- sizes of images ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "fit", "solved"),
    [
        ((64, 64), "keep", (64, 64)),
        ((300, 400), "keep", (48, 64)),  # reduced, in proportion
        ((400, 310), "keep", (64, 48)),
        ((400, 318), "keep", (64, 52)),  # to the nearest multiple of 4
        ((37, 51), "keep", (36, 52)),  # between the training's size and the largest, as it is
        ((12, 16), "keep", (24, 32)),  # enlarged to the training's size
        ((10, 1000), "keep", (4, 64)),
        ((300, 400), "crop", (64, 64)),
        ((12, 16), "crop", (64, 64)),
        ((300, 400), "pad", (64, 64)),
        ((20, 30), "pad", (64, 64)),
    ],
)
def test_the_size_of_an_image(own: tuple[int, int], fit: str, solved: tuple[int, int], tmp_path: Path) -> None:
    photo(tmp_path / "a.png", *own[::-1])
    (one,) = measurements(SIZES, denoising, images=tmp_path / "a.png", fit=fit)
    assert one.image_shape == (3, *solved) and one.truth.shape == one.y.shape == (1, 3, *solved)
    assert (one.original is None) == (own == solved)


@pytest.mark.parametrize(
    ("physics", "multiple"),
    [
        (super_resolution, 4),
        (partial(super_resolution, factor=3), 12),
        (partial(super_resolution, factor=8), 8),
        (demosaicing, 4),
        (partial(compose, operators=[gaussian_blur, partial(super_resolution, factor=8)]), 8),
        (tomography, 4),
    ],
)
def test_images_have_multiples_that_the_operator_takes(physics, multiple: int, tmp_path: Path) -> None:
    for number, size in enumerate([(90, 64), (64, 57), (61, 61)]):
        photo(tmp_path / f"{number}.png", *size)
    for each in measurements(SIZES, physics, images=tmp_path):
        assert all(length % multiple == 0 and length <= 64 for length in each.image_shape[1:])
        assert each.physics.A(each.truth).shape == each.y.shape


@pytest.mark.parametrize(("trained", "factor"), [(32, 4), (128, 4), (256, 8)])
def test_the_factor_is_the_same_for_pictures_of_all_sizes(trained: int, factor: int, tmp_path: Path) -> None:
    for number, size in enumerate([(512, 512), (300, 200)]):
        photo(tmp_path / f"{number}.png", *size)
    sizes = ImageSizes((3, 256, 256), 4, trained)
    assert {each.physics.factor for each in measurements(sizes, super_resolution, images=tmp_path)} == {factor}


@pytest.mark.parametrize("own", [(300, 400), (16, 16)])
def test_a_prior_of_one_size_gets_it(own: tuple[int, int], tmp_path: Path) -> None:
    photo(tmp_path / "a.png", *own[::-1])
    sizes = ImageSizes((3, 64, 64), None, 64, most=32)
    assert measurements(sizes, denoising, images=tmp_path)[0].image_shape == (3, 64, 64)
    with pytest.raises(InputError, match=f"the only size that is solved here, got one of {own[1]}x{own[0]}"):
        _ = measurements(sizes, denoising, measurement=tmp_path)[0]


def test_a_cpu_takes_smaller_pictures(tmp_path: Path) -> None:
    photo(tmp_path / "a.png", 400, 300)
    assert measurements(SIZES._replace(most=32), denoising, images=tmp_path)[0].image_shape == (3, 24, 32)


def test_an_unknown_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fit must be one of keep, crop, pad, got 'stretch'"):
        measurements(SIZES, denoising, images=photo(tmp_path / "a.png", 9, 9), fit="stretch")


# --- measured pictures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(25, 17), (9, 30), (16, 16)])
@pytest.mark.parametrize("factor", [None, 2, 3])
def test_a_small_photograph_is_taken_as_it_is(size: tuple[int, int], factor: int | None, tmp_path: Path) -> None:
    small = photo(tmp_path / "small.png", *size)
    (one,) = measurements(SIZES, partial(super_resolution, factor=factor), measurement=small)
    factor, (width, height) = factor or 4, size
    pixels = torch.from_numpy(np.array(Image.open(small))).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(one.y[0, :, :height, :width], pixels)
    assert all(length % 4 == 0 for length in one.image_shape[1:])
    assert one.physics.A(torch.zeros(1, *one.image_shape)).shape == one.y.shape
    if one.original is None:
        assert one.image_shape == (3, factor * height, factor * width)
    else:
        image = Image.new("RGB", one.image_shape[:0:-1])
        assert next(one.original.with_image([image], one.physics)).size == (factor * width, factor * height)


@pytest.mark.parametrize("nothing", [0, 255])
def test_a_large_damaged_photograph_is_reduced_without_what_is_missing(nothing: int, tmp_path: Path) -> None:
    pixels = np.full((240, 320, 3), 100, dtype=np.uint8)
    seen = np.ones((240, 320), dtype=bool)
    seen[57:133, 121:203] = False
    pixels[~seen] = nothing
    Image.fromarray(pixels).save(tmp_path / "damaged.png")
    Image.fromarray(seen).save(tmp_path / "mask.png")
    physics = partial(inpainting, mask=tmp_path / "mask.png")
    (one,) = measurements(SIZES, physics, measurement=tmp_path / "damaged.png")
    assert one.image_shape == (3, 48, 64)
    known = one.physics.mask > 0
    assert 0.85 < known.float().mean() < seen.mean()
    torch.testing.assert_close(one.y[known], torch.full_like(one.y[known], 100 / 127.5 - 1))
    (whole,) = one.original.with_image([Image.new("RGB", (64, 48), (1, 2, 3))], one.physics)
    assert np.array_equal(np.asarray(whole)[seen], pixels[seen])
    assert (np.asarray(whole)[~seen] == (1, 2, 3)).all()


@pytest.mark.parametrize("hidden", [np.nan, 7.0])
def test_arrays_with_hidden_values_of_any_kind_come_back_at_their_own_size(hidden: float, tmp_path: Path) -> None:
    for index in range(2):
        values = np.random.default_rng(index).normal(0, 0.5, (50, 66, 3)).astype(np.float32)  # beyond [-1, 1]
        values[25:] = hidden
        np.save(tmp_path / f"y{index}.npy", values)
    physics = partial(inpainting, mask="half", sigma=0.5)
    every = list(measurements(SIZES, physics, measurement=tmp_path))
    for index, one in enumerate(every):  # after all files were read, as in a batch
        (whole,) = one.original.with_image([Image.new("RGB", one.image_shape[:0:-1], (1, 2, 3))], one.physics)
        own = np.load(tmp_path / f"y{index}.npy")[:20]
        assert whole.size == (66, 50)
        assert np.abs(np.asarray(whole)[:20] - (127.5 * (own.clip(-1, 1) + 1))).max() <= 1
        assert (np.asarray(whole)[40:] == (1, 2, 3)).all()


def test_other_large_measurements_keep_their_size(tmp_path: Path) -> None:
    photo(tmp_path / "y.png", 90, 75)
    (one,) = measurements(SIZES, denoising, measurement=tmp_path / "y.png")
    assert one.image_shape == (3, 76, 92)


# --- results at the picture's own size -----------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["keep", "crop", "pad"])
@pytest.mark.parametrize("mask", ["box", "half"])
def test_seen_pixels_stay_as_they_are(fit: str, mask: str, tmp_path: Path) -> None:
    own = np.asarray(Image.open(photo(tmp_path / "a.png", 320, 200)))
    (one,) = measurements(SIZES, partial(inpainting, mask=mask), images=tmp_path / "a.png", fit=fit)
    (whole,) = one.original.with_image([Image.new("RGB", one.image_shape[:0:-1], "red")], one.physics)
    kept = (np.asarray(whole) == own).all(axis=-1)
    filled = (np.asarray(whole) == (255, 0, 0)).all(axis=-1)
    assert whole.size == (320, 200) and (kept | filled).all() and 0.1 < filled.mean() < 0.6
    assert kept[:48].all()


def test_own_brightness_stays_where_it_is_measured(tmp_path: Path) -> None:
    own = np.asarray(Image.open(photo(tmp_path / "a.png", 320, 200)), dtype=float)
    (one,) = measurements(SIZES, colorization, images=tmp_path / "a.png")
    (whole,) = one.original.with_image([Image.new("RGB", one.image_shape[:0:-1], (150, 90, 60))], one.physics)
    made = np.asarray(whole, dtype=float)
    inside = (made > 0).all(axis=-1) & (made < 255).all(axis=-1)
    assert inside.mean() > 0.4
    assert np.abs(made.mean(axis=-1) - own.mean(axis=-1))[inside].max() <= 1


@pytest.fixture
def large(tmp_path: Path) -> Result:
    """Particles of a photograph with a hole, which is larger than they are."""
    photo(tmp_path / "a.png", 320, 200)
    (one,) = measurements(SIZES, partial(inpainting, mask="half"), images=tmp_path / "a.png")
    particles = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, *one.image_shape)
    return image_result(Solved(one, particles, particles, particles))


def test_pictures_of_the_own_size_are_made_one_at_a_time(large: Result, tmp_path: Path) -> None:
    alive, most, made = weakref.WeakValueDictionary(), 0, FilePicture._in_picture

    def counted(*arguments: object) -> Image.Image:
        nonlocal most
        picture = made(*arguments)
        alive[id(picture)] = picture
        most = max(most, len(alive))
        return picture

    with (
        mock.patch.object(FilePicture, "_in_picture", counted),
        mock.patch.object(Reader, "picture", autospec=True, side_effect=Reader.picture) as read,
    ):
        large.save(tmp_path / "out")
    assert most <= 2 and read.call_count == 1
    names = ["00", "01", "02", "03", "04", "mean"]
    assert list(large.full_size) == names == sorted(file.stem for file in (tmp_path / "out" / "full_size").iterdir())
    own, shades = np.asarray(Image.open(tmp_path / "a.png")), dict(zip(names, (0, 64, 128, 191, 255, 128), strict=True))
    for name in names:
        written = np.asarray(Image.open(tmp_path / "out" / "full_size" / f"{name}.png"))
        assert np.array_equal(written, large.full_size[name]) and np.array_equal(written[:99], own[:99])
        assert np.ptp(written[110:]) == 0 and abs(int(written[110, 0, 0]) - shades[name]) <= 1


def test_a_file_that_is_gone_costs_the_pictures_of_the_own_size_only(
    large: Result, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.png").unlink()
    large.save(tmp_path / "out")
    assert "out: there are no results of the picture's own size, as " in caplog.text
    assert (tmp_path / "out" / "metrics.json").is_file() and (tmp_path / "out" / "particles" / "04.png").is_file()
    assert not (tmp_path / "out" / "full_size").exists()


def test_a_resized_prior_shares_its_networks(tiny_prior: StableDiffusionPrior) -> None:
    other = tiny_prior.resized((3, 48, 64))
    assert tiny_prior.resized(None) is tiny_prior.resized((3, 32, 32)) is tiny_prior
    assert (other.image_shape, other.latent_shape) == ((3, 48, 64), (4, 12, 16))
    assert tiny_prior.image_shape == (3, 32, 32)
    tiny_prior.double()
    assert {value.dtype for value in (*other.parameters(), other.alphas)} == {torch.float64}


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """A photograph that a camera stored on its side, a screenshot with transparency, and two others of one size."""
    folder = tmp_path / "album"
    folder.mkdir()
    sideways = Image.Exif()
    sideways[0x0112] = 6
    photo(folder / "phone.jpg", 90, 120, exif=sideways)
    screen = Image.open(PHOTO).convert("RGBA").resize((60, 60))
    screen.paste((0, 0, 0, 0), (0, 0, 60, 9))
    screen.save(folder / "screen.png")
    for name in ("x", "y"):
        photo(folder / f"{name}.png", 120, 90)
    return folder


def test_pictures_of_several_sizes_are_one_run(album: Path, small: list[str], tmp_path: Path) -> None:
    settings = [f"data.images={album}", "data.limit=null", "num_steps=2", *small, "measurements_per_batch=3"]
    code, printed = train(*settings, "prior.image_size=64", f"output_dir={tmp_path / 'run'}")
    assert code == 0, printed
    assert "phone.jpg: 120x90, resized to 64x48" in printed
    for name, own, solved in [("phone", (120, 90), (64, 48)), ("x", (120, 90), (64, 48)), ("screen", (60, 60), None)]:
        folder = tmp_path / "run" / name
        assert Image.open(folder / "particles" / "00.png").size == (solved or own)
        assert (folder / "full_size").is_dir() == (solved is not None)
        if solved:
            made = np.asarray(Image.open(folder / "full_size" / "01.png"))
            upright = ImageOps.exif_transpose(Image.open(next(album.glob(f"{name}.*"))))
            assert np.array_equal(made[:45], np.asarray(upright.convert("RGB"))[:45])
    code, printed = train(f"resume={tmp_path / 'run'}")
    assert code == 0 and printed.count("finished before") == 4
    report = (tmp_path / "run" / "report.html").read_text()
    assert all(name in report for name in ("phone", "screen", "x", "y"))


@pytest.mark.parametrize(
    ("task", "size", "said"),
    [
        (
            denoising,
            (160, 96),
            "solved at 160x96, as this measurement can't be reduced; that takes about 15 times as long",
        ),
        (partial(super_resolution, factor=4), (40, 24), "solved at 160x96"),
        (denoising, (40, 32), None),
        (colorization, (160, 96), None),  # whose pixels may be averaged
    ],
)
def test_a_measurement_that_can_not_be_reduced_is_said_to_take_long(
    task: Callable, size: tuple[int, int], said: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", "rlsd_lightning")
    Image.new("L", size, 100).save(tmp_path / "shot.png")
    sizes = ImageSizes((3, 32, 32), 4, 32)
    measurements(sizes, task, measurement=str(tmp_path / "shot.png"))[0]
    assert ("takes about" in caplog.text) == (said is not None)
    assert said is None or said in caplog.text
