"""A thousand combinations of files, settings and broken bytes: an image that is one, or an InputError, and nothing else."""

import io
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from rlsd_lightning import InputError
from rlsd_lightning.data import measurements
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.operators import blur, colorization, denoising, inpainting, mri, super_resolution
from rlsd_lightning.reading.arrays import load_array
from rlsd_lightning.reading.frames import FITS

SHAPE = (3, 16, 16)
COMBINATIONS = 1000
FORMATS = ("png", "jpg", "tif", "gif", "webp", "bmp")
WRITERS: dict[str, Callable[[Path, np.ndarray], None]] = {
    "npy": np.save,
    "npz": np.savez,
    "pt": lambda path, values: torch.save(torch.from_numpy(values), path),
    "safetensors": lambda path, values: save_file({"values": torch.from_numpy(values)}, path),
}
ARRAYS = tuple(WRITERS)
DTYPES = ("bool", "uint8", "int8", "uint16", "int16", "int64", "float16", "float32", "float64", "complex64")
SHAPES = (
    (16, 16),
    (16, 16, 3),
    (3, 16, 16),
    (1, 16, 16),
    (2, 16, 16),
    (2, 16, 16, 3),
    (4, 4, 3),
    (20, 12),
    (7,),
    (0, 3),
)
TOPS = (1, 1, 1, 20, 200, 255, 4095, 65535, 3e9)
RANGES = (*[None] * 12, "0,1", "-1,1", "0,255", "0,65535", "255,0", "x")
AXES = (*[None] * 12, "HW", "CHW", "NHW", "HWC", "NHWC", "QQ")
MODES = ("L", "RGB", "RGBA", "LA", "P", "1", "CMYK", "I;16", "F")


def pick(rng: np.random.Generator, choices: tuple):
    return choices[rng.integers(len(choices))]


def draw_array(rng: np.random.Generator) -> np.ndarray:
    """Values of any type, shape and range, now and then with NaN or infinity."""
    kind, top = np.dtype(pick(rng, DTYPES)), pick(rng, TOPS)
    values = rng.random(pick(rng, SHAPES)) * top - (top / 2 if rng.random() < 0.2 else 0)
    if kind.kind in "iu":
        values = values.clip(np.iinfo(kind).min, min(top, np.iinfo(kind).max))
    with np.errstate(over="ignore"):
        values = values.astype(kind)
    if kind.kind == "f" and values.size and rng.random() < 0.2:
        values.flat[rng.integers(values.size)] = pick(rng, (np.nan, np.inf, -np.inf))
    return values


def draw_picture(rng: np.random.Generator) -> bytes:
    """A file's bytes; its format and mode need not go together, which gives no file."""
    suffix, mode = pick(rng, FORMATS), pick(rng, MODES)
    side = pick(rng, (16, 16, 9, 33))
    if mode in ("I;16", "F"):
        values = rng.random((side, side)) * pick(rng, TOPS[:-1])
        image = Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.float32))
    else:
        pixels = rng.integers(0, 256, (side, side, 4), dtype=np.uint8)
        image = Image.fromarray(pixels).convert(mode if mode == "RGBA" else "RGB").convert(mode)
    buffer, exif = io.BytesIO(), rng.bytes(20) if rng.random() < 0.1 and suffix != "tif" else b""
    options = {"save_all": True, "append_images": [image]} if suffix in ("tif", "gif", "webp") else {}
    image.save(buffer, "jpeg" if suffix == "jpg" else {"tif": "tiff"}.get(suffix, suffix), exif=exif, **options)
    return buffer.getvalue()


def draw_file(rng: np.random.Generator, path: Path) -> tuple[Path, bool]:
    """A picture or an array, and whether it is whole."""
    if rng.random() < 0.5:
        path = path.with_suffix(f".{pick(rng, ARRAYS)}")
        WRITERS[path.suffix[1:]](path, draw_array(rng))
    else:
        path = path.with_suffix(f".{pick(rng, FORMATS)}")
        try:
            path.write_bytes(draw_picture(rng))
        except (OSError, KeyError, ValueError, SystemError):  # no such mode in this format
            path.write_bytes(rng.bytes(50))
    content = path.read_bytes()
    is_whole = not content or rng.random() >= 0.15
    if not is_whole:  # cut, overwritten, or both
        broken = bytearray(content[: rng.integers(len(content)) if rng.random() < 0.5 else None])
        for place in rng.integers(0, max(1, len(broken)), 4)[: len(broken)]:
            broken[place] = rng.integers(256)
        path.write_bytes(broken)
    return path, is_whole


def draw_operator(rng: np.random.Generator, path: Path) -> Callable:
    """An operator, now and then with a mask or a kernel from a file."""
    if rng.random() < 0.4:
        file, _ = draw_file(rng, path)
        return partial(inpainting, mask=file) if rng.random() < 0.5 else partial(blur, kernel=file)
    kinds = (denoising, partial(inpainting, mask="half"), partial(super_resolution, factor=2), colorization, mri)
    return pick(rng, kinds)


def check_image(measurement: Measurement, what: str) -> None:
    image = measurement.truth
    assert image.shape == (1, *measurement.image_shape), what
    assert max(image.shape) <= 16, what
    assert torch.isfinite(image).all() and image.abs().max() <= 1, what


def test_a_thousand_combinations_give_images_or_one_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(20261126)
    read = refused = 0
    warnings.simplefilter("ignore")
    for number in range(COMBINATIONS):
        folder = tmp_path / str(number % 50)
        folder.mkdir(exist_ok=True)
        file, is_whole = draw_file(rng, folder / f"{number}")
        physics = draw_operator(rng, folder / f"{number}_other")
        measured = bool(rng.integers(2))
        settings = {"range": pick(rng, RANGES), "axes": pick(rng, AXES), "fit": FITS[number % 3]}
        what = f"{file} with {settings}, {physics}, measured: {measured}"
        try:
            data = measurements(SHAPE, physics, **{"measurement" if measured else "images": file}, **settings)
            found = [data[index] for index in range(min(2, len(data)))]
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 600, what
            str(error).encode()
            refused += 1
            continue
        for measurement in found:
            read += 1
            assert torch.isfinite(measurement.y).all(), what
            if not measured:
                check_image(measurement, what)
                # values are spread from black to white: what is nearly black was taken for another range
                unknown = file.suffix[1:] in FORMATS or settings["range"] or not is_whole
                assert unknown or measurement.truth.mean() > -0.7 or load_array(file).max() < 128, what
            elif data.of_images:
                # a range that was guessed wrongly would give values far from an image's, or all of them nearly black
                assert measurement.y.abs().max() <= 4.1, what
    assert read > 200 and refused > 200, (read, refused)


def test_a_broken_neighbour_costs_no_other(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    good = []
    for number in range(60):
        file, _ = draw_file(rng, tmp_path / f"{number:02d}")
        if file.suffix[1:] in ARRAYS:
            file.unlink()
        if number % 4 == 0:
            file.unlink(missing_ok=True)
            Image.new("RGB", (16, 16), "red").save(tmp_path / f"{number:02d}_good.png")
            good.append(f"{number:02d}_good")
    data = measurements(SHAPE, denoising, images=tmp_path)
    read = set()
    for index, name in enumerate(data.names):
        try:
            check_image(data[index], name)
            read.add(name)
        except InputError as error:
            assert name.split("_")[0] in str(error)
    assert set(good) < read < set(data.names)
