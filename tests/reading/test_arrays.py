"""Arrays from the files that people have."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rlsd_lightning import InputError
from rlsd_lightning.data import ImageMeasurements, measurements
from rlsd_lightning.images import load_image
from rlsd_lightning.operators import denoising
from rlsd_lightning.reading.arrays import load_array
from rlsd_lightning.results.store import write_particles

SHAPE = (3, 8, 8)
Y = np.arange(64, dtype=np.float32).reshape(8, 8) / 63
OTHER = np.ones((2, 3), dtype=np.float32)


def write_h5(path: Path, **arrays: np.ndarray) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file["group/" + name] = values


def write_matlab_7_3(path: Path, **arrays: np.ndarray) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in arrays.items():
            file[name] = values.T
        file["#refs#/a"] = np.zeros(2)
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(128))


def write_matlab_5(path: Path, **arrays: np.ndarray) -> None:
    pytest.importorskip("scipy.io").savemat(path, arrays)


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(each) for name, each in arrays.items()}


WRITERS: dict[str, Callable[..., None]] = {
    "a.npz": np.savez,
    "a.pt": lambda path, **arrays: torch.save(tensors(arrays), path),
    "a.safetensors": lambda path, **arrays: save_file(tensors(arrays), path),
    "a.h5": write_h5,
    "a.mat": write_matlab_7_3,
    "old.mat": write_matlab_5,
}


@pytest.fixture(params=WRITERS)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Callable[..., None]]:
    return tmp_path / request.param, WRITERS[request.param]


def key_of(path: Path, name: str) -> str:
    return f"{path}:{'group/' if path.suffix == '.h5' else ''}{name}"


def test_the_only_array_needs_no_key(file: tuple[Path, Callable[..., None]]) -> None:
    path, write = file
    write(path, y=Y)
    assert (load_array(path) == Y).all()
    assert (load_array(key_of(path, "y")) == Y).all()


def test_one_of_several_arrays_is_chosen_by_its_key(file: tuple[Path, Callable[..., None]]) -> None:
    path, write = file
    write(path, y=Y, other=OTHER)
    assert (load_array(key_of(path, "other")) == OTHER).all()
    with pytest.raises(InputError, match=r"several arrays .*y \(8, 8\).* after a colon, such as"):
        load_array(path)
    with pytest.raises(InputError, match=r"no array 'z' .*other \(2, 3\)"):
        load_array(f"{path}:z")


def test_complex_numbers_are_taken_where_they_are_allowed(file: tuple[Path, Callable[..., None]]) -> None:
    path, write = file
    write(path, y=(Y + 1j * Y**2).astype(np.complex64))
    assert (load_array(path, complex_allowed=True) == (Y + 1j * Y**2).astype(np.complex64)).all()
    with pytest.raises(InputError, match=r"real numbers is expected, but .* holds complex64"):
        load_array(path)


def test_a_plain_tensor_is_read(tmp_path: Path) -> None:
    torch.save(torch.from_numpy(Y).bfloat16().requires_grad_(), tmp_path / "y.pt")
    assert load_array(tmp_path / "y.pt") == pytest.approx(Y, abs=1e-2)


def test_tensors_of_any_precision_are_read(tmp_path: Path) -> None:
    for kind in (torch.bfloat16, torch.float16, torch.float64, torch.uint8, torch.bool):
        save_file({"y": torch.ones(2, 2, dtype=kind)}, tmp_path / "y.safetensors")
        assert (load_array(tmp_path / "y.safetensors") == 1).all()


def test_a_runs_own_tensors_are_a_measurement(tmp_path: Path) -> None:
    y = torch.linspace(-1, 1, 192).reshape(1, *SHAPE)
    write_particles(tmp_path, {"x": torch.zeros(4, *SHAPE), "y": y})
    (one,) = measurements(SHAPE, denoising, measurement=f"{tmp_path / 'particles.safetensors'}:y")
    torch.testing.assert_close(one.y, y)


@pytest.mark.parametrize("layout", ["csc_array", "csr_matrix", "coo_array"])
def test_a_sparse_matrix_is_read(layout: str, tmp_path: Path) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    write_matlab_5(tmp_path / "a.mat", x=getattr(sparse, layout)(Y))
    np.testing.assert_array_equal(load_array(tmp_path / "a.mat"), Y)


def test_a_tensor_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"y": Path}, tmp_path / "y.pt")
    with pytest.raises(InputError, match=r"y.pt' can't be read as an array"):
        load_array(tmp_path / "y.pt")


@pytest.mark.parametrize("name", ["a.npy", *WRITERS, "a.dcm", "a.nii", "a.nii.gz"])
@pytest.mark.parametrize("content", [b"", b"no array", None])
def test_broken_bytes_are_one_line_with_the_name(name: str, content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"'.*{name}' (can't|is) "):
        load_array(tmp_path / name)


@pytest.mark.parametrize("values", [np.array(["a"]), np.array([{}]), np.zeros(2, dtype=[("a", "f4")])])
def test_what_are_no_numbers_is_refused(values: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    with pytest.raises(InputError, match=r"a.npy'"):
        load_array(tmp_path / "a.npy")


# --- scanners ------------------------------------------------------------------------------------------------------


def write_dicom(path: Path, pixels: np.ndarray, **tags: object) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileMetaDataset

    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = pydicom.uid.CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.Rows, data.Columns = pixels.shape[-2:]
    data.NumberOfFrames = len(pixels) if pixels.ndim == 3 else 1
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.PixelRepresentation = 0
    for name, value in tags.items():
        setattr(data, name, value)
    data.PixelData = pixels.astype(np.uint16).tobytes()
    data.save_as(path, enforce_file_format=True)


COUNTS = np.arange(64).reshape(8, 8) * 65  # to 4095


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, COUNTS / 4095 * 2 - 1),
        ({"PhotometricInterpretation": "MONOCHROME1"}, 1 - COUNTS / 4095 * 2),
        ({"RescaleSlope": 0.01, "RescaleIntercept": 0}, COUNTS / 4095 * 2 - 1),
        (
            {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 400},
            ((COUNTS - 1024 - 40) / 200).clip(-1, 1),
        ),
    ],
)
def test_a_slice_is_read_in_its_window_or_bits(tags: dict, expected: np.ndarray, tmp_path: Path) -> None:
    write_dicom(tmp_path / "slice", COUNTS, **tags)  # without a suffix, as scanners name them
    image = load_image(tmp_path / "slice", 8, 8)
    assert image[0, 1].numpy() == pytest.approx(expected, abs=1e-5)


def test_a_negative_takes_the_range_that_is_asked_for(tmp_path: Path) -> None:
    tags = {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 1000, "WindowWidth": 2000}
    write_dicom(tmp_path / "a.dcm", COUNTS, **tags)
    assert load_image(tmp_path / "a.dcm", 8, 8)[0, 0].numpy() == pytest.approx(1 - (COUNTS / 1000).clip(0, 2), abs=1e-5)
    image = load_image(tmp_path / "a.dcm", 8, 8, range="0,4095")
    assert image[0, 0].numpy() == pytest.approx(COUNTS / 4095 * 2 - 1, abs=1e-5)


def test_hounsfield_units_without_a_window_are_asked_about(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", COUNTS, RescaleSlope=1, RescaleIntercept=-1024)
    with pytest.raises(InputError, match=r"from -1024 to 3071.*range="):
        load_image(tmp_path / "a.dcm", 8, 8)
    image = load_image(tmp_path / "a.dcm", 8, 8, range="-160,240")
    assert image[0, 0].numpy() == pytest.approx(((COUNTS - 1024 - 40) / 200).clip(-1, 1), abs=1e-5)


def test_a_folder_of_slices_and_a_file_of_frames_are_series(tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    for index in (10, 9):
        write_dicom(tmp_path / "series" / f"IM{index}", COUNTS)
    assert ImageMeasurements(SHAPE, denoising(SHAPE), tmp_path / "series").names == ["IM9", "IM10"]
    write_dicom(tmp_path / "film.dcm", np.stack([COUNTS, COUNTS[::-1]]))
    first, second = ImageMeasurements(SHAPE, denoising(SHAPE), tmp_path / "film.dcm")
    assert first.truth.equal(second.truth.flip(2))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_volume_is_read_in_axial_slices(suffix: str, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    volume = np.zeros((8, 8, 5), dtype=np.float32)
    volume[6, 1, 2] = 1  # at the patient's right, behind
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / f"v{suffix}")
    data = ImageMeasurements(SHAPE, denoising(SHAPE), tmp_path / f"v{suffix}")
    assert len(data) == 5
    assert (data[2].truth[0, 0] == 1).nonzero().tolist() == [[6, 1]]  # at the picture's left, below
    nibabel.save(nibabel.Nifti1Image(volume * 900, np.eye(4)), tmp_path / f"v{suffix}")
    with pytest.raises(InputError, match=r"from 0 to 900.*range="):
        _ = ImageMeasurements(SHAPE, denoising(SHAPE), tmp_path / f"v{suffix}")[2]


@pytest.mark.parametrize(("name", "package"), [("a.dcm", "pydicom"), ("a.nii.gz", "nibabel"), ("a.mat", "scipy")])
def test_a_package_that_is_missing_is_named(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(bytes(200))
    for module in (package, f"{package}.io"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(
        InputError, match=f"'{name}' is read by {package}, which is not installed; pip install {package}"
    ):
        load_array(tmp_path / name)
