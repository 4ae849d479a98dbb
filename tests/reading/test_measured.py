"""Measured files: one or many, in the units of an image where the operator measures images."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from deepinv.physics import GaussianNoise, Physics
from PIL import Image

from rlsd_lightning import InputError
from rlsd_lightning.data import ImageMeasurements, MeasuredData, load_measured, measurements
from rlsd_lightning.operators import (
    blur,
    colorization,
    compressed_sensing,
    demosaicing,
    denoising,
    hdr,
    inpainting,
    jpeg,
    motion_blur,
    nonlinear_blur,
    phase_retrieval,
    quantization,
    single_pixel,
    super_resolution,
)
from rlsd_lightning.operators.likelihood import data_fit

SHAPE = (3, 16, 16)
IMAGE = np.random.default_rng(0).random(SHAPE)  # in [0, 1]
Y = torch.from_numpy(2 * IMAGE - 1).float()[None]
CLEAN = partial(denoising, sigma=0.0)


def read(path: Path, physics=CLEAN, **settings) -> torch.Tensor:
    return load_measured(path, physics(SHAPE), SHAPE, **settings)


def test_a_cameras_picture_is_read_as_an_image(tmp_path: Path):
    Image.fromarray((IMAGE * 255).round().astype(np.uint8).transpose(1, 2, 0)).save(tmp_path / "y.png")
    assert torch.equal(read(tmp_path / "y.png", nonlinear_blur), read(tmp_path / "y.png"))


@pytest.mark.parametrize(
    ("values", "accuracy"),
    [
        (IMAGE, 1e-6),
        (2 * IMAGE - 1, 0),
        (IMAGE * 255, 1e-6),
        ((IMAGE * 255).round().astype(np.uint8), 0.004),
        ((IMAGE * 255).round().astype(np.int64), 0.004),
        ((IMAGE * 4095).round().astype(np.uint16), 3e-4),
        ((IMAGE * 65535).round().astype(np.uint16), 2e-5),
    ],
)
@pytest.mark.parametrize("layout", ["CHW", "NCHW", "HWC"])
def test_the_same_image_in_any_range_and_layout(
    values: np.ndarray, accuracy: float, layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    np.save(tmp_path / "y.npy", {"CHW": values, "NCHW": values[None], "HWC": values.transpose(1, 2, 0)}[layout])
    with caplog.at_level("INFO"):
        torch.testing.assert_close(read(tmp_path / "y.npy"), Y, atol=accuracy, rtol=0)
    assert "y.npy: " in caplog.text


@pytest.mark.parametrize(
    ("physics", "is_image"),
    [
        (CLEAN, True),
        (partial(inpainting, mask="random"), True),
        (super_resolution, True),
        (motion_blur, True),
        (colorization, True),
        (demosaicing, True),
        (hdr, True),
        (jpeg, True),
        (quantization, True),
        (compressed_sensing, False),
        (phase_retrieval, False),
        (single_pixel, False),
    ],
)
def test_operators_that_measure_images_are_known(physics, is_image: bool, tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", IMAGE[:1])
    assert MeasuredData(SHAPE, physics(SHAPE), tmp_path / "y.npy").of_images is is_image


@pytest.mark.parametrize("physics", [phase_retrieval, single_pixel])
def test_an_instruments_numbers_are_taken_as_they_are(physics, tmp_path: Path) -> None:
    operator = physics(SHAPE, sigma=0.0)
    y = operator(Y) * 100
    np.save(tmp_path / "one.npy", y[0].numpy())
    np.save(tmp_path / "two.npy", torch.cat([y, 2 * y]).numpy())
    assert read(tmp_path / "one.npy", physics).equal(y)
    data = measurements(SHAPE, physics, measurement=tmp_path / "two.npy")
    assert [each.y.equal(factor * y) for factor, each in enumerate(data, start=1)] == [True, True]
    with pytest.raises(InputError, match="range and axes are of images, which this operator does not measure"):
        read(tmp_path / "one.npy", physics, range="0,255")
    Image.new("L", (16, 16)).save(tmp_path / "y.png")
    with pytest.raises(InputError, match="integers of a picture, whose unit is not known"):
        read(tmp_path / "y.png", physics)


class Instrument(Physics):
    """Measures the sum of each column, and understands it as complex numbers."""

    def __init__(self) -> None:
        super().__init__(noise_model=GaussianNoise(0.1))

    def A(self, x: torch.Tensor, **kwargs) -> torch.Tensor:  # noqa: N802
        return x.sum(dim=(1, 2))

    def from_array(self, values: np.ndarray) -> torch.Tensor:
        if values.shape[-1] != 16:
            raise InputError(f"sums of shape (n, 16) are expected, got {values.shape}")
        return torch.from_numpy(np.atleast_2d(values).real.astype(np.float32))


def test_an_operator_may_understand_arrays_of_its_instrument(tmp_path: Path) -> None:
    raw = np.arange(32).reshape(2, 16) * (1 + 1j)
    np.save(tmp_path / "y.npy", raw)
    data = measurements(SHAPE, lambda image_shape: Instrument(), measurement=tmp_path / "y.npy")
    assert data.names == ["0000", "0001"]
    assert data[1].y.tolist() == [list(range(16, 32))]
    np.save(tmp_path / "y.npy", raw[:, :5])
    with pytest.raises(InputError, match=r"\(n, 16\) are expected, got \(2, 5\)"):
        measurements(SHAPE, lambda image_shape: Instrument(), measurement=tmp_path / "y.npy")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(3):
        Image.new("RGB", (16, 16), (100 * index,) * 3).save(tmp_path / f"scan{index}.png")
    return tmp_path


@pytest.mark.parametrize("where", ["", "*.png", "scan[0-2].*"])
def test_a_folder_or_pattern_gives_many_measurements(where: str, folder: Path) -> None:
    data = measurements(SHAPE, CLEAN, measurement=folder / where)
    assert data.names == ["scan0", "scan1", "scan2"]
    assert [each.y.mean().item() for each in data] == pytest.approx([100 * i / 127.5 - 1 for i in range(3)], abs=1e-6)
    assert all(each.truth is None for each in data)


def test_limit_and_sequence_are_those_of_images(folder: Path) -> None:
    data = measurements(SHAPE, CLEAN, measurement=folder, limit=2, sequence=True)
    assert (len(data), data.available, data.sequence) == (2, 3, True)
    assert len({each.noise_key for each in data}) == 1
    with pytest.raises(InputError, match="limit must be at least 1, got 0"):
        measurements(SHAPE, CLEAN, measurement=folder, limit=0)


def test_a_broken_file_among_many_costs_no_other(folder: Path) -> None:
    (folder / "scan1.png").write_text("no picture")
    np.save(folder / "unused.npy", IMAGE)
    data = measurements(SHAPE, CLEAN, measurement=folder)
    assert data[0].y.shape == data[2].y.shape == (1, *SHAPE)
    with pytest.raises(InputError, match=r"scan1\.png' can't be read"):
        _ = data[1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["array", "picture"])
def test_values_that_a_mask_hides_may_be_anything(bad: float, where: str, tmp_path: Path) -> None:
    values = IMAGE[0].astype(np.float32)
    values[8:] = bad  # the lower half, which the mask hides
    path = tmp_path / ("y.npy" if where == "array" else "y.tif")
    np.save(path, values) if where == "array" else Image.fromarray(values).save(path)
    y = read(path, partial(inpainting, mask="half"))
    torch.testing.assert_close(y[:, 1, :8], Y[:, 0, :8], atol=1e-6, rtol=0)
    assert (y[:, :, 8:] == 0).all()
    with pytest.raises(InputError, match=r"128 of 256 values .* are NaN or infinite"):
        read(path)


@pytest.mark.parametrize(
    ("size", "physics", "image"),
    [
        ((20, 24), super_resolution, (80, 96)),
        ((5, 5), partial(super_resolution, factor=2), (10, 10)),
        ((9, 7), CLEAN, (9, 7)),
    ],
)
def test_an_image_has_the_size_that_its_measurement_implies(size, physics, image, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "y.png")
    (one,) = measurements(SHAPE, physics, measurement=tmp_path / "y.png")
    assert one.image_shape == (3, *image)
    assert one.y.equal(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1)
    assert one.physics.A(torch.zeros(1, *one.image_shape)).shape == one.y.shape
    # an operator of one size says which is expected
    with pytest.raises(InputError, match=rf"an image of 16x16 .* got one of {image[1]}x{image[0]}; crop"):
        read(tmp_path / "y.png", physics)


@pytest.mark.parametrize("values", [IMAGE * 1000, IMAGE - 0.2, np.where(IMAGE > 0.5, IMAGE, np.nan)])
def test_a_measured_image_that_is_not_understood_is_refused(values: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", values)
    with pytest.raises(InputError, match=r"y\.npy"):
        read(tmp_path / "y.npy")


def test_one_measurement_is_not_several(folder: Path) -> None:
    with pytest.raises(InputError, match=r"one measurement is expected, but .* has 3"):
        read(folder)


# --- kernels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 3), (4, 4), (5, 2), (1, 6)])
@pytest.mark.parametrize("leading", [(), (1,), (1, 1)])
def test_a_kernel_convolves_as_scipys_does(shape: tuple[int, int], leading: tuple[int, ...], tmp_path: Path) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(1)
    weights = rng.random(shape) + np.eye(*shape)
    np.save(tmp_path / "k.npy", weights.reshape(*leading, *shape))
    expected = [ndimage.convolve(channel, weights / weights.sum(), mode="wrap") for channel in 2 * IMAGE - 1]
    operator = blur(SHAPE, tmp_path / "k.npy", sigma=0.05)
    torch.testing.assert_close(operator.A(Y)[0].double().numpy(), np.stack(expected), atol=1e-5, rtol=0)
    noisy = np.stack(expected) + 0.05 * rng.standard_normal(SHAPE)
    fit = data_fit(operator, Y, torch.from_numpy(noisy).float()[None])
    assert fit["residual_sigmas"] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("shape", [(3, 5), (4, 4), (2, 6)])
def test_a_kernels_centre_is_half_its_size(shape: tuple[int, int], tmp_path: Path) -> None:
    weights = np.zeros(shape)
    weights[shape[0] // 2, shape[1] // 2] = 1
    np.save(tmp_path / "k.npy", weights)
    torch.testing.assert_close(blur(SHAPE, tmp_path / "k.npy").A(Y), Y, atol=1e-5, rtol=0)


def test_a_kernels_corner_moves_the_image_there(tmp_path: Path) -> None:
    weights = np.zeros((5, 5))
    weights[0, 0] = 1
    np.save(tmp_path / "k.npy", weights)
    torch.testing.assert_close(blur(SHAPE, tmp_path / "k.npy").A(Y), Y.roll((-2, -2), (2, 3)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [ImageMeasurements, MeasuredData])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_slice_costs_no_other(tmp_path: Path, kind: type, bad: float) -> None:
    values = np.stack([np.linspace(0, top, 256, dtype=np.float32).reshape(16, 16) for top in (0.5, 1.0, 0.25)])
    values[1, 3, 4] = bad
    np.save(tmp_path / "stack.npy", values)
    data = kind(SHAPE, denoising(SHAPE, sigma=0), tmp_path / "stack.npy", axes="NHW")
    for index, top in ((0, 0.0), (2, -0.5)):
        assert data[index].y.max() == pytest.approx(top, abs=1e-6)
    with pytest.raises(InputError, match="1 of 256 values"):
        _ = data[1]


def test_one_broken_page_costs_no_other(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16), np.uint8)) for seed in range(3)]
    file = tmp_path / "stack.tif"
    pages[0].save(file, save_all=True, append_images=pages[1:], compression="tiff_lzw")
    data = file.read_bytes()
    with Image.open(file) as opened:
        opened.seek(1)
        start = opened.tag_v2[273][0]  # where the page's values lie
    file.write_bytes(data[:start] + b"\xff" * 64 + data[start + 64 :])
    measured = MeasuredData(SHAPE, denoising(SHAPE), file)
    assert measured[0].y.shape == measured[2].y.shape == (1, *SHAPE)
    with pytest.raises(InputError, match="can't be read"):
        _ = measured[1]


def test_each_slice_has_its_own_mask(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((3, 16, 16), dtype=np.float32)
    (tmp_path / "masks").mkdir()
    for index in range(3):
        values[index, index] = np.nan
        pixels = np.full((16, 16), 255, np.uint8)
        pixels[index] = 0
        Image.fromarray(pixels).save(tmp_path / "masks" / f"{index:04d}.png")
    values[2, 5] = np.nan  # which no mask hides
    np.save(tmp_path / "stack.npy", values)
    physics = partial(inpainting, mask=str(tmp_path / "masks"))
    data = measurements(SHAPE, physics, measurement=tmp_path / "stack.npy", axes="NHW")
    assert all(data[index].y.isfinite().all() for index in (0, 1))
    with pytest.raises(InputError, match="16 of 240 values"):
        _ = data[2]
