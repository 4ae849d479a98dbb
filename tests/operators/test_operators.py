"""Laws of all operators over one list, what each is in particular, and what each refuses."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import deepinv
import numpy as np
import pytest
import torch
from deepinv.physics import LinearPhysics, Physics, SinglePixelCamera
from PIL import Image
from support.operator_cases import EVERY, ITERATED, LINEAR, SHAPE, SMOOTH, STEPS, images
from torch import Tensor, nn

from rlsd_lightning import InputError, operators, solve
from rlsd_lightning.evaluation.scores import aligned, pseudo_inverse
from rlsd_lightning.operators import as_physics, make_physics
from rlsd_lightning.operators.filters import draw_motion_kernel
from rlsd_lightning.operators.likelihood import data_fit, noise_std, observed_pixels
from rlsd_lightning.operators.pixels import load_mask

NO_PICTURE = [operators.gaussian_blur, operators.phase_retrieval]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def cases(operators: dict[str, Callable]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("make", operators.values(), ids=operators.keys())


# Laws


@cases(LINEAR)
def test_adjoint_is_the_transpose(make: Callable):
    physics = make(SHAPE)
    u = images(2)
    measured = physics.A(u)
    v = torch.randn(measured.shape, generator=torch.Generator().manual_seed(1))
    difference = (measured * v).sum() - (u * physics.A_adjoint(v)).sum()
    assert difference.abs() < 1e-5 * measured.norm() * v.norm()


@cases(LINEAR)
def test_linear_operators_are_linear(make: Callable):
    physics, u, v = make(SHAPE), images(1), images(1, seed=1)
    assert isinstance(physics, LinearPhysics)
    torch.testing.assert_close(physics.A(2 * u - v), 2 * physics.A(u) - physics.A(v), rtol=1e-4, atol=1e-5)


@cases(SMOOTH)
def test_gradient_of_a_nonlinear_operator_is_the_limit_of_differences(make: Callable):
    physics, step = make(SHAPE).double(), 1e-6
    x = 0.9 * images(1).double()
    direction = images(1, seed=1).double()
    weights = torch.randn(physics.A(x).shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((weights * physics.A(leaf)).sum(), leaf)
    ahead, behind = ((weights * physics.A(x + sign * step * direction)).sum() for sign in (1, -1))
    expected = (ahead - behind) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-5)


@cases(STEPS)
def test_gradient_of_a_step_function_passes_as_if_there_were_none(make: Callable):
    physics, weights = make(SHAPE), images(1, seed=1)
    leaf = images(1).requires_grad_()
    assert torch.autograd.grad((weights * physics.A(leaf)).sum(), leaf)[0].equal(weights)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@cases(EVERY)
def test_an_operator_moves_to_another_device_and_type(make: Callable, dtype: torch.dtype, device: str):
    physics, x = make(SHAPE), images(2)
    if any(buffer.is_complex() for buffer in physics.buffers()):
        dtype = torch.float32  # Module.to(dtype) would make the phase of deepinv's blur real
        moved = physics.to(device).A(x.to(device))
    else:
        moved = physics.to(device, dtype).A(x.to(device, dtype))
    assert (moved.dtype, moved.device.type) == (dtype, device)
    torch.testing.assert_close(moved.cpu().float(), make(SHAPE).A(x), rtol=1e-4, atol=1e-4)


@cases(EVERY)
def test_state_is_saved_and_loaded(make: Callable):
    physics, x = make(SHAPE), images(1)
    state = {name: value.clone() for name, value in physics.state_dict().items()}
    for name, buffer in physics.named_buffers():
        if name in state and buffer.is_floating_point():
            buffer.add_(0.5)
    physics.load_state_dict(state)
    torch.testing.assert_close(physics.A(x), make(SHAPE).A(x))


@cases(EVERY)
def test_an_operator_treats_every_image_of_a_batch_alike(make: Callable):
    physics, x = make(SHAPE), images(3)
    torch.testing.assert_close(physics.A(x)[1:2], physics.A(x[1:2]), rtol=1e-5, atol=1e-6)


@cases(EVERY)
def test_an_operator_made_twice_is_the_same(make: Callable):
    assert make(SHAPE).A(images(1)).equal(make(SHAPE).A(images(1)))


@cases(LINEAR)
def test_pseudo_inverse_explains_its_measurement(make: Callable):
    physics = make(SHAPE)
    y = physics.A(images(1))
    error = physics.A(pseudo_inverse(physics, y)) - y
    assert error.norm() < (0.2 if make in ITERATED else 0.02) * y.norm()


# What each is


def test_a_measured_column_of_mri_is_the_fourier_transform():
    physics, x = operators.mri(SHAPE, acceleration=2), images(1)
    real, imaginary = physics.A(x)[0].view(3, 2, 32, 32).unbind(1)
    spectrum = torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(x[0], dim=(-2, -1)), norm="ortho"), dim=(-2, -1))
    seen = real.abs().sum(dim=(0, 1)) > 0
    assert seen.sum() == 16
    torch.testing.assert_close(real[..., seen], spectrum.real[..., seen], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(imaginary[..., seen], spectrum.imag[..., seen], rtol=1e-4, atol=1e-5)


def test_magnitudes_are_those_of_the_padded_intensity():
    x = images(1)
    padded = torch.zeros(1, 3, 48, 48)
    padded[:, :, 8:40, 8:40] = (x + 1) / 2
    expected = torch.fft.fft2(padded, norm="ortho").abs()
    torch.testing.assert_close(operators.phase_retrieval(SHAPE).A(x), expected)


def test_a_turned_image_has_the_same_magnitudes_and_counts_as_right():
    physics, x = operators.phase_retrieval(SHAPE), images(3)
    turned = torch.rot90(x, 2, dims=(-2, -1))
    torch.testing.assert_close(physics.A(turned), physics.A(x), rtol=1e-3, atol=1e-4)
    mixed = torch.cat((x[:1], turned[1:2]))
    assert aligned(mixed, x[:1], physics)[0].equal(x[0])
    assert aligned(turned[1:2], x[1:2], physics).equal(x[1:2])
    assert aligned(turned, x[:1], operators.hdr(SHAPE)) is turned


def test_average_filter_is_average_pooling():
    x = images(1)
    y = operators.super_resolution(SHAPE, filter="average", factor=4).A(x)
    torch.testing.assert_close(y, nn.functional.avg_pool2d(x, 4), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("name", ["average", "bicubic", "bilinear", "gaussian"])
def test_low_resolution_values_lie_at_the_centres_of_their_blocks(name: str, factor: int):
    places = torch.arange(96.0).expand(1, 3, 96, 96).contiguous()
    y = operators.super_resolution((3, 96, 96), factor=factor, filter=name).A(places)
    middle = slice(y.shape[-1] // 3, -(y.shape[-1] // 3))  # the boundary is circular
    expected = nn.functional.avg_pool2d(places, factor)
    torch.testing.assert_close(y[..., middle], expected[..., middle], atol=1e-2, rtol=0)


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("name", ["BOX", "BICUBIC", "BILINEAR"])
def test_super_resolution_reduces_as_pillow(name: str, factor: int):
    pixels = np.zeros((60, 60), dtype=np.float32)  # black borders, which Pillow does not wrap around
    pixels[17:31, 16:33] = np.random.default_rng(0).uniform(-1, 1, (14, 17))
    small = Image.fromarray(pixels).resize((60 // factor, 60 // factor), Image.Resampling[name])
    physics = operators.super_resolution((1, 60, 60), factor=factor, filter=name.lower().replace("box", "average"))
    y = physics.A(torch.from_numpy(pixels)[None, None])
    torch.testing.assert_close(y[0, 0], torch.from_numpy(np.array(small)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["bicubic", "gaussian"])
def test_low_pass_filter_larger_than_the_image_wraps_around(name: str):
    physics = operators.super_resolution((3, 32, 32), factor=8, filter=name)
    x, z = images(2)[..., :32, :32]
    y = physics.A(x[None])
    solved = physics.prox_l2(z[None], y, 10.0)
    torch.testing.assert_close(10 * physics.A_adjoint(physics.A(solved) - y) + solved, z[None], atol=1e-4, rtol=1e-4)


def test_light_saturates_and_dark_stays_dark():
    camera = operators.nonlinear_blur(SHAPE, exposure=1.5)
    assert camera.A(torch.full((1, *SHAPE), 0.9)).min() == 1
    assert camera.A(torch.full((1, *SHAPE), -1.0)).max() < -0.9
    dim = torch.full((1, *SHAPE), -0.2)
    expected = 2 * (1.5 * 0.4**2.2) ** (1 / 2.2) - 1
    torch.testing.assert_close(camera.A(dim), torch.full_like(dim, expected), rtol=1e-4, atol=1e-4)


def test_saturation_clips():
    assert operators.hdr(SHAPE).A(torch.tensor([[-0.9, -0.2, 0.4, 0.6]])).tolist() == [
        pytest.approx([-1.0, -0.4, 0.8, 1.0])
    ]


def test_quantization_has_so_many_levels():
    values = operators.quantization(SHAPE, levels=4).A(images(1)).unique()
    assert values.tolist() == pytest.approx([-1, -1 / 3, 1 / 3, 1])


def test_jpeg_is_what_pillow_reads_back(tmp_path: Path):
    x = torch.linspace(-1, 1, 32).expand(1, *SHAPE)
    y = operators.jpeg(SHAPE, quality=30).A(x)
    picture = Image.fromarray(((x[0] + 1) * 127.5).round().to(torch.uint8).movedim(0, -1).numpy())
    picture.save(tmp_path / "x.jpg", quality=30)
    expected = torch.from_numpy(np.array(Image.open(tmp_path / "x.jpg"))).movedim(-1, 0)[None] / 127.5 - 1
    assert (y - expected).abs().max() < 0.05  # two decoders round differently


def test_colorization_measures_the_mean_of_the_channels():
    x = images(1)
    torch.testing.assert_close(operators.colorization(SHAPE).A(x), x.mean(dim=1, keepdim=True))


def test_a_motion_kernel_is_a_density_and_follows_its_seed():
    first = draw_motion_kernel(21, 0)
    assert first.shape == (1, 1, 21, 21)
    assert first.sum().item() == pytest.approx(1)
    assert first.min() >= 0
    assert first.equal(draw_motion_kernel(21, 0))
    assert not first.equal(draw_motion_kernel(21, 1))


@pytest.mark.parametrize("ratio", [0.1, 0.25, 1.0])
def test_compressed_sensing_keeps_a_share_and_mixes_all_pixels(ratio: float):
    physics = operators.compressed_sensing(SHAPE, ratio=ratio)
    y = physics.A(images(1))
    assert y.numel() == pytest.approx(ratio * images(1).numel(), rel=0.1)
    corner = torch.zeros(1, *SHAPE)
    corner[0, 0, 0, 0] = 1
    assert (physics.A(corner)[0, 0].abs() > 0).float().mean() > 0.9


def test_composed_operators_act_in_their_order():
    first, second = partial(operators.super_resolution, factor=2), operators.hdr
    composed, x = operators.compose(SHAPE, [first, second]), images(1)
    torch.testing.assert_close(composed.A(x), second(SHAPE).A(first(SHAPE).A(x)))
    noisy = operators.compose(SHAPE, [first, second], sigma=0.5)
    torch.manual_seed(0)
    assert (noisy(x) - noisy.A(x)).std().item() == pytest.approx(0.5, rel=0.2)


def test_a_composition_of_one_operator_leaves_its_noise():
    blur = operators.gaussian_blur(SHAPE, sigma=0.5)
    composed = operators.compose(SHAPE, [blur], sigma=0.01)
    assert (blur.noise_model.sigma.item(), composed.noise_model.sigma.item()) == pytest.approx((0.5, 0.01))
    x = images(1)
    torch.testing.assert_close(composed.A(x), blur.A(x))


@pytest.mark.parametrize("noise", operators.NOISES)
def test_noise_has_the_given_deviation_at_white(noise: str):
    white = torch.ones(200_000)
    torch.manual_seed(0)
    error = operators.make_noise(noise, 0.3)(white) - white
    assert error.mean().item() == pytest.approx(0, abs=0.005)
    assert error.std().item() == pytest.approx(0.3, rel=0.02)


def test_poisson_noise_spares_black():
    black = -torch.ones(100)
    assert operators.make_noise("poisson", 0.3)(black).equal(black)


class Doubler(nn.Module):
    """Stands for a network that blurs."""

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        return x * code.mean()


def test_a_network_blurs_in_place_of_the_camera(tmp_path: Path):
    torch.jit.script(Doubler()).save(str(tmp_path / "net.pt"))
    np.save(tmp_path / "code.npy", np.full((2, 2), 0.5, dtype=np.float32))
    settings = {"network": str(tmp_path / "net.pt"), "code": str(tmp_path / "code.npy")}
    physics, x = operators.nonlinear_blur(SHAPE, **settings), images(2)
    torch.testing.assert_close(physics.A(x), 2 * (0.5 * (x + 1) / 2) - 1)


@cases({name: LINEAR[name] for name in LINEAR if "blur" in name or "super" in name})
def test_an_even_grey_stays_as_it_is(make: Callable):
    # filters sum to one and borders wrap around
    y = make(SHAPE).A(torch.full((1, *SHAPE), 0.3))
    torch.testing.assert_close(y, torch.full_like(y, 0.3))


@pytest.fixture
def kernel(tmp_path: Path) -> str:
    """A lopsided blur kernel, so that a flip or a shift shows."""
    file = tmp_path / "kernel.npy"
    np.save(file, np.array([[1.0, 2.0, 0.0], [0.0, 6.0, 3.0], [0.5, 0.0, 0.0]]))
    return str(file)


def test_a_kernel_from_a_file_is_convolved_with_the_image(kernel: str):
    x = torch.zeros(1, *SHAPE)
    x[..., 10, 20] = 1
    y = operators.motion_blur(SHAPE, kernel=kernel).A(x)
    torch.testing.assert_close(y[..., 9:12, 19:22], operators.load_kernel(kernel).expand(1, 3, 3, 3))
    assert y.sum().item() == pytest.approx(3, abs=1e-4)


def test_kernel_is_normalised(kernel: str):
    weights = operators.load_kernel(kernel)
    assert weights.shape == (1, 1, 3, 3)
    assert weights.sum().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((3, 3)), "sum 0"),
        (np.ones(3), r"shape \(3,\)"),
        (np.full((3, 3), np.nan), "finite"),
        (np.ones((33, 3)), "3x33"),
    ],
)
def test_kernel_that_can_not_blur_is_refused(values: np.ndarray, message: str, tmp_path: Path):
    np.save(tmp_path / "bad.npy", values)
    with pytest.raises(InputError, match=message):
        operators.blur(SHAPE, str(tmp_path / "bad.npy"))


def test_missing_kernel_is_refused_with_its_path():
    with pytest.raises(InputError, match=r"nowhere\.npy"):
        operators.load_kernel("nowhere.npy")


@pytest.mark.parametrize(("size", "factor"), [(32, 5), (32, 16), (30, None)])
def test_factor_that_does_not_fit_the_image_is_refused(size: int, factor: int | None):
    with pytest.raises(InputError, match=f"{size}x{size}"):
        operators.super_resolution((3, size, size), factor=factor)


def test_default_factor_grows_with_the_image():
    assert operators.super_resolution(SHAPE).factor == 4
    assert operators.super_resolution((3, 256, 256)).factor == 8


@pytest.mark.parametrize("make", [operators.mri, operators.single_pixel, partial(operators.inpainting, mask="half")])
def test_what_is_not_measured_has_no_noise(make: Callable):
    physics, x = make(SHAPE, sigma=0.5), images(1)
    everywhere = (physics(x) - physics.A(x)).abs() > 0
    seen = physics.mask.expand(1, everywhere.shape[1], -1, -1) > 0
    assert everywhere.equal(seen)


# Operators of others


def test_a_class_of_deepinv_gets_the_shape_and_the_noise():
    physics = make_physics(partial(deepinv.physics.Demosaicing, sigma=0.1), SHAPE)
    assert physics.A(images(1)).shape == (1, *SHAPE)
    assert physics.noise_model.sigma.item() == pytest.approx(0.1)
    angles = make_physics(partial(deepinv.physics.Tomography, angles=5, normalize=True), SHAPE)
    assert angles.A(images(1)).shape[-1] == 5


class Squared(Physics):
    """A user's own operator."""

    def A(self, x: Tensor, **kwargs) -> Tensor:  # noqa: N802
        return x**2


def test_a_users_class_and_a_plain_function_are_operators():
    x = images(1)
    assert make_physics(Squared, SHAPE).A(x).equal(x**2)
    assert as_physics(lambda x: x + 1).A(x).equal(x + 1)
    physics = operators.custom(SHAPE, "torch.flatten", linear=True, sigma=0.2)
    assert physics.A(x).shape == (3 * 32 * 32,)
    assert physics.noise_model.sigma.item() == pytest.approx(0.2)


def test_complex_measurements_are_solved_and_have_real_figures(tiny_prior):
    physics = deepinv.physics.LinearPhysics(
        A=lambda x, **_: torch.fft.fft2(x, norm="ortho"),
        A_adjoint=lambda y, **_: torch.fft.ifft2(y, norm="ortho").real,
        noise_model=deepinv.physics.GaussianNoise(0.1),
    )
    truth = torch.zeros(1, *tiny_prior.image_shape)
    torch.manual_seed(0)
    y = physics(truth)  # of nothing but noise, as deepinv draws it
    assert noise_std(physics.noise_model, y) == pytest.approx(torch.view_as_real(y).std().item(), rel=0.03)
    assert data_fit(physics, truth, y)["residual_sigmas"] == pytest.approx(1, abs=0.05)
    trainer = {"accelerator": "cpu", "enable_progress_bar": False}
    for operator in (physics, deepinv.physics.Physics(A=physics.A, noise_model=physics.noise_model)):
        metrics = solve(y, operator, tiny_prior, num_particles=2, num_steps=2, trainer=trainer).metrics
        assert all(isinstance(metrics[name], float) for name in ("residual", "residual_sigmas"))


def test_a_mask_without_channels_hides_its_pixels(tiny_prior):
    mask = load_mask("half", 32, 32)[0]
    physics = deepinv.physics.Inpainting((3, 32, 32), mask=mask, noise_model=deepinv.physics.GaussianNoise(0.01))
    assert torch.equal(observed_pixels(physics, (3, 32, 32)), mask.expand(3, -1, -1) > 0)
    result = solve(physics(images(1)[..., :32, :32]), physics, tiny_prior, num_steps=2, trainer={"logger": False})
    assert torch.equal(result.tensors["observed"], mask.expand(3, -1, -1) > 0)


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (operators.super_resolution, {"factor": 4}),
        (operators.motion_blur, {"kernel_seed": 4}),
        (operators.compressed_sensing, {"operator_seed": 4}),
        (operators.tomography, {"angles": 20, "sigma": 0.5}),
    ],
)
def test_numbers_of_numpy_are_numbers(make: Callable, settings: dict[str, float]):
    of_numpy = {name: np.asarray(value)[()] for name, value in settings.items()}
    x = images(1)
    assert torch.equal(make(SHAPE, **of_numpy).A(x), make(SHAPE, **settings).A(x))


@pytest.mark.parametrize("make", [as_physics, partial(operators.custom, SHAPE)])
def test_a_network_moves_with_its_operator(make: Callable):
    network = nn.Conv2d(3, 3, 3)
    physics = make(network)
    assert {parameter.data_ptr() for parameter in physics.parameters()} == {
        parameter.data_ptr() for parameter in network.parameters()
    }
    moved = copy.deepcopy(physics).to("meta")  # as if it were a GPU
    assert moved.A(torch.empty(1, *SHAPE, device="meta")).device.type == "meta"


def test_solve_takes_a_plain_function(tiny_prior):
    x = images(1)
    result = solve(x[:, :, ::2], lambda x: x[:, :, ::2], tiny_prior, num_steps=2, trainer={"logger": False})
    assert result.particles.shape == (4, *SHAPE)


# What each refuses


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: operators.gaussian_blur(SHAPE, std=0), r"std must be above 0, got 0"),
        (lambda: operators.gaussian_blur(SHAPE, std=30), r"std=30 has"),
        (lambda: operators.motion_blur(SHAPE, size=2), r"size must be at least 3 pixels, got 2"),
        (lambda: operators.motion_blur(SHAPE, size=99), r"at most 32x32 pixels .* has 99x99"),
        (lambda: operators.motion_blur(SHAPE, kernel="nowhere.npy"), r"nowhere\.npy"),
        (lambda: operators.super_resolution(SHAPE, filter="cubic"), r"average, bicubic, .*got 'cubic'"),
        (lambda: operators.demosaicing((1, 32, 32)), r"three channels"),
        (lambda: operators.demosaicing((3, 31, 32)), r"even sides"),
        (lambda: operators.compressed_sensing(SHAPE, ratio=0), r"ratio .*got 0"),
        (lambda: operators.single_pixel(SHAPE, ratio=1.5), r"ratio .*got 1\.5"),
        (lambda: operators.single_pixel((3, 48, 32)), r"powers of two, got 32x48"),
        (lambda: operators.tomography(SHAPE, angles=0), r"angles .*got 0"),
        (lambda: operators.mri(SHAPE, acceleration=0), r"acceleration .*got 0"),
        (lambda: operators.mri(SHAPE, acceleration=32), r"from 1 to 16"),
        (lambda: operators.phase_retrieval(SHAPE, oversampling=-1), r"oversampling .*got -1"),
        (lambda: operators.hdr(SHAPE, scale=0), r"scale .*got 0"),
        (lambda: operators.nonlinear_blur(SHAPE, exposure=0), r"exposure .*got 0"),
        (lambda: operators.nonlinear_blur(SHAPE, network="nowhere.pt"), r"TorchScript file, but 'nowhere\.pt'"),
        (lambda: operators.nonlinear_blur(SHAPE, network="a.pt", kernel="k.npy"), r"kernel must be left out"),
        (lambda: operators.nonlinear_blur(SHAPE, code="c.npy"), r"code must be left out"),
        (lambda: operators.jpeg(SHAPE, quality=0), r"quality .*got 0"),
        (lambda: operators.jpeg((4, 32, 32)), r"one or three channels"),
        (lambda: operators.quantization(SHAPE, levels=1), r"levels .*got 1"),
        (lambda: operators.denoising(SHAPE, sigma=-1), r"sigma must be at least 0, got -1"),
        (lambda: operators.denoising(SHAPE, sigma=0, noise="poisson"), r"above 0 for poisson noise, got 0"),
        (lambda: operators.denoising(SHAPE, noise="pink"), r"gaussian, laplace, poisson, got 'pink'"),
        (lambda: operators.mri(SHAPE, noise="poisson"), r"counts the photons of an image"),
        (lambda: operators.phase_retrieval(SHAPE, noise="poisson"), r"counts the photons of an image"),
        (
            lambda: make_physics(partial(operators.compose, operators=NO_PICTURE, noise="poisson"), SHAPE),
            r"counts the photons of an image",
        ),
        (
            lambda: make_physics(partial(SinglePixelCamera, m=20, noise="poisson", sigma=0.1), SHAPE),
            r"counts the photons of an image",
        ),
        (lambda: operators.compose(SHAPE, []), r"at least one operator"),
        (lambda: operators.custom(SHAPE, "no_module.f"), r"dotted path .*'no_module\.f'"),
        (lambda: make_physics(nn.Identity, SHAPE), r"made a Identity; .*custom"),
        (lambda: make_physics(partial(deepinv.physics.Tomography, angles="many"), SHAPE), r"Tomography can't be made"),
        (lambda: make_physics(partial(operators.hdr, mask="half"), SHAPE), r"hdr can't be made .*'mask'"),
    ],
)
def test_what_can_not_be_is_refused_in_one_line(make: Callable, message: str):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
