"""Scans: the operators against independent ones, and scanners' arrays as measurements."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from deepinv.physics import LinearPhysics, Tomography
from PIL import Image
from support.operator_cases import coil_maps, coil_mri
from support.scans import kspace, picture
from torch import Tensor

from rlsd_lightning import InputError, StableDiffusionPrior, operators, solve
from rlsd_lightning.data import measurements
from rlsd_lightning.operators.proximal import proximal_step

SIZES = [(32, 32), (24, 33), (21, 16)]
"""Heights and widths, even and odd."""


def columns(width: int) -> np.ndarray:
    """A third of the columns, and the middle."""
    seen = np.arange(width) % 3 == 0
    seen[width // 2 - 2 : width // 2 + 3] = True
    return seen


def saved(folder: Path, name: str, values: np.ndarray) -> str:
    np.save(folder / name, values)
    return str(folder / name)


def of_images(image: np.ndarray, channels: int = 3) -> Tensor:
    """An image with equal channels."""
    return torch.from_numpy(image).float().expand(1, channels, -1, -1)


# Magnetic resonance imaging


@pytest.mark.parametrize("coils", [None, 1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_mri_is_numpys_transform_of_what_the_coils_see(size: tuple[int, int], coils: int | None, tmp_path: Path):
    image, seen = picture(*size), columns(size[1])
    maps = None if coils is None else coil_maps(coils, *size).numpy()
    files = {"mask": saved(tmp_path, "mask.npy", seen)}
    if maps is not None:
        files["coil_maps"] = saved(tmp_path, "maps.npy", maps)
    expected = kspace(image if maps is None else maps * image) * seen
    physics = operators.mri((3, *size), **files)
    y = physics.from_array(expected)
    torch.testing.assert_close(physics.for_measurement(y).A(of_images(image)), y, rtol=1e-4, atol=1e-5)
    assert y.shape == (1, 2, *expected.shape)
    assert np.allclose(y[0, 0].numpy() + 1j * y[0, 1].numpy(), expected, atol=1e-5)


SINGLE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "complex": lambda k: k,
    "complex with an axis of coils": lambda k: k[None],
    "complex with axes of scans and coils": lambda k: k[None, None],
    "parts first": lambda k: np.stack((k.real, k.imag)),
    "parts first after an axis of scans": lambda k: np.stack((k.real, k.imag))[None],
    "parts last": lambda k: np.stack((k.real, k.imag), -1),
    "single precision": lambda k: k.astype(np.complex64),
    "big-endian": lambda k: k.astype(">c8"),
    "extended precision": lambda k: k.astype(np.clongdouble),
    "as measured by the operator": lambda k: np.stack((k.real, k.imag) * 3)[None].astype(np.float32),
}


@pytest.mark.parametrize("form", SINGLE.values(), ids=SINGLE.keys())
def test_one_coils_kspace_is_read_in_every_usual_form(form: Callable[[np.ndarray], np.ndarray]):
    image = picture(32, 24)
    physics = operators.mri((3, 32, 24), acceleration=1)
    y = physics.from_array(form(kspace(image)))
    torch.testing.assert_close(y, physics.for_measurement(y).A(of_images(image)), rtol=1e-4, atol=1e-5)


SEVERAL: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "complex": lambda k: k,
    "complex with an axis of scans": lambda k: k[None],
    "parts first": lambda k: np.stack((k.real, k.imag)),
    "parts after the coils": lambda k: np.stack((k.real, k.imag), 1),
    "parts last": lambda k: np.stack((k.real, k.imag), -1),
}


@pytest.mark.parametrize("form", SEVERAL.values(), ids=SEVERAL.keys())
def test_several_coils_kspaces_are_read_in_every_usual_form(form: Callable[[np.ndarray], np.ndarray], tmp_path: Path):
    image, maps = picture(32, 24), coil_maps(3, 32, 24).numpy()
    physics = operators.mri((3, 32, 24), acceleration=1, coil_maps=saved(tmp_path, "maps.npy", maps))
    y = physics.from_array(form(kspace(maps * image)))
    torch.testing.assert_close(y, physics.for_measurement(y).A(of_images(image)), rtol=1e-4, atol=1e-5)


def test_a_stack_of_slices_is_as_many_measurements():
    images = np.stack([picture(32, 32, seed) for seed in range(4)])
    physics = operators.mri((3, 32, 32), acceleration=1)
    y = physics.from_array(kspace(images)[:, None])
    expected = torch.cat([physics.for_measurement(y).A(of_images(image)) for image in images])
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


MASKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "zeros and ones": lambda m: m.astype(float),
    "truth values": lambda m: m,
    "bytes": lambda m: m.astype(np.uint8) * 255,
    "minus one and one": lambda m: 2.0 * m - 1,
    "an axis too many": lambda m: m[None].astype(np.float32),
    "columns": lambda m: m[0],
    "columns as in fastMRI": lambda m: m[0][None, None, :, None].astype(np.float32),
}


@pytest.mark.parametrize("form", MASKS.values(), ids=MASKS.keys())
def test_a_mask_of_frequencies_is_read_in_every_usual_form(form: Callable[[np.ndarray], np.ndarray], tmp_path: Path):
    mask = np.broadcast_to(columns(24), (32, 24))
    physics = operators.mri((3, 32, 24), mask=saved(tmp_path, "mask.npy", form(mask)))
    assert physics.mask[0, 0].numpy().astype(bool).tolist() == mask.tolist()


def test_a_mask_of_frequencies_may_be_a_picture(tmp_path: Path):
    mask = np.zeros((32, 24), bool)
    mask[10:20, 3:9] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert (
        operators.mri((3, 32, 24), mask=str(tmp_path / "mask.png")).mask[0, 0].numpy().astype(bool).tolist()
        == mask.tolist()
    )


@pytest.mark.parametrize("white", [None, 7.5])
@pytest.mark.parametrize("coils", [None, 3])
def test_without_a_mask_what_is_zero_was_not_measured(
    coils: int | None, white: float | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    image, seen = picture(32, 32), columns(32)
    maps = None if coils is None else coil_maps(coils, 32, 32).numpy()
    files = {} if maps is None else {"coil_maps": saved(tmp_path, "maps.npy", maps)}
    raw = image if white is None else white * (image + 1) / 2
    k = kspace(raw if maps is None else maps * raw) * seen
    drawn = operators.mri((3, 32, 32), white=white, **files)
    y = drawn.from_array(k)
    physics = drawn.for_measurement(y)
    assert physics.mask[0, 0].numpy().astype(bool).tolist() == np.broadcast_to(seen, (32, 32)).tolist()
    torch.testing.assert_close(y, physics.for_measurement(y).A(of_images(image)), rtol=1e-4, atol=1e-4)
    assert f"{100 * seen.mean():.1f} % of the frequencies are not zero" in caplog.text


def test_a_mask_from_a_file_stays_and_hides_what_else_has_values(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    k, seen = kspace(picture(32, 32)), columns(32)
    k[:, ~seen] = np.nan  # nothing that was measured
    physics = operators.mri((3, 32, 32), mask=saved(tmp_path, "mask.npy", seen))
    y = physics.from_array(k)
    assert y.isfinite().all()
    assert f"mask hides {100 * (~seen).mean():.1f} % of the frequencies, which have values" in caplog.text


@pytest.mark.parametrize("white", [0.02, 1, 1500])
def test_white_is_the_largest_value_of_the_scanned_image(white: float):
    image = picture(32, 32)
    physics = operators.mri((3, 32, 32), acceleration=1, white=white)
    y = physics.from_array(kspace(white * (image + 1) / 2))
    torch.testing.assert_close(y, physics.for_measurement(y).A(of_images(image)), rtol=1e-4, atol=1e-4)


def test_an_image_with_a_phase_is_warned_of_unless_a_coil_has_it(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    image = picture(32, 32)
    phase = np.exp(1j * np.linspace(-2, 2, 32))[None] * np.ones((32, 1))
    operators.mri((3, 32, 32), acceleration=1).from_array(kspace(phase * image))
    share = re.search(r"no real image explains (\d+) % of it", caplog.text)
    exact = np.linalg.norm((phase * image).imag) / np.linalg.norm(image)
    assert int(share[1]) == pytest.approx(100 * exact, abs=1)
    caplog.clear()
    maps = saved(tmp_path, "maps.npy", phase)
    operators.mri((3, 32, 32), acceleration=1, coil_maps=maps).from_array(kspace(phase * image))
    operators.mri((3, 32, 32), acceleration=1).from_array(kspace(image))
    assert "no real image" not in caplog.text


@pytest.mark.parametrize("acceleration", [1, 4])
@pytest.mark.parametrize("grey", [False, True])
def test_the_pseudo_inverse_of_mri_is_the_shortest_least_squares_solution(acceleration: int, grey: bool):
    physics = operators.mri((3, 16, 16), acceleration=acceleration, grey=grey)
    y = (
        torch.randn(physics.A(torch.zeros(1, 3, 16, 16)).shape, generator=torch.Generator().manual_seed(0))
        * physics.mask
    )
    matrix = physics.A(torch.eye(3 * 256).view(-1, 3, 16, 16)).flatten(1).T
    expected = torch.linalg.pinv(matrix.double(), rtol=1e-4) @ y.flatten().double()
    torch.testing.assert_close(physics.A_dagger(y).flatten().double(), expected, rtol=1e-3, atol=1e-3)


# Tomography


def blob(height: int, width: int, row: float, column: float, size: float = 3.0) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * size**2))[None, None]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (63, 63), (48, 66)])
@pytest.mark.parametrize(
    "settings",
    [
        {"geometry": "parallel"},
        {"geometry": "parallel", "detector_spacing": 0.5, "n_detector_pixels": 150, "rotation_axis": 70.25},
        {"geometry": "fan", "source_radius": 90.0},
        {"geometry": "fan", "source_radius": 60.0, "detector_radius": 20.0, "n_detector_pixels": 80},
    ],
)
def test_line_integrals_of_a_blob_are_its_closed_form(height: int, width: int, settings: dict):
    angles, size, row, column = [0.0, 20.0, 90.0, 205.0], 3.0, height * 0.6, width * 0.3
    physics = operators.tomography((1, height, width), angles=angles, **settings)
    y = physics.A(blob(height, width, row, column, size))[0, 0] * physics.scale
    source = settings.get("source_radius", 0.0)
    far = source + settings.get("detector_radius", source)
    fan = settings["geometry"] == "fan"
    spacing = settings.get("detector_spacing", far / source if fan else 1.0)
    for number, degrees in enumerate(np.deg2rad(angles)):
        along, across = np.array([np.sin(degrees), np.cos(degrees)]), np.array([np.cos(degrees), -np.sin(degrees)])
        axis = settings.get("rotation_axis", physics.detectors // 2)
        place = (np.arange(physics.detectors) - axis)[:, None] * spacing * across  # of the detectors, (column, row)
        ray = place + far * along if fan else np.broadcast_to(along, place.shape)  # from the source
        ray = ray / np.linalg.norm(ray, axis=1, keepdims=True)
        start = -source * along if fan else place
        offset = np.array([column - width // 2, row - height // 2]) - start
        distance = offset[..., 0] * ray[:, 1] - offset[..., 1] * ray[:, 0]
        expected = size * np.sqrt(2 * np.pi) * np.exp(-(distance**2) / (2 * size**2))
        assert np.abs(y[:, number].numpy() - expected).max() < 0.02 * expected.max()


@pytest.mark.parametrize("size", [32, 33, 64])
def test_parallel_projections_are_those_of_scikit_image(size: int):
    radon = pytest.importorskip("skimage.transform").radon
    rows, columns = np.mgrid[:size, :size] - size // 2
    image = (picture(size, size) + 1) * (rows**2 + columns**2 < (size // 2 - 1) ** 2)
    angles = [0.0, 10.0, 33.3, 90.0, 170.0]
    whole = operators.tomography((1, size, size), angles=angles)
    circle = operators.tomography((1, size, size), angles=angles, n_detector_pixels=size)
    for physics, inside in ((whole, False), (circle, True)):
        expected = radon(image, angles, circle=inside)
        found = (physics.A(of_images(image, 1))[0, 0] * physics.scale).numpy()
        first = physics.detectors // 2 - len(expected) // 2
        assert np.abs(found[first : first + len(expected)] - expected).max() < 1e-3 * expected.max()


def test_a_fan_is_that_of_deepinv_turned_and_mirrored():
    image, angles = of_images(picture(64, 64), 1), [0.0, 25.0, 110.0]
    lengths = {"source_radius": 120.0, "detector_radius": 80.0, "detector_spacing": 1.5}
    # its pixel is shorter than ours: the centres of the padded image's outermost pixels are 91 apart, not 90
    in_pixels = {name: length * 90 / 91 for name, length in lengths.items()}
    turned = [each + 90 for each in angles]
    ours = operators.tomography((1, 64, 64), angles=turned, geometry="fan", n_detector_pixels=121, **in_pixels)
    theirs = Tomography(
        angles=torch.tensor(angles),
        img_width=64,
        normalize=False,
        fan_beam=True,
        fan_parameters={**lengths, "n_detector_pixels": 121, "pixel_spacing": 1.0},
    )
    slant = (1 + ((torch.arange(121) - 60) * 1.5 / 200) ** 2).sqrt()  # deepinv sums over steps of unequal length
    expected = (theirs.A(image)[0, 0] * slant[:, None]).flip(0)
    torch.testing.assert_close(ours.A(image)[0, 0] * ours.scale, expected, rtol=1e-3, atol=0.02)


def test_a_distant_fan_is_parallel():
    image = of_images(picture(32, 32), 1)
    parallel = operators.tomography((1, 32, 32), angles=7, n_detector_pixels=45)
    fan = operators.tomography(
        (1, 32, 32),
        angles=7,
        angular_range=180,
        geometry="fan",
        source_radius=1e6,
        n_detector_pixels=45,
        detector_spacing=2.0,
    )
    torch.testing.assert_close(fan.A(image), parallel.A(image), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [partial(operators.tomography, angles=1), partial(coil_mri, coils=1)])
def test_a_pseudo_inverse_of_noise_is_finite_where_little_is_measured(make: Callable):
    physics = make((3, 32, 32))
    y = torch.randn(physics.A(torch.zeros(1, 3, 32, 32)).shape, generator=torch.Generator().manual_seed(0))
    x = physics.A_dagger(y)
    assert x.norm() < 10 * y.norm()
    assert (physics.A(x) - y).norm() < y.norm()


@pytest.mark.parametrize("geometry", ["parallel", "fan"])
def test_the_operator_has_norm_one(geometry: str):
    physics = operators.tomography((1, 24, 24), angles=9, geometry=geometry)
    matrix = physics.A(torch.eye(24 * 24).view(-1, 1, 24, 24)).flatten(1)
    assert torch.linalg.matrix_norm(matrix, 2).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("given", "angular_range", "expected"),
    [
        (4, None, [0, 45, 90, 135]),
        (4, 100.0, [0, 25, 50, 75]),
        ([3, 1.5, 200], None, [3, 1.5, 200]),
        ((7,), 10.0, [7]),
        ("3, 1.5,200", None, [3, 1.5, 200]),
    ],
)
def test_angles_are_a_number_or_a_list(
    given: object, angular_range: float | None, expected: list[float], tmp_path: Path
):
    image = of_images(picture(24, 24), 1)
    physics = operators.tomography((1, 24, 24), angles=given, angular_range=angular_range)
    listed = operators.tomography((1, 24, 24), angles=expected)
    torch.testing.assert_close(physics.A(image), listed.A(image))
    filed = operators.tomography((1, 24, 24), angles=saved(tmp_path, "angles.npy", np.array(expected)))
    torch.testing.assert_close(filed.A(image), listed.A(image))


@pytest.mark.parametrize(
    ("angles", "warned"),
    [
        (np.linspace(0, np.pi, 12), True),
        ([0.0, 0.4, 1.1], True),
        ([0, 1, 2, 3], False),
        ([0.5, 40, 90], False),
        (9, False),
    ],
)
def test_radians_are_warned_of(angles: object, warned: bool, caplog: pytest.LogCaptureFixture):
    operators.tomography((1, 16, 16), angles=angles)
    assert ("radians" in caplog.text) == warned


SINOGRAMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "detector, angle": lambda s: s,
    "angle, detector": lambda s: s.T,
    "one scan": lambda s: s[None],
    "one scan of one channel": lambda s: s.T[None, None],
    "every channel": lambda s: np.stack([s] * 3),
    "as measured by the operator": lambda s: np.stack([s] * 3)[None],
}


@pytest.mark.parametrize("white", [None, 0.03])
@pytest.mark.parametrize("form", SINOGRAMS.values(), ids=SINOGRAMS.keys())
def test_a_sinogram_is_read_in_every_usual_form(form: Callable[[np.ndarray], np.ndarray], white: float | None):
    image = picture(32, 32)
    physics = operators.tomography((3, 32, 32), angles=5, white=white)
    attenuation = image if white is None else white * (image + 1) / 2
    integrals = (physics.A(of_images(attenuation, 1))[0, 0] * (1 if white is None else physics.scale)).numpy()
    y = physics.from_array(form(integrals))
    torch.testing.assert_close(y, physics.for_measurement(y).A(of_images(image)), rtol=1e-4, atol=1e-4)


def test_a_stack_of_sinograms_is_as_many_measurements():
    physics = operators.tomography((3, 32, 32), angles=5)
    images = torch.cat([of_images(picture(32, 32, seed)) for seed in range(4)])
    y = physics.A(images)
    torch.testing.assert_close(physics.from_array(y[:, 0].numpy()), y[:, :1], rtol=1e-4, atol=1e-5)


# Both


SCANS = {
    "k-space": (partial(operators.mri, acceleration=1), kspace(picture(32, 32))),
    "k-space of coils": (partial(coil_mri, coils=3), kspace(coil_maps(3, 32, 32).numpy() * picture(32, 32))),
    "sinogram": (partial(operators.tomography, angles=30), None),
}


@pytest.mark.parametrize(("make", "scan"), SCANS.values(), ids=SCANS.keys())
def test_a_grey_scan_is_explained_by_one_grey(make: Callable, scan: np.ndarray | None):
    shape, truth = (3, 32, 32), of_images(picture(32, 32))
    if scan is None:
        scan = make(shape).A(truth)[0, 0].numpy()
    y = make(shape).from_array(scan)
    physics = make(shape).for_measurement(y)
    torch.testing.assert_close(physics.A(truth), y, rtol=1e-4, atol=1e-5)
    coloured = truth + torch.randn(1, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    # only the grey counts, and no step changes the colour
    torch.testing.assert_close(
        physics.A(coloured - coloured.mean(dim=1, keepdim=True) + truth), y, rtol=1e-4, atol=1e-4
    )
    x = proximal_step(physics, y, coloured, 1e-4)
    torch.testing.assert_close(x - physics.as_seen(x), coloured - physics.as_seen(coloured), rtol=1e-4, atol=1e-5)
    assert (physics.as_seen(x) - truth).abs().mean() < 0.05
    assert physics.for_measurement(y) is physics
    assert make(shape).as_seen(coloured) is coloured


def test_the_proximal_step_of_grey_is_that_of_one_channel():
    three, one = operators.mri((3, 32, 32), grey=True), operators.mri((1, 32, 32))
    y, decoded = one.A(of_images(picture(32, 32), 1)), 2 * torch.rand(2, 3, 32, 32) - 1
    # the mean of three channels is known three times better than a channel
    expected = proximal_step(one, y, decoded.mean(dim=1, keepdim=True), 0.3)
    torch.testing.assert_close(
        proximal_step(three, y, decoded, 0.3).mean(dim=1, keepdim=True), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("operator", [operators.mri, operators.tomography])
def test_particles_of_a_grey_scan_are_grey(operator: Callable, tiny_prior: StableDiffusionPrior):
    physics = operator(tiny_prior.image_shape, grey=True)
    y = physics.A(of_images(picture(32, 32)))
    particles = solve(y, physics, tiny_prior, num_steps=2, num_particles=2).particles
    assert particles.equal(particles[:, :1].expand_as(particles))


def errors(make: Callable, values: np.ndarray) -> str:
    with pytest.raises(InputError) as caught:
        make().from_array(values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def mri(**settings) -> LinearPhysics:
    return operators.mri((3, 32, 24), **settings)


def tomography(**settings) -> LinearPhysics:
    return operators.tomography((3, 32, 32), **settings)


K = kspace(picture(32, 24))
REFUSED: dict[str, tuple[Callable, np.ndarray, list[str]]] = {
    "no imaginary part": (
        mri,
        K.real,
        ["complex k-space of shape (row, column) = (32, 24)", "real", "save it as a complex"],
    ),
    "larger": (
        mri,
        np.ones((64, 48)) + 0j,
        ["got complex numbers of shape (64, 48)", "crop it to the central 32x24", "0.5"],
    ),
    "smaller": (mri, np.ones((16, 24)) + 0j, ["(row, column) = (32, 24)", "(16, 24)", "image_size"]),
    "turned": (mri, K.T, ["(row, column) = (32, 24)", "(24, 32)"]),
    "coils without maps": (mri, np.stack([K] * 8), ["(8, 32, 24)", "coil_maps", "(slice, 1, row, column)"]),
    "real, of another size": (mri, np.ones((2, 64, 48)), ["(row, column) = (32, 24)", "(2, 64, 48)"]),
    "one axis": (mri, np.ones(7) + 0j, ["(row, column) = (32, 24)", "(7,)"]),
    "zeros": (mri, 0 * K, ["other than zero", "zeros only"]),
    "NaN": (mri, np.where(np.eye(32, 24), np.nan, K), ["finite", "24 of"]),
    "not shifted": (mri, np.fft.ifftshift(K), ["frequency zero at row 16 and column 12", "corners", "fftshift"]),
    "not orthonormal": (mri, K * np.sqrt(32 * 24), ["at most 27.71", "set white", "sqrt(height * width) = 27.71"]),
    "a white too small": (lambda: mri(white=0.1), K, ["white=0.1", "largest value of the scanned image"]),
    "another size": (
        tomography,
        np.zeros((64, 20)),
        ["(detector, angle) = (47, 20)", "(64, 20)", "n_detector_pixels=64"],
    ),
    "another size, turned": (tomography, np.zeros((20, 64)), ["(detector, angle) = (47, 20)", "n_detector_pixels=64"]),
    "other angles": (tomography, np.zeros((47, 30)), ["(47, 20)", "(47, 30)", "angles to the 30 directions"]),
    "both": (tomography, np.zeros((50, 30)), ["(47, 20)", "(50, 30)", "n_detector_pixels", "now 47 and 20"]),
    "one number": (tomography, np.zeros(()), ["(47, 20)", "()"]),
    "complex": (tomography, np.zeros((47, 20)) + 0j, ["real numbers", "complex"]),
    "infinite": (tomography, np.full((47, 20), np.inf), ["finite", "940 of 940"]),
    "line integrals": (tomography, np.full((47, 20), 32.0), ["norm one", "divide", "set white"]),
    "too much attenuation": (lambda: tomography(white=0.01), np.full((47, 20), 3.0), ["white (now 0.01)"]),
}


@pytest.mark.parametrize(("make", "values", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_an_array_that_is_no_scan_is_refused(make: Callable, values: np.ndarray, said: list[str]):
    message = errors(make, values)
    for words in said:
        assert words in message


def test_two_coils_can_not_be_told_from_two_parts(tmp_path: Path):
    maps = saved(tmp_path, "maps.npy", coil_maps(2, 32, 24).numpy())
    message = errors(lambda: mri(coil_maps=maps), np.ones((2, 2, 32, 24)))
    assert "(coil, row, column) = (2, 32, 24)" in message
    assert "complex array" in message


def test_a_mask_and_a_kspace_of_different_frequencies_are_refused(tmp_path: Path):
    mask = saved(tmp_path, "mask.npy", np.arange(24) >= 20)
    assert "zeros at all of them" in errors(lambda: mri(mask=mask), K * (np.arange(24) < 20))


BAD_FILES = {
    "mask.npy of other frequencies": ("mask", np.ones((20, 24)), ["(row, column) = (32, 24)", "(20, 24)"]),
    "mask.npy of other columns": ("mask", np.ones(20), ["(24,)", "(20,)"]),
    "mask.npy of nothing": ("mask", np.zeros((32, 24)), ["measures no frequency"]),
    "mask.npy of weights": ("mask", np.linspace(0, 1, 24), ["two values", "24 from 0 to 1"]),
    "mask.npy with NaN": ("mask", np.full(24, np.nan), ["finite", "24 of"]),
    "maps.npy of another size": (
        "coil_maps",
        np.ones((4, 20, 24)) + 0j,
        ["(coil, row, column) = (any, 32, 24)", "(4, 20, 24)"],
    ),
    "maps.npy without a phase": ("coil_maps", np.ones((4, 32, 24)), ["complex", "real numbers", "complex64"]),
    "maps.npy of nothing": ("coil_maps", np.zeros((4, 32, 24)) + 0j, ["zeros only"]),
    "maps.npy with NaN": ("coil_maps", np.full((4, 32, 24), np.nan) + 0j, ["finite", "3072 of"]),
    "nowhere.npy": ("mask", None, ["mask must be a file", "nowhere.npy"]),
    "nomaps.npy": ("coil_maps", None, ["coil_maps must be a file", "nomaps.npy"]),
}


@pytest.mark.parametrize(("setting", "values", "said"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_file_of_a_scan_that_does_not_fit_is_refused(
    setting: str, values: np.ndarray | None, said: list[str], tmp_path: Path, request: pytest.FixtureRequest
):
    name = request.node.callspec.id.split()[0]
    file = str(tmp_path / name) if values is None else saved(tmp_path, name, values)
    with pytest.raises(InputError) as caught:
        mri(**{setting: file})
    for words in [*said, name]:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"geometry": "cone"}, "geometry must be one of parallel, fan, fanbeam, got 'cone'"),
        ({"angles": []}, "angles must be a number of directions, a list of degrees"),
        ({"angles": "many"}, "angles must be a number of directions, a list of degrees .* got 'many'"),
        (
            {"angles": ["a"]},
            r"angles must be an integer, a str, a Path or a list of numbers, got \['a'\]; give the name",
        ),
        ({"angles": [0, float("nan")]}, "angles must be a number"),
        ({"angular_range": 0}, "angles must be at least 1 over some degrees, got 20 over 0"),
        ({"n_detector_pixels": 0}, "n_detector_pixels must be at least 1, got 0"),
        ({"detector_spacing": 0}, "detector_spacing must be above 0, got 0"),
        ({"rotation_axis": 99}, "rotation_axis must be a detector from 0 to 46, got 99"),
        (
            {"geometry": "fan", "source_radius": 20},
            "source_radius must be above 22.63 pixels, half the diagonal, got 20",
        ),
        ({"geometry": "fan", "detector_radius": -1}, "detector_radius must be at least 0, got -1"),
        ({"white": 0}, "white must be above 0, .* got 0"),
    ],
)
def test_what_can_not_be_scanned_is_refused(settings: dict, said: str):
    with pytest.raises(InputError, match=said):
        tomography(**settings)


def test_a_measured_file_is_named_in_the_error(tmp_path: Path):
    file = saved(tmp_path, "scan.npy", np.zeros((64, 20), np.float32))
    with pytest.raises(InputError, match=r"scan\.npy.*\(detector, angle\) = \(47, 20\)"):
        list(measurements((3, 32, 32), operators.tomography, measurement=file))


def test_a_measured_scan_has_the_operator_of_its_own_frequencies(tmp_path: Path):
    seen = columns(32)
    file = saved(tmp_path, "scan.npy", (kspace(picture(32, 32)) * seen).astype(np.complex64))
    (measured,) = list(measurements((3, 32, 32), operators.mri, measurement=file))
    assert measured.name == "scan"
    assert measured.physics.mask[0, 0, 0].numpy().astype(bool).tolist() == seen.tolist()
    torch.testing.assert_close(measured.physics.A(of_images(picture(32, 32))), measured.y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grey", [False, True])
def test_the_truth_of_a_simulated_scan_is_what_it_can_tell(grey: bool, tmp_path: Path):
    Image.new("RGB", (32, 32), (255, 0, 0)).save(tmp_path / "red.png")
    operator = partial(operators.mri, grey=grey, sigma=0.0)
    (simulated,) = list(measurements((3, 32, 32), operator, images=tmp_path / "red.png"))
    expected = [-1 / 3] * 3 if grey else [1.0, -1.0, -1.0]
    assert simulated.truth[0, :, 0, 0].tolist() == pytest.approx(expected)
    torch.testing.assert_close(simulated.physics.A(simulated.truth), simulated.y)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("acceleration", [2, 7, 8, 12, 25, 32])
def test_mri_measures_the_share_that_is_asked_for(acceleration: int):
    mask = operators.mri((3, 16, 64), acceleration=acceleration).mask
    assert mask.mean().item() == pytest.approx(64 // acceleration / 64)
