"""Masks mean what people mean, for one image and for many."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rlsd_lightning import InputError
from rlsd_lightning.data import ImageSizes, measurements
from rlsd_lightning.operators import compose, denoising, gaussian_blur, inpainting, super_resolution
from rlsd_lightning.operators.likelihood import observed_values
from rlsd_lightning.operators.pixels import load_mask
from rlsd_lightning.reading.masks import read_mask

SHAPE = (3, 16, 16)
SEEN = np.zeros((16, 16), dtype=bool)
SEEN[:5] = True


def check(path: Path) -> None:
    assert (load_mask(path, 16, 16)[0].numpy() == SEEN).all()


@pytest.mark.parametrize(("low", "high"), [(0, 255), (0, 1), (1, 2), (100, 103), (0, 65535)])
def test_the_brighter_of_any_two_values_is_seen(low: int, high: int, tmp_path: Path) -> None:
    Image.fromarray(np.where(SEEN, high, low).astype(np.uint16 if high > 255 else np.uint8)).save(tmp_path / "m.png")
    check(tmp_path / "m.png")


@pytest.mark.parametrize(
    "values",
    [
        *(SEEN, SEEN.astype(int), np.where(SEEN, 1.0, -1.0), SEEN[None] * 255, SEEN[None, None] * 1.0),
        *(np.stack([SEEN] * 3), np.stack([SEEN] * 3, axis=-1), np.stack([SEEN] * 3)[None], SEEN[..., None]),
    ],
)
def test_an_array_is_a_mask(values: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", values)
    check(tmp_path / "m.npy")
    np.savez(tmp_path / "m.npz", m=values, other=values)
    check(f"{tmp_path / 'm.npz'}:m")


@pytest.mark.parametrize("colours", [[0, 0, 0, 128, 0, 0], [0, 0, 0, 255, 255, 255], [200, 0, 0, 200, 0, 0]])
def test_a_palettes_brighter_colour_is_seen(colours: list[int], tmp_path: Path) -> None:
    image = Image.fromarray(SEEN.astype(np.uint8), "P")
    image.putpalette(colours)
    image.save(tmp_path / "m.png")
    check(tmp_path / "m.png")


@pytest.mark.parametrize("kind", ["photograph", "white", "grey", "palette"])
def test_transparent_is_missing(kind: str, tmp_path: Path) -> None:
    alpha = Image.fromarray(np.where(SEEN, 255, 0).astype(np.uint8))
    if kind == "palette":
        image = Image.fromarray(SEEN.astype(np.uint8), "P")
        image.putpalette([255, 255, 255, 0, 0, 0])
        image.save(tmp_path / "m.png", transparency=0)
    else:
        colours = {"photograph": np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)}
        image = Image.fromarray(colours.get(kind, np.full((16, 16, 3), 255, dtype=np.uint8)))
        image = image.convert("L").convert("LA") if kind == "grey" else image.convert("RGBA")
        image.putalpha(alpha)
        image.save(tmp_path / "m.png")
    check(tmp_path / "m.png")


def test_an_opaque_mask_with_transparency_is_read_by_its_brightness(tmp_path: Path) -> None:
    Image.fromarray(np.where(SEEN, 255, 0).astype(np.uint8)).convert("RGBA").save(tmp_path / "m.png")
    check(tmp_path / "m.png")


@pytest.mark.parametrize("opacity", [128, 250, 254])
def test_a_mask_of_even_opacity_is_read_by_its_brightness(opacity: int, tmp_path: Path) -> None:
    image = Image.fromarray(np.where(SEEN, 255, 0).astype(np.uint8)).convert("RGBA")
    image.putalpha(opacity)
    image.save(tmp_path / "m.png")
    check(tmp_path / "m.png")


def test_soft_edges_are_cut_at_one_half_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    soft = np.where(SEEN, 255, 0)
    soft[4], soft[5] = 140, 110
    Image.fromarray(soft.astype(np.uint8)).save(tmp_path / "m.png")
    with caplog.at_level("INFO"):
        check(tmp_path / "m.png")
    assert "soft edges, which are cut at one half" in caplog.text
    assert "mask m.png: 68.8 % of the pixels are hidden" in caplog.text


def test_a_photograph_as_a_mask_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / "m.png")
    load_mask(tmp_path / "m.png", 16, 16)
    assert "is it a mask?" in caplog.text


@pytest.mark.parametrize("value", [1, 255])
def test_a_mask_that_hides_nothing_is_warned_of(value: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("L", (16, 16), value).save(tmp_path / "m.png")
    assert load_mask(tmp_path / "m.png", 16, 16).all()
    assert "mask m.png hides nothing" in caplog.text


@pytest.mark.parametrize("image", [Image.new("L", (16, 16), 0), Image.new("RGBA", (16, 16), (255, 255, 255, 0))])
def test_a_mask_that_hides_everything_is_refused(image: Image.Image, tmp_path: Path) -> None:
    image.save(tmp_path / "m.png")
    with pytest.raises(InputError, match=r"m\.png' hides every pixel; make observed pixels white, or opaque"):
        load_mask(tmp_path / "m.png", 16, 16)


@pytest.mark.parametrize("values", [np.full((16, 16), np.nan), np.ones((4, 16, 16)), np.ones(256)])
def test_an_array_that_is_no_mask_is_refused(values: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", values)
    with pytest.raises(InputError, match=r"m\.npy"):
        load_mask(tmp_path / "m.npy", 16, 16)


@pytest.mark.parametrize(
    "shape",
    [(3, 16, 16), (16, 16, 3), (1, 3, 16, 16), (1, 16, 16, 3), (2, 16, 16), (16, 16, 4), (2, 1, 16, 16), (0, 16)],
)
def test_several_masks_in_place_of_one_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.random.default_rng(0).random(shape) < 0.5)
    with pytest.raises(InputError) as said:
        read_mask(tmp_path / "m.npy", 16, 16)
    start = f"one mask of shape (H, W) is expected, but '{tmp_path / 'm.npy'}' has {shape}; save one mask a file"
    assert str(said.value) == start


@pytest.mark.parametrize("fit", ["keep", "crop", "pad"])
@pytest.mark.parametrize("size", [(32, 48), (48, 32), (33, 47)])
def test_a_mask_of_the_photographs_size_goes_where_it_goes(
    size: tuple[int, int], fit: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen = np.zeros(size, dtype=np.uint8)
    seen[: size[0] // 2, : size[1] // 3] = 255
    Image.fromarray(seen).save(tmp_path / "m.png")
    Image.fromarray(seen).save(tmp_path / "photo.png")  # the photograph shows the mask, so that both must agree
    with caplog.at_level("INFO"):
        physics = partial(inpainting, mask=tmp_path / "m.png")
        (one,) = measurements(SHAPE, physics, images=tmp_path / "photo.png", fit=fit)
    agree = (one.physics.mask > 0) == (one.truth > 0)
    assert agree.float().mean() > 0.9
    assert set(one.physics.mask.unique().tolist()) == {0, 1}
    done = {"keep": "resized", "crop": "cropped and resized", "pad": "resized and padded"}[fit]
    height, width = one.truth.shape[-2:]
    for name in ("m", "photo"):
        assert f"{name}.png: {size[1]}x{size[0]}, {done} to {width}x{height}" in caplog.text


def test_a_measured_picture_takes_a_mask_of_its_own_size_only(tmp_path: Path) -> None:
    Image.new("L", (16, 16), 128).save(tmp_path / "y.png")
    Image.new("L", (20, 20), 255).save(tmp_path / "m.png")
    data = measurements(SHAPE, partial(inpainting, mask=tmp_path / "m.png"), measurement=tmp_path / "y.png")
    with pytest.raises(InputError, match=r"a mask of 16x16 pixels .* has 20x20"):
        _ = data[0]


@pytest.mark.parametrize(("first", "factor"), [(gaussian_blur, 1), (partial(super_resolution, factor=2), 2)])
def test_a_mask_at_the_end_of_a_composition_lies_where_its_picture_does(first, factor: int, tmp_path: Path) -> None:
    seen = np.random.default_rng(0).random((62 // factor, 62 // factor)) < 0.7
    Image.fromarray(np.where(seen, 100, 255).astype(np.uint8)).save(tmp_path / "y.png")
    Image.fromarray(seen).save(tmp_path / "m.png")
    physics = partial(compose, operators=[first, partial(inpainting, mask=tmp_path / "m.png")])
    (one,) = measurements(ImageSizes((3, 64, 64), multiple=4), physics, measurement=tmp_path / "y.png")
    assert one.image_shape == (3, 64, 64)
    expected = torch.from_numpy(np.pad(seen, (0, 2 // factor), mode="symmetric")).expand(3, -1, -1)
    assert torch.equal(observed_values(one.physics, one.y)[0], expected)
    torch.testing.assert_close(one.y[0], torch.where(expected, 100 / 127.5 - 1, 0.0))
    Image.new("L", (20, 20), 255).save(tmp_path / "m.png")
    with pytest.raises(InputError, match=r"a mask of .* has 20x20"):
        list(measurements(ImageSizes((3, 64, 64), multiple=4), physics, measurement=tmp_path / "y.png"))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Four images, of which three have a mask: by the same name, by another suffix, and of another size."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir(), masks.mkdir()
    for index, name in enumerate("abcd"):
        Image.new("RGB", (32, 32) if name == "c" else (16, 16), (60 * index,) * 3).save(images / f"{name}.png")
    Image.fromarray(SEEN).save(masks / "a.png")
    np.save(masks / "unused.npy", SEEN)
    Image.fromarray(~SEEN).save(masks / "b_mask.tif")
    Image.fromarray(SEEN.repeat(2, 0).repeat(2, 1)).save(masks / "c.gif")
    return images, masks


@pytest.mark.parametrize("what", ["images", "measurement"])
def test_masks_of_a_folder_belong_to_the_images_of_their_names(what: str, folders: tuple[Path, Path]) -> None:
    images, masks = folders
    for where in (masks, masks / "*.*"):
        data = measurements(SHAPE, partial(inpainting, mask=where), **{what: images})
        assert data.names == list("abcd")
        assert (data[0].physics.mask[0, 0].numpy() == SEEN).all()
        assert (data[1].physics.mask[0, 0].numpy() == ~SEEN).all()
        assert (data[1].y[0, 0].numpy()[SEEN] == 0).all()
        with pytest.raises(InputError, match=r"a mask named 'd' is expected in .*masks"):
            _ = data[3]
        assert (data[2].physics.mask[0, 0].numpy() == SEEN).all()
        assert data[2].y.shape == (1, *SHAPE)


def test_two_masks_of_one_name_are_refused(folders: tuple[Path, Path]) -> None:
    images, masks = folders
    Image.fromarray(~SEEN).save(masks / "a.bmp")
    with pytest.raises(InputError, match=r"one mask a picture .*a\.bmp' and '.*a\.png'"):
        measurements(SHAPE, partial(inpainting, mask=masks), images=images)


def test_masks_of_a_folder_can_be_no_part_of_a_composition(folders: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="has a mask for each picture"):
        compose(SHAPE, [partial(inpainting, mask=folders[1]), denoising])


def test_frames_share_the_mask_of_their_file(tmp_path: Path) -> None:
    frames = [Image.new("L", (16, 16), shade) for shade in (0, 255)]
    (tmp_path / "masks").mkdir()
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(SEEN).save(tmp_path / "masks" / "film.png")
    data = measurements(SHAPE, partial(inpainting, mask=tmp_path / "masks"), images=tmp_path / "film.gif")
    assert [(each.physics.mask[0, 0].numpy() == SEEN).all() for each in data] == [True, True]


@pytest.mark.parametrize("factor", [2, 3, 8])
def test_a_reduced_pixel_is_seen_if_all_of_it_is(factor: int, tmp_path: Path) -> None:
    whole = np.full((16 * factor, 16 * factor), 255, dtype=np.uint8)
    whole[:, 5 * factor] = whole[9 * factor - 1] = 0  # scratches of one pixel
    Image.fromarray(whole).save(tmp_path / "m.png")
    seen = np.ones((16, 16), dtype=bool)
    seen[:, 5] = seen[8] = False
    assert (read_mask(tmp_path / "m.png", 16, 16)[0] == seen).all()


def test_scattered_pixels_keep_their_share(tmp_path: Path) -> None:
    scattered = np.random.default_rng(0).random((64, 64)) < 0.2
    Image.fromarray(scattered).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", 16, 16)[0].mean() == pytest.approx(0.2, abs=0.08)


def test_the_files_own_size_is_told(tmp_path: Path) -> None:
    Image.fromarray(SEEN).save(tmp_path / "m.png")
    seen, own = read_mask(tmp_path / "m.png", 8, 8)
    assert (seen.shape, own) == ((8, 8), (16, 16))
