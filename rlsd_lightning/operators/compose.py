"""Operators from classes, plain functions and compositions, and their trial before the first step."""

import copy
import inspect
import math
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from weakref import WeakKeyDictionary

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor, nn

from rlsd_lightning.errors import InputError, first_line
from rlsd_lightning.operators.likelihood import NOT_PICTURES, last_operator
from rlsd_lightning.operators.medical import Scan
from rlsd_lightning.operators.noise import NO_PHOTONS, PoissonNoise, check_noise, make_noise
from rlsd_lightning.operators.pixels import PerPicture
from rlsd_lightning.operators.proximal import has_own_step, proximal_step
from rlsd_lightning.reading.frames import Frame
from rlsd_lightning.signatures import typed

__all__ = [
    "as_physics",
    "build_physics",
    "compose",
    "custom",
    "make_physics",
    "operator_output",
    "probe_operator",
]

INSTEAD = {
    "Blur": "motion_blur",
    "BlurFFT": "gaussian_blur",
    "CompressedSensing": "compressed_sensing",
    "Downsampling": "super_resolution",
    "Inpainting": "inpainting",
    "MRI": "mri",
    "MultiCoilMRI": "mri",
    "PhaseRetrieval": "phase_retrieval",
    "SinglePixelCamera": "single_pixel",
    "StructuredRandom": "compressed_sensing",
    "Tomography": "tomography",
}
"""Operators of this package in place of deepinv classes that want tensors or other images."""

ADJOINT_ERROR = 0.05
"""Largest error of an adjoint, relative to the norms of what it is tried on."""

_PASSED: WeakKeyDictionary[Physics, tuple[int, ...]] = WeakKeyDictionary()
"""Operators that were tried, and the shape of the images: an operator may serve thousands of measurements."""


@typed
def make_physics(factory: Callable[..., Physics], image_shape: tuple[int, ...], frame: Frame | None = None) -> Physics:
    """Makes an operator for images of one shape, and tries it on one.

    Our own functions take ``image_shape``. A ``deepinv.physics`` class, or a user's, gets the shape as ``img_size`` and
    ``img_width`` if it takes these. Noise of standard deviation ``sigma`` becomes its ``noise_model``.

    Args:
        factory: A function or class, or a :func:`functools.partial` of one.
        image_shape: Shape of the images.
        frame: Where the measured picture lies in the image, for functions that take it.

    Raises:
        InputError: If the arguments do not fit the factory, the result is no operator, or :func:`probe_operator` finds
            that it can't be used.
    """
    physics = build_physics(factory, image_shape, frame)
    if not isinstance(physics, PerPicture):  # each picture's own is tried later
        probe_operator(physics, image_shape)
    return physics


def build_physics(factory: Callable[..., Physics], image_shape: tuple[int, ...], frame: Frame | None = None) -> Physics:
    """The operator of :func:`make_physics`, not yet tried."""
    if isinstance(factory, Physics):
        return factory
    target = factory.func if isinstance(factory, partial) else factory
    settings = dict(factory.keywords) if isinstance(factory, partial) else {}
    accepted = inspect.signature(target).parameters
    if "frame" in accepted:
        settings["frame"] = frame
    noise_model = None
    if "image_shape" in accepted:
        settings["image_shape"] = image_shape
    elif isinstance(target, type) and issubclass(target, Physics):
        sigma, noise = settings.pop("sigma", None), settings.pop("noise", "gaussian")
        noise_model = None if sigma is None or "noise_model" in settings else make_noise(noise, sigma)
        for name, value in {"img_size": tuple(image_shape), "img_width": image_shape[-1]}.items():
            if name in accepted:
                settings.setdefault(name, value)
    try:
        physics = target(**settings)
    except InputError:
        raise
    except Exception as error:  # constructors raise errors of many kinds
        raise InputError(
            f"{target.__name__} can't be made with these arguments: {first_line(error)}{_instead(target.__name__)}"
        ) from error
    if not isinstance(physics, Physics):
        raise InputError(
            f"a deepinv.physics.Physics is expected, but {target.__name__} made a {type(physics).__name__}; for a plain "
            "function of images use rlsd_lightning.operators.custom"
        )
    if noise_model is not None:
        physics.noise_model = noise_model
    return physics


def _instead(name: str) -> str:
    return f"; rlsd_lightning.operators.{INSTEAD[name]} takes plain numbers instead" if name in INSTEAD else ""


@contextmanager
def _trial(physics: Physics, fault: str) -> Iterator[None]:
    """Turns whatever an operator raises into one line with its name."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # operators raise errors of many kinds
        name = type(physics).__name__
        raise InputError(f"{name} {fault} ({type(error).__name__}: {first_line(error)}){_instead(name)}") from error


def _pattern(image_shape: tuple[int, ...]) -> Tensor:
    """A test pattern in [-1, 1], with shape (1, C, H, W)."""
    return torch.linspace(0, 40 * math.pi, math.prod(image_shape)).sin().view(1, *image_shape)


@torch.no_grad()
def operator_output(physics: Physics, image_shape: tuple[int, ...], like: Tensor | None = None) -> Tensor:
    """The operator's output for a test pattern, with shape (1, ...).

    Args:
        image_shape: Shape of the prior's images.
        like: A tensor whose device the pattern has.

    Raises:
        InputError: If the operator does not take images of this shape, or does not return one finite tensor.
    """
    pattern = _pattern(image_shape) if like is None else _pattern(image_shape).to(like.device)
    name = type(physics).__name__
    with _trial(physics, f"does not take images of shape {tuple(image_shape)}, which the prior makes"):
        y = physics.A(pattern)
    if not isinstance(y, Tensor):
        raise InputError(
            f"{name} must measure one tensor, got a {type(y).__name__}; choose an operator with one output"
        )
    if y.ndim < 2 or len(y) != 1:
        raise InputError(f"{name} must turn one image into one measurement of shape (1, ...), got {tuple(y.shape)}")
    if not y.isfinite().all():
        raise InputError(f"{name} is not finite for images in [-1, 1]; give an operator that takes these values")
    return y


@typed
def probe_operator(physics: Physics, image_shape: tuple[int, ...], like: Tensor | None = None) -> None:
    """Tries an operator once on an image: its output, its noise, and a proximal step of two particles.

    Arguments are those of :func:`operator_output`.

    Raises:
        InputError: If one of them fails, or the noise has no known likelihood.
    """
    check_noise(physics.noise_model)
    if _PASSED.get(physics) == tuple(image_shape):
        return
    y = operator_output(physics, image_shape, like)
    if isinstance(physics.noise_model, PoissonNoise) and isinstance(last_operator(physics), NOT_PICTURES):
        raise InputError(NO_PHOTONS)
    images = torch.zeros(2, *image_shape, device=y.device)
    with torch.random.fork_rng(devices=[]), _trial(physics, "can't draw its noise"):
        noisy = physics(images[:1])
    if not isinstance(noisy, Tensor) or noisy.shape != y.shape:
        raise InputError(
            f"{type(physics).__name__} must keep a measurement's shape {tuple(y.shape)} when it adds noise, got "
            f"{tuple(noisy.shape) if isinstance(noisy, Tensor) else type(noisy).__name__}; choose another noise_model"
        )
    if isinstance(physics, LinearPhysics):
        _check_adjoint(physics, image_shape, y)
    if not has_own_step(physics):
        with torch.enable_grad(), _trial(physics, "can't be differentiated"):
            if not physics.A(images.clone().requires_grad_()).requires_grad:
                raise InputError(
                    f"{type(physics).__name__} must be differentiable, but its output has no gradient; compute it with "
                    "torch from the images"
                )
    if not isinstance(physics, Scan):  # known to be sound, and slow on a CPU
        _check_proximal_step(physics, images, y)
    _PASSED[physics] = tuple(image_shape)


def _check_proximal_step(physics: Physics, images: Tensor, y: Tensor) -> None:
    with _trial(physics, "can't be inverted: its proximal step fails"):
        solved = proximal_step(physics, y, images, 1.0, inner_steps=1)
    sound = isinstance(solved, Tensor) and solved.shape == images.shape and solved.isfinite().all()
    if not sound or solved.is_complex():
        raise InputError(
            f"{type(physics).__name__} can't be inverted: its proximal step does not return finite, real images of shape "
            f"{tuple(images.shape[1:])}; choose another operator"
        )


@torch.no_grad()
def _check_adjoint(physics: LinearPhysics, image_shape: tuple[int, ...], y: Tensor) -> None:
    """Raises an InputError unless <A u, A v> = <u, A_adjoint(A v)> for the test pattern u and its mirror image v."""
    u = _pattern(image_shape).to(y.device)
    with _trial(physics, "has no adjoint"):
        of_mirror = physics.A(u.flip(-1))
        inner, other = (y.conj() * of_mirror).sum().real, (u * physics.A_adjoint(of_mirror)).sum().real
    if abs(inner - other) > ADJOINT_ERROR * y.norm() * of_mirror.norm():
        name = type(physics).__name__
        raise InputError(
            f"{name} has an A_adjoint that is not the adjoint of its A (<A u, A v> = {inner:.3g}, <u, A_adjoint(A v)> = "
            f"{other:.3g}); mend it, or make it a deepinv.physics.Physics, which needs none{_instead(name)}"
        )


class _Called(nn.Module):
    """A function of images without deepinv's other arguments; a network is registered, so that it moves with its operator."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        # copies of an operator share what a plain function holds
        self.function = function if isinstance(function, nn.Module) else lambda x: function(x)

    def forward(self, x: Tensor, **kwargs) -> Tensor:
        return self.function(x)


@typed
def as_physics(operator: Physics | Callable[[Tensor], Tensor]) -> Physics:
    """Noiseless operator from a plain function of images; operators are returned unchanged."""
    return operator if isinstance(operator, Physics) else Physics(A=_Called(operator))


@typed
def custom(
    image_shape: tuple[int, ...],
    function: str | Callable[[Tensor], Tensor],
    linear: bool = False,
    sigma: float = 0.001,
    noise: str = "gaussian",
) -> Physics:
    """Operator from a function.

    Args:
        function: The function, or its dotted path such as ``my_module.my_function``; called with images in [-1, 1] of shape
            :math:`(N, C, H, W)`, it returns their measurements, differentiably.
        linear: Whether it is linear; the proximal step uses conjugate gradients for linear operators and Adam for others.

    Raises:
        InputError: If the function can't be imported.
    """
    try:
        called = pkgutil.resolve_name(function) if isinstance(function, str) else function
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"function must be the dotted path of a function, such as my_module.my_function, got '{function}' "
            f"({error}); its module must be in the current folder or in PYTHONPATH"
        ) from error
    noise_model = make_noise(noise, sigma)
    if linear:
        return LinearPhysics(A=_Called(called), img_size=tuple(image_shape), noise_model=noise_model)
    return Physics(A=_Called(called), noise_model=noise_model)


@typed
def compose(
    image_shape: tuple[int, ...],
    operators: Sequence[Physics | Callable[..., Physics]],
    sigma: float = 0.001,
    noise: str = "gaussian",
    frame: Frame | None = None,
) -> Physics:
    """Composition of operators, with noise at the end only.

    Args:
        operators: Operators or their factories, in the order in which they act; their own noise is ignored.
        frame: Where a picture lies in the image, for masks of the picture's own size.

    Raises:
        InputError: If the list is empty, or the shapes do not fit.
    """
    if not operators:
        raise InputError("operators must list at least one operator, got none")
    shape, composed = tuple(image_shape), None
    for factory in operators:
        place = frame and frame.at_size(shape[-2:])
        physics = copy.deepcopy(build_physics(factory, shape, place))  # its noise is set below, the caller's stays
        shape = tuple(operator_output(physics, shape).shape[1:])
        composed = physics if composed is None else physics * composed
    composed.noise_model = make_noise(noise, sigma)
    return composed
