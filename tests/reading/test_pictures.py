"""Pictures of the kinds that people have, beyond ordinary ones (tests/test_data.py)."""

import os
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from rlsd_lightning import InputError
from rlsd_lightning.data import ImageMeasurements, ImageSizes, measurements
from rlsd_lightning.images import find_images, load_image
from rlsd_lightning.operators import denoising, inpainting
from rlsd_lightning.reading.pictures import frames_of, open_picture, open_upright, read_picture

SHAPE = (3, 16, 16)


STORED = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
"""How an upright picture lies in a file of each orientation."""


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def write_png(path: Path, values: np.ndarray, *chunks: tuple[bytes, bytes]) -> Path:
    """A PNG of 16 bits, which Pillow can't write in colour."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    framed = (
        struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data)) for tag, data in parts
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))
    return path


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("top", [65535, 4095, 255])
def test_a_png_of_16_bits_loses_none(tmp_path: Path, rng: np.random.Generator, channels: int, top: int) -> None:
    values = rng.integers(0, top + 1, (16, 16, channels)).astype(np.uint16)
    values[0, 0] = top
    image = load_image(write_png(tmp_path / "a.png", values), 16, 16)
    expected = torch.from_numpy(values / top * 2 - 1).float().movedim(-1, 0)[None].expand(1, 3, 16, 16)
    torch.testing.assert_close(image, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [2, 4])
def test_a_transparent_png_of_16_bits_is_laid_on_white(tmp_path: Path, channels: int) -> None:
    values = np.zeros((16, 16, channels), dtype=np.uint16)
    values[:8, :, -1] = 65535
    values[:8, :, :-1] = 4000  # in 12 bits
    values[0, 0] = 4095
    image = load_image(write_png(tmp_path / "a.png", values), 16, 16)
    assert image[0, :, 1:8].unique().tolist() == pytest.approx([4000 / 4095 * 2 - 1])
    assert (image[:, :, 8:] == 1).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_colour_of_16_bits_is_refused(tmp_path: Path, channels: int) -> None:
    key = struct.pack(f">{channels}H", *range(1000, 1000 + channels))
    file = write_png(tmp_path / "keyed.png", np.full((2, 2, channels), 1000), (b"tRNS", key))
    with pytest.raises(InputError, match=r"keyed\.png' has 16 bits and a transparent colour"):
        read_picture(file)


def test_a_colour_tiff_of_16_bits_loses_none(tmp_path: Path, rng: np.random.Generator) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = rng.integers(0, 4096, (16, 16, 3)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    expected = torch.from_numpy(values / 4095 * 2 - 1).float().movedim(-1, 0)[None]
    torch.testing.assert_close(load_image(tmp_path / "a.tif", 16, 16), expected, atol=1e-6, rtol=0)


def test_twelve_bits_in_sixteen_are_said_and_can_be_overruled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = np.full((16, 16), 4095, dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    with caplog.at_level("INFO"):
        assert (load_image(tmp_path / "a.png", 16, 16) == 1).all()
    assert "a.png: integers of 12 bits in 16: 0 is black, 4095 is white" in caplog.text
    dark = load_image(tmp_path / "a.png", 16, 16, range="0,65535")
    torch.testing.assert_close(dark, torch.full_like(dark, 4095 / 65535 * 2 - 1))


def test_the_scaling_is_said_once_for_all_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for index in range(3):
        Image.fromarray(np.full((9, 9), 3000 + index, dtype=np.uint16)).save(tmp_path / f"{index}.png")
    with caplog.at_level("INFO"):
        list(ImageMeasurements(SHAPE, denoising(SHAPE), tmp_path))
    assert caplog.text.count("12 bits in 16") == 1
    assert caplog.text.count("9x9, resized to 16x16") == 1


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "P", "PA", "LA", "1", "I;16", "I", "F"])
def test_every_mode_is_read(tmp_path: Path, mode: str) -> None:
    if mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        image = Image.fromarray(np.full((16, 16), 1 if mode == "F" else 65535, dtype=kind))
    else:
        image = Image.new("RGBA" if mode in ("PA", "LA") else "RGB", (16, 16), "white").convert(mode)
    assert image.mode == mode
    suffix = {"YCbCr": "jpg"}.get(mode, "tif" if mode in ("CMYK", "I", "F") else "png")
    if mode in ("HSV", "PA"):
        image = image.convert("RGBA")
    image.save(tmp_path / f"a.{suffix}")
    assert load_image(tmp_path / f"a.{suffix}", 16, 16).min() > 0.98


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_a_tiff_is_turned_upright_once(
    mode: str, compression: str, orientation: int, tmp_path: Path, rng: np.random.Generator
) -> None:
    pixels = rng.integers(0, 256, (12, 20, 3) if mode == "RGB" else (12, 20)).astype("u2" if mode == "I;16" else "u1")
    tags = ImageFileDirectory_v2()
    tags[274] = orientation
    lying = Image.fromarray(pixels).transpose(STORED[orientation])
    lying.save(tmp_path / "a.tif", compression=compression, tiffinfo=tags)
    found = np.asarray(read_picture(tmp_path / "a.tif"))
    assert np.array_equal(found[..., 0] if mode == "L" else found, pixels)
    with open_upright(tmp_path / "a.tif") as upright:
        assert np.array_equal(np.asarray(upright), pixels)


def test_a_number_that_no_picture_of_a_stack_has_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 8, 8), np.float32))
    for number in (5, -1):
        with pytest.raises(InputError, match=f"has 5 pictures, numbered from 0, got number {number}"):
            load_image(tmp_path / "a.npy", 8, 8, axes="NHW", page=number)


def test_a_picture_of_two_pixels_fills_any_size(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[0, 255]], np.uint8))
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "a.png")
    for name in ("a.npy", "a.png"):
        assert load_image(tmp_path / name, 64, 16).shape == (1, 3, 64, 16)
    with pytest.raises(InputError, match="height must be at least 1, got 0"):
        load_image(tmp_path / "a.png", 0, 16)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\xff"]
)
def test_broken_exif_data_leave_the_pixels_as_they_lie(tmp_path: Path, rng: np.random.Generator, exif: bytes) -> None:
    pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for name in ("a.png", "a.webp"):
        Image.fromarray(pixels).save(tmp_path / name, exif=exif, lossless=True)
        image = load_image(tmp_path / name, 16, 16)
        assert image.equal(torch.from_numpy(pixels).movedim(-1, 0)[None] / 127.5 - 1)


def test_a_picture_above_pillows_limit_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "big.png")
    Image.new("L", (64, 48), 255).save(tmp_path / "half.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(InputError, match=r"big\.png' has more than .* megapixels"):
        load_image(tmp_path / "big.png", 16, 16)
    with pytest.warns(Image.DecompressionBombWarning):
        assert read_picture(tmp_path / "half.jpg").size == (64, 48)  # as its mask


def test_what_is_no_picture_is_one_line_with_the_files_name(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("x")
    with pytest.raises(
        InputError, match=r"broken\.png' can't be read as an image \(no known format\); remove it or save"
    ):
        load_image(tmp_path / "broken.png", 16, 16)


def profile_of(space: bytes) -> bytes:
    """The header of a colour profile, with its colour space."""
    return b"\0" * 16 + space + b"XYZ " + b"\0" * 104


@pytest.mark.parametrize("space", [b"RGB ", b"CMYK", b"GRAY", b"Lab ", b""])
@pytest.mark.parametrize(
    ("mode", "suffix"), [("CMYK", "jpg"), ("L", "jpg"), ("RGB", "jpg"), ("L", "png"), ("P", "png")]
)
def test_a_colour_picture_has_a_profile_of_colours_or_none(
    mode: str, suffix: str, space: bytes, tmp_path: Path
) -> None:
    file = tmp_path / f"a.{suffix}"
    Image.new("RGB", (20, 24), "white").convert(mode).save(file, icc_profile=profile_of(space))
    assert ("icc_profile" in read_picture(file).info) is (space == b"RGB ")
    (one,) = measurements(ImageSizes(SHAPE), partial(inpainting, mask="half"), images=file)
    (whole,) = one.original.with_image([Image.new("RGB", one.image_shape[:0:-1])], one.physics)
    whole.save(tmp_path / "whole.png")
    assert ("icc_profile" in Image.open(tmp_path / "whole.png").info) is (space == b"RGB ")


@pytest.mark.parametrize("suffix", ["tif", "gif", "webp", "avif"])
@pytest.mark.parametrize("what", ["images", "measurement"])
def test_pages_and_frames_are_pictures_of_their_own(tmp_path: Path, suffix: str, what: str) -> None:
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    shades = [Image.new("L", (16, 16), shade) for shade in (0, 128, 255)]
    shades[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=shades[1:])
    data = measurements(SHAPE, lambda image_shape: denoising(SHAPE, sigma=0), **{what: tmp_path / f"a.{suffix}"})
    assert data.names == ["0000", "0001", "0002"]
    assert [round(each.y.mean().item()) for each in data] == [-1, 0, 1]
    shades[0].save(tmp_path / "b.png")
    data = measurements(SHAPE, lambda image_shape: denoising(SHAPE), **{what: tmp_path})
    assert data.names == ["a_0000", "a_0001", "a_0002", "b"]


def test_pages_share_one_range(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((16, 16), value, dtype=np.uint16)) for value in (200, 40000)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    first, second = ImageMeasurements(SHAPE, denoising(SHAPE), tmp_path / "a.tif")
    assert first.truth.mean().item() == pytest.approx(200 / 65535 * 2 - 1, abs=1e-5)
    assert second.truth.mean().item() == pytest.approx(40000 / 65535 * 2 - 1, abs=1e-5)


def test_an_ordinary_picture_has_one_frame_and_is_not_opened_for_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    assert frames_of(tmp_path / "a.png") == 1


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    for name in ("face.png", "._face.png", ".DS_Store", ".hidden.jpg"):
        (tmp_path / name).touch()
    assert [file.name for file in find_images(tmp_path)] == ["face.png"]
    assert [file.name for file in find_images(tmp_path / "*.png")] == ["face.png"]


def test_a_name_that_is_no_utf_8_is_escaped(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    try:
        Image.new("RGB", (16, 16)).save(os.fsdecode(folder + b"/gr\xf6n.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    (tmp_path / os.fsdecode(b"br\xfcn.png")).write_text("no picture")
    Image.new("RGB", (16, 16)).save(tmp_path / "grün.png")
    data = ImageMeasurements(SHAPE, denoising(SHAPE), tmp_path)
    assert sorted(data.names) == ["br%FCn", "gr%F6n", "grün"]
    assert data[data.names.index("gr%F6n")].y.shape == (1, *SHAPE)
    with pytest.raises(InputError, match=r"br%FCn\.png' can't be read") as refused:
        _ = data[data.names.index("br%FCn")]
    str(refused.value).encode()


@pytest.mark.parametrize(
    ("name", "advice"), [("a.mp4", "ffmpeg -i"), ("a.heic", "magick"), ("a.CR2", "raw converter"), ("a.psd", "export")]
)
def test_other_containers_get_the_way_to_convert_them(tmp_path: Path, name: str, advice: str) -> None:
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(InputError, match=rf"{name}' can't be read .*{advice}"):
        load_image(tmp_path / name, 16, 16)
    with pytest.raises(InputError, match=rf"{name}': .*{advice}"):
        find_images(tmp_path)


def test_what_a_folder_has_besides_its_pictures_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.png", "b.heic", "c.npy", "notes.txt"):
        (tmp_path / name).touch()
    with caplog.at_level("INFO"):
        assert [file.name for file in find_images(tmp_path)] == ["a.png"]
    assert "1 files are taken, others are left out (1 .heic, 1 .npy)" in caplog.text


def test_arrays_of_a_folder_are_taken_where_it_has_no_pictures(tmp_path: Path) -> None:
    for index in (0, 1):
        np.save(tmp_path / f"{index}.npy", np.full((16, 16), index, dtype=np.float32))
    data = ImageMeasurements(SHAPE, denoising(SHAPE), tmp_path)
    assert [each.truth.mean().item() for each in data] == [-1, 1]


def test_eight_bits_of_any_picture(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 4095, 256).astype(np.uint16).reshape(16, 16)).save(tmp_path / "a.png")
    picture = open_picture(tmp_path / "a.png")
    assert (picture.mode, picture.getextrema()) == ("RGB", ((0, 255),) * 3)


def test_a_picture_of_zeros_and_ones_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.fromarray(np.eye(16, dtype=np.uint8)).save(tmp_path / "a.png")
    load_image(tmp_path / "a.png", 16, 16)
    assert "a.png: nearly black; if its largest value is white, set range=0,1" in caplog.text
    assert load_image(tmp_path / "a.png", 16, 16, range="0,1").unique().tolist() == [-1, 1]


def test_an_animated_png_says_that_it_is_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames = [Image.new("RGB", (16, 16), (shade,) * 3) for shade in (10, 200)]
    for name in ("a.png", "b.apng"):
        frames[0].save(tmp_path / name, "PNG", save_all=True, append_images=frames[1:])
    assert ImageMeasurements(SHAPE, denoising(SHAPE), tmp_path).names == ["a", "b_0000", "b_0001"]
    load_image(tmp_path / "a.png", 16, 16)
    assert "a.png has 2 frames, of which the first is used; name it .apng" in caplog.text


@pytest.mark.parametrize("where", ["", "x" * 5000, "a\0b", "[", "nowhere/**"])
def test_a_place_that_can_not_be_is_one_line(where: str) -> None:
    with pytest.raises(InputError, match="images must be an image, a folder or a pattern"):
        find_images(where)
