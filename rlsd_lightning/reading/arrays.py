"""Arrays from files: numpy, torch, safetensors, MATLAB, HDF5, DICOM and NIfTI."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from rlsd_lightning.errors import InputError
from rlsd_lightning.reading.paths import reading, split_key
from rlsd_lightning.reading.values import Range

__all__ = ["Array", "TakesArrays", "load_array", "read_array"]


class Array(NamedTuple):
    """An array, and what its file says of it.

    Attributes:
        values: The values.
        axes: Its axes, if the file tells them, as in :func:`~rlsd_lightning.reading.shapes.check_axes`.
        range: Black and white, if the file tells them.
    """

    values: np.ndarray
    axes: str | None = None
    range: Range | None = None


@runtime_checkable
class TakesArrays(Protocol):
    """An operator that understands arrays of its instrument, such as complex ones or those in another axis order."""

    def from_array(self, values: np.ndarray) -> Tensor:
        r"""Measurements of real values from an array as it was saved, real or complex.

        Returns:
            With shape :math:`(n, \dots)`: n measurements, each of the shape of :math:`A(x)`.

        Raises:
            InputError: If the array can't be the operator's; the message names the axes that are expected.
        """


def load_array(path: str | Path, complex_allowed: bool = False) -> np.ndarray:
    """Array of real numbers, or of complex ones where these are allowed, from a file.

    Args:
        path: A .npy, .npz, .pt, .safetensors, .mat, .h5, DICOM or NIfTI file; ``file.h5:key`` chooses one of several
            arrays.
        complex_allowed: Whether the numbers may be complex.

    Raises:
        InputError: If the file is missing, can't be read or holds something else, or several arrays and no key is given.
    """
    return read_array(*split_key(path), complex_allowed).values


def read_array(path: Path, key: str | None = None, complex_allowed: bool = False) -> Array:
    """As :func:`load_array`, with what the file says of its axes and range."""
    suffix = ".nii" if path.name.lower().endswith(".nii.gz") else path.suffix.lower()
    with reading(path, "an array", "save it with numpy.save"):
        array = _READERS.get(suffix, _dicom)(path, key)
    kind = array.values.dtype
    if kind.kind not in ("biufc" if complex_allowed else "biuf"):
        raise InputError(f"an array of real numbers is expected, but '{path}' holds {kind}; save one with numpy.save")
    return array


def _numpy(path: Path, key: str | None) -> Array:
    # a mapped file is read where it is needed only: a stack may be larger than the memory
    loaded = np.load(path, mmap_mode="r") if path.suffix.lower() == ".npy" else np.load(path)
    if isinstance(loaded, np.ndarray):
        return Array(loaded)
    with loaded:  # several arrays, whatever the suffix
        return Array(loaded[_chosen(path, key, dict.fromkeys(loaded.files, ()), lambda name: loaded[name].shape)])


def _torch(path: Path, key: str | None) -> Array:
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(loaded, Mapping):
        tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
        loaded = tensors[_chosen(path, key, tensors, lambda name: tuple(tensors[name].shape))]
    if not isinstance(loaded, Tensor):
        raise InputError(f"a tensor is expected, but '{path}' holds a {type(loaded).__name__}; save one")
    return _of_tensor(loaded)


def _of_tensor(tensor: Tensor) -> Array:
    tensor = tensor.detach()
    return Array((tensor.float() if tensor.dtype == torch.bfloat16 else tensor.resolve_conj()).numpy())


def _safetensors(path: Path, key: str | None) -> Array:
    with safe_open(path, framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 no mapping
        return _of_tensor(file.get_tensor(_chosen(path, key, shapes, lambda name: shapes[name])))


def _hdf5(path: Path, key: str | None, of_matlab: bool = False) -> Array:
    h5py = needed("h5py", path)
    with h5py.File(path, "r") as file:
        shapes: dict[str, tuple[int, ...]] = {}
        file.visititems(
            lambda name, each: shapes.update({name: each.shape}) if isinstance(each, h5py.Dataset) else None
        )
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith("#")}  # MATLAB's own
        order = -1 if of_matlab else 1  # MATLAB's first axis is HDF5's last
        values = np.asarray(_complex(file[_chosen(path, key, shapes, lambda name: shapes[name][::order])][()]))
    return Array(values.T if of_matlab else values)


def _complex(values: np.ndarray) -> np.ndarray:
    """Complex numbers that MATLAB and others store as pairs; other values as they are."""
    names = values.dtype.names if isinstance(values, np.ndarray) else None
    if names and len(names) == 2 and {name[0].lower() for name in names} == {"r", "i"}:
        real, imaginary = sorted(names, reverse=True)
        return values[real] + 1j * values[imaginary]
    return values


def _matlab(path: Path, key: str | None) -> Array:
    with path.open("rb") as file:
        is_hdf5 = b"MATLAB 7.3" in file.read(128)
    if is_hdf5:
        return _hdf5(path, key, of_matlab=True)
    loaded = needed("scipy.io", path).loadmat(path)
    arrays = {name: value for name, value in loaded.items() if not name.startswith("__")}
    chosen = arrays[_chosen(path, key, arrays, lambda name: arrays[name].shape)]
    return Array(chosen if isinstance(chosen, np.ndarray) else chosen.toarray())  # sparse


def _dicom(path: Path, key: str | None) -> Array:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file '{path}'")
    from rlsd_lightning.reading.medical import read_dicom

    return Array(*read_dicom(needed("pydicom", path), path))


def _nifti(path: Path, key: str | None) -> Array:
    from rlsd_lightning.reading.medical import read_nifti

    return Array(*read_nifti(needed("nibabel", path), path))


def needed(module: str, path: Path) -> ModuleType:
    """A package that reads one kind of file.

    Raises:
        InputError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        extra = " (or the extra: pip install 'rlsd-lightning[medical]')" if package in ("pydicom", "nibabel") else ""
        raise InputError(
            f"'{path.name}' is read by {package}, which is not installed; pip install {package}{extra}, or save the "
            "array with numpy.save"
        ) from error


def _chosen(path: Path, key: str | None, names: Mapping[str, object], shape: Callable[[str], object]) -> str:
    """The name of the array that a key chooses, or of the only one."""
    if key is None and len(names) == 1:
        return next(iter(names))
    if key is not None and key.strip("/") in names:
        return key.strip("/")
    listed = ", ".join(f"{name} {shape(name)}" for name in list(names)[:8]) or "none"
    asked = "several arrays" if key is None else f"no array '{key}'"
    raise InputError(
        f"'{path}' holds {asked if names else 'no array'} (there are: {listed}); choose one after a colon, such as "
        f"{path.name}:{next(iter(names), 'key')}"
    )


_READERS: dict[str, Callable[[Path, str | None], Array]] = {
    ".npy": _numpy,
    ".npz": _numpy,
    ".pt": _torch,
    ".pth": _torch,
    ".safetensors": _safetensors,
    ".mat": _matlab,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
    ".nii": _nifti,
}
