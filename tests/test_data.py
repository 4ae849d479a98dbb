"""Pictures of every kind, measurements that are drawn once, masks and kernels."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from deepinv.physics import CompressedSensing
from PIL import Image
from torch import Tensor

from rlsd_lightning import InputError
from rlsd_lightning.data import ImageMeasurements, measurements
from rlsd_lightning.data.sources import find_sources
from rlsd_lightning.images import find_images, load_image, to_pil
from rlsd_lightning.operators import blur, colorization, denoising, inpainting, load_kernel, super_resolution
from rlsd_lightning.operators.pixels import free_form_mask, load_mask

SHAPE = (3, 16, 16)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def as_tensor(pixels: np.ndarray) -> Tensor:
    """What a picture of 8-bit RGB values means in [-1, 1]."""
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Three pictures and one file that is none."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("b.png", "a.jpg", "c.PNG"):
        save(photos / name, rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    (photos / "notes.txt").write_text("no picture")
    return photos


# --- finding -------------------------------------------------------------------------------------------------------


def test_a_folder_gives_its_pictures_in_order(folder: Path) -> None:
    assert [file.name for file in find_images(folder)] == ["a.jpg", "b.png", "c.PNG"]


def test_a_file_gives_itself(folder: Path) -> None:
    assert find_images(folder / "b.png") == [folder / "b.png"]


@pytest.mark.parametrize("pattern", ["*.png", "**/[ab].png", "sub?/*.png"])
@pytest.mark.parametrize("name", ["set [1]", "a*b", "what?"])
def test_a_glob_may_start_in_a_folder_with_magic_letters(tmp_path: Path, name: str, pattern: str) -> None:
    folder = tmp_path / name
    for file in (folder / "a.png", folder / "sub1" / "b.png"):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(file)
    assert find_images(folder / pattern)
    assert all(file.is_relative_to(folder) for file in find_images(folder / pattern))


@pytest.mark.parametrize("pattern", ["photos/[ab].*", "**/[ab].*"])
def test_a_glob_gives_what_matches(folder: Path, pattern: str) -> None:
    assert [file.name for file in find_images(folder.parent / pattern)] == ["a.jpg", "b.png"]


@pytest.mark.parametrize("where", ["nowhere.png", "nowhere/*.png", "empty"])
def test_nothing_found_is_an_error_that_names_the_place(tmp_path: Path, where: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"nothing was found at .*{where.split('/')[0]}"):
        find_images(tmp_path / where)


# --- reading -------------------------------------------------------------------------------------------------------


def test_rgb_is_read_exactly(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert load_image(save(tmp_path / "a.png", pixels), 16, 16).equal(as_tensor(pixels))


def test_saving_and_reading_is_the_identity(tmp_path: Path, rng: np.random.Generator) -> None:
    image = as_tensor(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    to_pil(image[0]).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", 16, 16).equal(image)


def test_transparent_becomes_white(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 4), dtype=np.uint8)
    pixels[:, 8:] = (255, 0, 0, 255)
    image = load_image(save(tmp_path / "a.png", pixels), 16, 16)
    assert (image[..., :8] == 1).all()
    assert image[0, :, 0, 8].tolist() == [1, -1, -1]


def test_half_transparent_black_becomes_grey(tmp_path: Path) -> None:
    pixels = np.full((16, 16, 2), (0, 128), dtype=np.uint8)
    Image.fromarray(pixels, "LA").save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", 16, 16).abs().max() < 0.01


def test_a_transparent_palette_colour_becomes_white(tmp_path: Path) -> None:
    image = Image.new("P", (16, 16), 0)
    image.putpalette([0, 0, 0, 0, 255, 0])
    image.paste(1, (8, 0, 16, 16))
    image.save(tmp_path / "a.png", transparency=0)
    loaded = load_image(tmp_path / "a.png", 16, 16)
    assert (loaded[..., :8] == 1).all()
    assert loaded[0, :, 0, 8].tolist() == [-1, 1, -1]


def test_grey_has_three_equal_channels(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (16, 16), dtype=np.uint8)
    image = load_image(save(tmp_path / "a.png", pixels), 16, 16)
    assert image.equal(as_tensor(np.stack([pixels] * 3, axis=-1)))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_keeps_its_range(tmp_path: Path, suffix: str) -> None:
    # Pillow's own conversion clips at 255, which turns nearly everything white
    pixels = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    image = load_image(save(tmp_path / f"a.{suffix}", pixels), 16, 16)
    expected = torch.from_numpy(pixels / 65535 * 2 - 1).float().expand(1, 3, 16, 16)
    torch.testing.assert_close(image, expected, atol=1 / 255, rtol=0)


def test_a_palette_is_looked_up(tmp_path: Path, rng: np.random.Generator) -> None:
    colours = rng.integers(0, 256, (4, 3), dtype=np.uint8)
    indices = rng.integers(0, 4, (16, 16), dtype=np.uint8)
    image = Image.fromarray(indices, "P")
    image.putpalette(colours.flatten().tolist())
    image.save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", 16, 16).equal(as_tensor(colours[indices]))


def test_black_and_white_is_read(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16), dtype=bool)
    pixels[:8] = True
    image = load_image(save(tmp_path / "a.png", pixels), 16, 16)
    assert (image[:, :, :8] == 1).all()
    assert (image[:, :, 8:] == -1).all()


@pytest.mark.parametrize(("orientation", "quarter_turns"), [(3, 2), (6, -1), (8, 1)])
def test_a_rotated_photograph_is_turned_upright(
    tmp_path: Path, rng: np.random.Generator, orientation: int, quarter_turns: int
) -> None:
    pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = load_image(save(tmp_path / "a.png", pixels, exif=exif), 16, 16)
    assert image.equal(as_tensor(np.rot90(pixels, quarter_turns).copy()))


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (100, 37), (16, 300)])
def test_any_size_fits(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (255, 0, 0)).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png", 16, 24)
    assert image.shape == (1, 3, 16, 24)
    assert image[0, 0].min() == 1
    assert image[0, 1].max() == -1


def test_the_centre_is_kept(tmp_path: Path) -> None:
    pixels = np.zeros((32, 96, 3), dtype=np.uint8)
    pixels[:, :32, 0] = pixels[:, 32:64, 1] = pixels[:, 64:, 2] = 255
    image = load_image(save(tmp_path / "a.png", pixels), 32, 32)
    assert image[0].mean(dim=(1, 2)).tolist() == pytest.approx([-1, 1, -1], abs=0.05)


def test_resizing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    with caplog.at_level("INFO"):
        load_image(tmp_path / "a.png", 16, 16)
    assert "a.png: 20x10, cropped and resized to 16x16" in caplog.text


def test_broken_files_are_named(tmp_path: Path, rng: np.random.Generator) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    whole = save(tmp_path / "whole.png", rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).read_bytes()
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole[: len(whole) // 2])
    empty = tmp_path / "empty.jpg"
    empty.touch()
    for file in (text, cut, empty):
        with pytest.raises(InputError, match=f"{file.name}' can't be read"):
            load_image(file, 16, 16)


# --- measurements --------------------------------------------------------------------------------------------------


def noisy(sigma: float = 0.1):
    return inpainting(SHAPE, "half", sigma=sigma)


def test_y_is_drawn_once_per_image(folder: Path) -> None:
    everything = ImageMeasurements(SHAPE, noisy(), folder)
    expected = {m.name: m.y for m in everything}
    backwards = {everything[i].name: everything[i].y for i in (2, 0, 1)}
    limited = {m.name: m.y for m in ImageMeasurements(SHAPE, noisy(), folder, limit=2)}
    alone = {m.name: m.y for m in ImageMeasurements(SHAPE, noisy(), folder / "b.png")}
    assert (list(limited), list(alone)) == (["a", "b"], ["b"])
    for again in (backwards, limited, alone):
        assert all(expected[name].equal(y) for name, y in again.items())


def test_another_seed_draws_another_y(folder: Path) -> None:
    (first, *_), (other, *_) = (ImageMeasurements(SHAPE, noisy(), folder, seed=seed) for seed in (0, 1))
    assert not first.y.equal(other.y)
    assert first.truth.equal(other.truth)


def test_two_images_get_different_noise(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (16, 16), "grey").save(tmp_path / f"{name}.png")
    a, b = ImageMeasurements(SHAPE, noisy(), tmp_path)
    assert a.truth.equal(b.truth)
    assert not a.y.equal(b.y)


def test_the_noise_has_the_level_that_was_asked_for(folder: Path) -> None:
    measurement = ImageMeasurements(SHAPE, inpainting(SHAPE, "half", sigma=0.5), folder)[0]
    error = (measurement.y - measurement.physics.A(measurement.truth))[:, :, :8]
    assert error.std().item() == pytest.approx(0.5, rel=0.15)


def test_measuring_leaves_the_global_generator_alone(folder: Path) -> None:
    data = ImageMeasurements(SHAPE, noisy(), folder)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    _ = data[0].y
    assert torch.get_rng_state().equal(before)


def test_the_global_generator_does_not_touch_y(folder: Path) -> None:
    data = ImageMeasurements(SHAPE, noisy(), folder)
    torch.manual_seed(3)
    first = data[0].y
    torch.manual_seed(4)
    assert data[0].y.equal(first)


@pytest.mark.parametrize(
    "files", [("a.png", "a.jpg"), ("a.jpg", "a.png", "a_png.png"), ("x/a.png", "y/a.png"), ("x/a.b.png", "y/a.b.png")]
)
def test_no_two_files_share_a_folder(tmp_path: Path, files: tuple[str, ...]) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16)).save(tmp_path / file)
    data = ImageMeasurements(SHAPE, noisy(), tmp_path / "**" / "*.*")
    assert len(set(data.names)) == len(files)
    # a name keys the noise, so a limit must not change it
    assert ImageMeasurements(SHAPE, noisy(), tmp_path / "**" / "*.*", limit=1).names == data.names[:1]


def test_a_measured_picture_is_masked_and_has_no_truth(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    (measurement,) = measurements(SHAPE, lambda image_shape: noisy(), measurement=save(tmp_path / "y.png", pixels))
    assert (measurement.name, measurement.truth) == ("y", None)
    assert measurement.y[:, :, :8].equal(as_tensor(pixels)[:, :, :8])
    assert (measurement.y[:, :, 8:] == 0).all()


@pytest.mark.parametrize("shape", [SHAPE, (1, *SHAPE)])
def test_a_measured_array_keeps_its_values(tmp_path: Path, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    values = rng.normal(size=shape)
    np.save(tmp_path / "y.npy", values)
    (measurement,) = measurements(SHAPE, lambda image_shape: noisy(), measurement=tmp_path / "y.npy")
    expected = torch.from_numpy(values).float().view(1, *SHAPE)
    assert measurement.y[:, :, :8].equal(expected[:, :, :8])
    assert (measurement.y[:, :, 8:] == 0).all()


def test_a_measured_file_wins_over_images(tmp_path: Path, folder: Path) -> None:
    data = measurements(SHAPE, super_resolution, images=folder, measurement=folder / "b.png")
    assert data.names == ["b"]


@pytest.mark.parametrize("name", ["missing.png", "missing.npy", "text.npy", "text.png"])
def test_a_measured_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    for suffix in (".npy", ".png"):
        (tmp_path / f"text{suffix}").write_text("no data")
    with pytest.raises(InputError, match=name):
        _ = measurements(SHAPE, lambda image_shape: noisy(), measurement=tmp_path / name)[0]


def test_neither_images_nor_a_measurement_is_an_error() -> None:
    with pytest.raises(InputError, match=r"images=null and measurement=null"):
        measurements(SHAPE, super_resolution)


# --- masks ---------------------------------------------------------------------------------------------------------


def test_half_hides_the_lower_half() -> None:
    mask = load_mask("half", 16, 10)
    assert mask.shape == (1, 16, 10)
    assert (mask[:, :8] == 1).all()
    assert (mask[:, 8:] == 0).all()


def test_box_hides_the_middle() -> None:
    mask = load_mask("box", 16, 16)
    assert (mask[:, 4:12, 4:12] == 0).all()
    assert mask.sum() == 16 * 16 - 8 * 8


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (33, 50)])
def test_free_hides_about_a_quarter_in_a_few_strokes(size: tuple[int, int]) -> None:
    mask = load_mask("free", *size)
    assert set(mask.unique().tolist()) == {0, 1}
    assert 0.25 <= 1 - mask.mean().item() <= 0.6
    # strokes have few borders: a random mask of this share has one at three of eight neighbours
    borders = (mask[:, 1:] != mask[:, :-1]).float().mean()
    assert borders < 0.25


def test_free_with_another_seed_is_another_mask() -> None:
    assert free_form_mask(32, 32).equal(free_form_mask(32, 32))
    assert not free_form_mask(32, 32).equal(free_form_mask(32, 32, seed=1))


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (33, 50)])
def test_random_hides_exactly_80_percent(size: tuple[int, int]) -> None:
    mask = load_mask("random", *size)
    assert set(mask.unique().tolist()) == {0, 1}
    assert (mask == 0).sum() == round(0.8 * size[0] * size[1])


def test_a_mask_file_is_white_where_the_image_is_seen(tmp_path: Path, rng: np.random.Generator) -> None:
    seen = rng.random((16, 10)) > 0.5
    path = save(tmp_path / "mask.png", np.where(seen, 255, 0).astype(np.uint8))
    assert load_mask(path, 16, 10).equal(torch.from_numpy(seen)[None].float())


def test_a_mask_of_another_size_than_the_image_names_all_sizes(tmp_path: Path) -> None:
    Image.new("L", (20, 10), 255).save(tmp_path / "mask.png")
    Image.new("RGB", (32, 24)).save(tmp_path / "a.jpg")
    data = measurements(SHAPE, partial(inpainting, mask=tmp_path / "mask.png"), images=tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"16x12 .* 32x24, the size of 'a', but .* 20x10; resize"):
        _ = data[0]


def test_a_mask_that_hides_everything_is_an_error(tmp_path: Path) -> None:
    Image.new("L", (16, 16), 0).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match="hides every pixel"):
        load_mask(tmp_path / "mask.png", 16, 16)


@pytest.mark.parametrize("mask", ["missing.png", "text.png", "halve"])
def test_a_mask_that_is_none_is_named(tmp_path: Path, mask: str) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match=mask):
        load_mask(tmp_path / mask, 16, 16)


def test_a_16_bit_mask_is_thresholded_in_its_own_range(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16), dtype=np.uint16)
    pixels[:4], pixels[4:8] = 65535, 300
    mask = load_mask(save(tmp_path / "mask.png", pixels), 16, 16)
    assert mask.sum() == 4 * 16


# --- kernels -------------------------------------------------------------------------------------------------------


def test_a_kernel_from_an_array_sums_to_one(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.random((3, 5)) * 7
    np.save(tmp_path / "k.npy", values)
    kernel = load_kernel(tmp_path / "k.npy")
    torch.testing.assert_close(kernel, torch.from_numpy(values / values.sum()).float()[None, None])


def test_a_kernel_from_a_picture_sums_to_one(tmp_path: Path) -> None:
    pixels = np.array([[0, 100, 0], [100, 200, 100], [0, 100, 0]], dtype=np.uint8)
    kernel = load_kernel(save(tmp_path / "k.png", pixels))
    torch.testing.assert_close(kernel, torch.from_numpy(pixels / 600).float()[None, None])


def test_a_kernel_from_a_16_bit_picture_keeps_its_proportions(tmp_path: Path) -> None:
    pixels = np.array([[10000, 20000], [20000, 50000]], dtype=np.uint16)
    kernel = load_kernel(save(tmp_path / "k.png", pixels))
    torch.testing.assert_close(kernel, torch.from_numpy(pixels / 100000).float()[None, None], atol=5e-3, rtol=0)


@pytest.mark.parametrize("colour", ["white", "black", "red"])
def test_a_transparent_kernel_is_refused(tmp_path: Path, colour: str) -> None:
    image = Image.new("RGBA", (5, 5), (0, 0, 0, 0))
    image.paste(colour, (2, 2, 3, 3))
    image.save(tmp_path / "k.png")
    with pytest.raises(InputError, match="has transparency; save it on black"):
        load_kernel(tmp_path / "k.png")


def test_a_kernel_larger_than_the_image_names_both_sizes(tmp_path: Path) -> None:
    np.save(tmp_path / "k.npy", np.ones((17, 3)))
    with pytest.raises(InputError, match=r"16x16 .* 3x17"):
        blur(SHAPE, tmp_path / "k.npy")


@pytest.mark.parametrize("values", [np.zeros((3, 3)), np.ones(3), np.full((3, 3), np.nan), np.ones((3, 3, 3))])
def test_values_that_are_no_kernel_are_an_error(tmp_path: Path, values: np.ndarray) -> None:
    np.save(tmp_path / "k.npy", values)
    with pytest.raises(InputError, match="a blur kernel of shape"):
        load_kernel(tmp_path / "k.npy")


@pytest.mark.parametrize("name", ["missing.npy", "text.npy", "text.png"])
def test_a_kernel_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    for suffix in (".npy", ".png"):
        (tmp_path / f"text{suffix}").write_text("no data")
    with pytest.raises(InputError, match=name):
        load_kernel(tmp_path / name)


def test_blurring_with_a_point_changes_nothing(tmp_path: Path, rng: np.random.Generator) -> None:
    np.save(tmp_path / "k.npy", np.array([[0, 0, 0], [0, 5, 0], [0, 0, 0]]))
    image = torch.from_numpy(rng.uniform(-1, 1, (1, *SHAPE))).float()
    torch.testing.assert_close(blur(SHAPE, tmp_path / "k.npy").A(image), image, atol=1e-5, rtol=0)


# --- super-resolution ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "factor", "small"), [(64, None, 16), (512, None, 64), (64, 2, 32)])
def test_the_factor_follows_the_size(size: int, factor: int | None, small: int) -> None:
    operator = super_resolution((3, size, size), factor)
    assert operator.A(torch.zeros(1, 3, size, size)).shape == (1, 3, small, small)


@pytest.mark.parametrize(("size", "factor"), [(16, 3), (8, 4)])
def test_an_image_that_cannot_be_divided_is_an_error(size: int, factor: int) -> None:
    with pytest.raises(InputError, match=rf"x{factor} needs .* got {size}x{size}; choose another"):
        super_resolution((3, size, size), factor)


@pytest.mark.parametrize("factor", [0, -2])
def test_a_factor_below_one_is_an_error(factor: int) -> None:
    with pytest.raises(InputError, match=f"factor must be at least 1, got {factor}"):
        super_resolution((3, 16, 16), factor)


@pytest.mark.parametrize("physics", [super_resolution, partial(inpainting, mask="half")])
def test_negative_noise_is_an_error(physics) -> None:
    with pytest.raises(InputError, match=r"sigma must be at least 0, got -0\.1"):
        physics(SHAPE, sigma=-0.1)


def test_numbers_in_names_are_sorted_by_their_value(tmp_path: Path) -> None:
    for index in (10, 9, 2):
        Image.new("RGB", (4, 4)).save(tmp_path / f"frame{index}.png")
    assert [file.stem for file in find_images(tmp_path)] == ["frame2", "frame9", "frame10"]


def test_names_are_folders_of_their_own_on_every_disk(tmp_path: Path) -> None:
    # disks may ignore case and the form of Unicode, and the run has files of its own
    files = (
        "Face.png",
        "face.jpg",
        "caf\u00e9.png",
        "cafe\u0301.jpg",
        "other.png",
        "Report.html.png",
        "chosen.json.png",
    )
    for file in files:
        (tmp_path / file).touch()
    found = find_sources(tmp_path, "images", lambda path, key: 1)
    assert {source.path.name: source.name for source in found} == {
        "Face.png": "Face_png",
        "face.jpg": "face_jpg",
        "caf\u00e9.png": "caf\u00e9_png",
        "cafe\u0301.jpg": "cafe\u0301_jpg",
        "other.png": "other",
        "Report.html.png": "Report_html_png",
        "chosen.json.png": "chosen_json_png",
    }


@pytest.fixture(params=["pictures", "stack"])
def images(request: pytest.FixtureRequest, folder: Path) -> Path:
    """Three of either."""
    if request.param == "stack":
        np.save(folder / "stack.npy", np.zeros((3, 16, 16, 3), dtype=np.uint8))
        return folder / "stack.npy"
    return folder


def test_a_limit_gives_the_first(images: Path) -> None:
    every, two = (measurements(SHAPE, super_resolution, images=images, limit=limit) for limit in (None, 2))
    assert two.names == every.names[:2]
    assert (len(two), two.available) == (2, 3)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_an_error(images: Path, limit: int) -> None:
    with pytest.raises(InputError, match=f"at least 1, got {limit}"):
        measurements(SHAPE, super_resolution, images=images, limit=limit)


# --- what was measured ---------------------------------------------------------------------------------------------


def few_values(image_shape: tuple[int, ...]) -> CompressedSensing:
    return CompressedSensing(100, image_shape)


def measured_file(path: Path, physics=denoising) -> torch.Tensor:
    return measurements(SHAPE, physics, measurement=path)[0].y


def test_a_measured_picture_of_16_bits_keeps_them(tmp_path: Path) -> None:
    values = np.arange(SHAPE[1] * SHAPE[2], dtype=np.uint16).reshape(SHAPE[1:]) * 257
    Image.fromarray(values).save(tmp_path / "y.png")
    expected = torch.from_numpy(values.astype(np.float32)) / 65535 * 2 - 1
    torch.testing.assert_close(measured_file(tmp_path / "y.png"), expected.expand(1, 3, -1, -1))


def test_a_measured_picture_of_real_numbers_is_not_rescaled(tmp_path: Path) -> None:
    values = np.linspace(0, 0.5, SHAPE[1] * SHAPE[2], dtype=np.float32).reshape(SHAPE[1:])
    Image.fromarray(values).save(tmp_path / "y.tiff")
    torch.testing.assert_close(measured_file(tmp_path / "y.tiff")[0, 0], torch.from_numpy(values) * 2 - 1)
    Image.fromarray(values * 3).save(tmp_path / "y.tiff")
    with pytest.raises(InputError, match=r"from 0 to 1\.5, and .* such as range=0,1 or range=-1,1"):
        measured_file(tmp_path / "y.tiff")


def test_a_grey_picture_is_a_measurement_of_one_channel_where_one_is_measured(tmp_path: Path) -> None:
    Image.new("L", SHAPE[:0:-1], 255).save(tmp_path / "grey.png")
    Image.new("RGB", SHAPE[:0:-1], "red").save(tmp_path / "red.png")
    np.save(tmp_path / "plain.npy", np.ones(SHAPE[1:], dtype=np.float32))
    np.save(tmp_path / "compressed.npy", np.zeros(100, dtype=np.float32))
    white = torch.ones(1, 1, *SHAPE[1:])
    assert measured_file(tmp_path / "grey.png", colorization).equal(white)
    assert measured_file(tmp_path / "plain.npy", colorization).equal(white)
    assert measured_file(tmp_path / "grey.png").shape == (1, *SHAPE)
    assert measured_file(tmp_path / "compressed.npy", few_values).shape == (1, 100)
    with pytest.raises(InputError, match=r"1 channels is expected, but '.*red.png' has 3 that differ"):
        measured_file(tmp_path / "red.png", colorization)


# --- mosaics -------------------------------------------------------------------------------------------------------


def test_a_mosaic_begins_with_the_picture_it_is_named_after(tmp_path: Path) -> None:
    for index in range(3):
        Image.new("RGB", (9, 9), (80 * index,) * 3).save(tmp_path / f"{index}.png")
    data = measurements((3, 16, 24), partial(inpainting, mask="half"), images=tmp_path, tile=8)
    assert data.names == ["0", "1", "2"]
    shades = data[1].truth[0, 0, ::8, ::8]
    expected = torch.tensor([[1, 2, 0], [1, 2, 0]]) * 80 / 127.5 - 1  # from the beginning again after the last
    torch.testing.assert_close(shades, expected, atol=1e-5, rtol=0)
    assert data[1].truth.shape == (1, 3, 16, 24)


@pytest.mark.parametrize("tile", [0, 5, 32])
def test_tiles_that_do_not_fit_are_refused(tile: int, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "0.png")
    with pytest.raises(InputError, match=rf"tile must divide .*\(16, 24\), got {tile}"):
        measurements((3, 16, 24), partial(inpainting, mask="half"), images=tmp_path, tile=tile)
