"""Nonlinear operators: phase retrieval, saturation, camera response, quantization and JPEG."""

import itertools
import math
from pathlib import Path

import torch
from deepinv.physics import BlurFFT, Physics
from torch import Tensor
from torchvision.io import decode_jpeg, encode_jpeg

from rlsd_lightning.errors import (
    InputError,
    first_line,
    require,
    require_integer,
    require_positive,
)
from rlsd_lightning.operators.filters import gaussian_blur, motion_blur
from rlsd_lightning.operators.noise import make_noise
from rlsd_lightning.reading.arrays import load_array
from rlsd_lightning.signatures import typed

__all__ = [
    "FourierMagnitude",
    "Quantization",
    "Saturation",
    "hdr",
    "jpeg",
    "nonlinear_blur",
    "phase_retrieval",
    "quantization",
]

DARKEST = 1e-4
"""Least linear intensity; the camera response has infinite slope at zero."""

ON_EDGE = 1e-3
"""Share of a quantization cell next to its edges that is avoided, as rounding errors decide there."""


class FourierMagnitude(Physics):
    r"""The magnitude :math:`|F(\mathrm{pad}(u))|` of the image :math:`u = (x + 1) / 2`, padded with zeros.

    Intensities rule out a change of sign, and an image that fills its frame rules out shifts. The remaining ambiguity is
    a turn of any channel by 180 degrees. ``padding`` is the number of rows and columns of zeros on each side.
    """

    def __init__(self, padding: tuple[int, int], noise_model: torch.nn.Module) -> None:
        super().__init__(noise_model=noise_model)
        self.padding = padding

    def A(self, x: Tensor, **kwargs) -> Tensor:  # noqa: N802
        rows, columns = self.padding
        padded = torch.nn.functional.pad((x + 1) / 2, (columns, columns, rows, rows))
        return torch.fft.fft2(padded, norm="ortho").abs()

    def equivalents(self, images: Tensor) -> Tensor:
        r"""Images with the same measurement: every choice of turned channels, with shape :math:`(2^C, N, C, H, W)`."""
        turned = images.flip((-2, -1))
        choices = itertools.product((False, True), repeat=images.shape[1])
        which = torch.tensor(list(choices), device=images.device)[:, None, :, None, None]
        return torch.where(which, turned, images)


@typed
def phase_retrieval(
    image_shape: tuple[int, int, int], oversampling: float = 2.0, sigma: float = 0.001, noise: str = "gaussian"
) -> FourierMagnitude:
    """The magnitude of the padded image's Fourier transform; see :class:`FourierMagnitude`.

    Args:
        oversampling: Zero padding on each side, in eighths of the image's side.
        sigma: Standard deviation of the noise of magnitudes.

    Raises:
        InputError: If the oversampling is negative.
    """
    require(lambda value: 0 <= value < math.inf, "at least 0", oversampling=oversampling)
    height, width = image_shape[-2:]
    padding = (int(oversampling / 8 * height), int(oversampling / 8 * width))
    return FourierMagnitude(padding, make_noise(noise, sigma, of_images=False))


class Saturation(Physics):
    r"""Saturation, :math:`A(x) = \mathrm{clip}(c \, x, -1, 1)`, with the factor ``scale`` :math:`c > 0`."""

    def __init__(self, scale: float, noise_model: torch.nn.Module) -> None:
        super().__init__(noise_model=noise_model)
        self.register_buffer("scale", torch.tensor(float(scale)))

    def A(self, x: Tensor, **kwargs) -> Tensor:  # noqa: N802
        return (self.scale * x).clamp(-1, 1)

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float) -> Tensor:
        """Best of the values below, inside and above the measurable range; saturated values have no gradient."""
        edge = 1 / self.scale
        inside = ((gamma * self.scale * y + z) / (gamma * self.scale**2 + 1)).clamp(-edge, edge)
        candidates = torch.stack([inside, z.clamp(min=edge), z.clamp(max=-edge)])
        costs = gamma * (self.A(candidates) - y).square() + (candidates - z).square()
        return candidates.gather(0, costs.argmin(dim=0, keepdim=True))[0]


@typed
def hdr(
    image_shape: tuple[int, int, int], scale: float = 2.0, sigma: float = 0.001, noise: str = "gaussian"
) -> Saturation:
    """High dynamic range: bright and dark values saturate; see :class:`Saturation`.

    Raises:
        InputError: If the scale is not positive.
    """
    require_positive(scale=scale)
    return Saturation(scale, make_noise(noise, sigma))


class _Camera(torch.nn.Module):
    """Blur of linear light, exposure, saturation, and a gamma curve of 2.2."""

    def __init__(self, light: BlurFFT, exposure: float) -> None:
        super().__init__()
        self.light = light
        self.register_buffer("exposure", torch.tensor(float(exposure)))

    def forward(self, x: Tensor, **kwargs) -> Tensor:
        light = self.light.A(((x + 1) / 2).clamp(0, 1) ** 2.2)
        return 2 * (self.exposure * light).clamp(DARKEST, 1) ** (1 / 2.2) - 1


class _Network(torch.nn.Module):
    """TorchScript network on images in [0, 1], with an optional second argument."""

    def __init__(self, network: torch.jit.ScriptModule, code: Tensor | None) -> None:
        super().__init__()
        self.network = network.eval()
        for weight in self.network.parameters():  # a ScriptModule has no requires_grad_ of its own
            weight.requires_grad_(False)
        self.register_buffer("code", code)

    def forward(self, x: Tensor, **kwargs) -> Tensor:
        inputs = () if self.code is None else (self.code.expand(len(x), *self.code.shape[1:]),)
        return 2 * self.network((x + 1) / 2, *inputs) - 1


@typed
def nonlinear_blur(
    image_shape: tuple[int, int, int],
    kernel: str | Path | None = None,
    exposure: float = 1.5,
    network: str | Path | None = None,
    code: str | Path | None = None,
    sigma: float = 0.001,
    noise: str = "gaussian",
) -> Physics:
    r"""Nonlinear blur: of linear light behind a camera response, or by a network.

    The camera blurs the light :math:`((x + 1) / 2)^{2.2}` with a Gaussian or a kernel from a file, exposes it, saturates
    and stores it with the inverse curve. A network, such as the blur kernel space's (BKSE), is a TorchScript file.

    Args:
        kernel: File of the camera's blur kernel; a Gaussian if left out.
        exposure: Factor of the light; above 1 the brightest parts saturate.
        network: A TorchScript file that replaces the camera, called with images in [0, 1] and the code.
        code: A .npy file with the network's second argument, of shape :math:`(\dots)` or :math:`(1, \dots)`.

    Raises:
        InputError: If a number is out of range, a file can't be used, or one is given that would not be.

    References:
        | Exploring Image Deblurring via Encoded Blur Kernel Space (Tran et al., 2021)
        | https://arxiv.org/abs/2104.00317
    """
    noise_model = make_noise(noise, sigma)
    if kernel is not None and network is not None:
        raise InputError("kernel must be left out with a network, which replaces the camera")
    if code is not None and network is None:
        raise InputError("code must be left out without a network, whose second argument it is")
    if network is not None:
        values = None if code is None else torch.from_numpy(load_array(code)).float()
        if values is not None and values.shape[0] != 1:
            values = values[None]
        return Physics(A=_Network(_load_script(network), values), noise_model=noise_model)
    require_positive(exposure=exposure)
    light = gaussian_blur(image_shape) if kernel is None else motion_blur(image_shape, kernel)
    return Physics(A=_Camera(light, exposure), noise_model=noise_model)


def _load_script(path: str | Path) -> torch.jit.ScriptModule:
    try:
        return torch.jit.load(path, map_location="cpu")
    except (RuntimeError, ValueError, OSError) as error:
        reason = first_line(error)
        raise InputError(f"network must be a TorchScript file, but '{path}' can't be read ({reason})") from error


def _straight_through(x: Tensor, stepped: Tensor) -> Tensor:
    """Values of a step function with the derivative of the identity."""
    return x + (stepped - x).detach()


class Quantization(Physics):
    """Rounding to evenly spaced levels from -1 to 1, with straight-through gradients and noise after rounding."""

    def __init__(self, levels: int, noise_model: torch.nn.Module) -> None:
        super().__init__(noise_model=noise_model)
        self.register_buffer("values", torch.linspace(-1, 1, levels))

    def A(self, x: Tensor, **kwargs) -> Tensor:  # noqa: N802
        top = len(self.values) - 1
        return _straight_through(x, ((x.clamp(-1, 1) + 1) / 2 * top).round() / top * 2 - 1)

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float) -> Tensor:
        """Best of the levels, each with the nearest value that is rounded to it."""
        half = (1 - ON_EDGE) / (len(self.values) - 1)
        best, least = z, torch.full_like(z, torch.inf)
        for index, value in enumerate(self.values):
            lowest = value - half if index else None
            highest = value + half if index < len(self.values) - 1 else None
            nearest = z.clamp(lowest, highest)
            cost = gamma * (value - y).square() + (nearest - z).square()
            best, least = torch.where(cost < least, nearest, best), torch.minimum(cost, least)
        return best


class _Jpeg(torch.nn.Module):
    def __init__(self, quality: int) -> None:
        super().__init__()
        self.quality = quality

    def forward(self, x: Tensor, **kwargs) -> Tensor:
        pixels = ((x.detach().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
        stored = torch.stack([decode_jpeg(encode_jpeg(image, self.quality)) for image in pixels])
        return _straight_through(x, stored.to(x) / 127.5 - 1)


@typed
def quantization(
    image_shape: tuple[int, int, int], levels: int = 4, sigma: float = 0.0, noise: str = "gaussian"
) -> Quantization:
    """Rounding to a few levels; see :class:`Quantization`.

    Raises:
        InputError: If there are fewer than two levels.
    """
    require_integer(levels=levels)
    require(lambda value: value >= 2, "at least 2", levels=levels)
    return Quantization(levels, make_noise(noise, sigma))


@typed
def jpeg(image_shape: tuple[int, int, int], quality: int = 10, sigma: float = 0.0, noise: str = "gaussian") -> Physics:
    """JPEG compression with a quality from 1 to 100, straight-through gradients, and noise after decompression.

    Raises:
        InputError: If the quality or the number of channels is out of range.
    """
    require_integer(quality=quality)
    require(lambda value: 1 <= value <= 100, "from 1 to 100", quality=quality)
    if image_shape[0] not in (1, 3):
        raise InputError(f"JPEG stores images of one or three channels, got shape {tuple(image_shape)}")
    return Physics(A=_Jpeg(quality), noise_model=make_noise(noise, sigma))
