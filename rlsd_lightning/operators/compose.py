"""Compositions of operators, operators from plain functions, and the null operator."""

import inspect
import pkgutil
from collections.abc import Callable, Sequence
from functools import partial

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor

from rlsd_lightning.errors import InputError
from rlsd_lightning.operators.noise import make_noise

__all__ = ["NullOperator", "as_physics", "compose", "custom", "make_physics"]


def make_physics(factory: Callable[..., Physics], image_shape: tuple[int, ...]) -> Physics:
    """Makes an operator for images of one shape.

    Our own functions take ``image_shape``. A ``deepinv.physics`` class, or a user's, gets the shape as ``img_size`` and
    ``img_width`` if it takes these, and ``noise`` with deviation ``sigma`` as its ``noise_model``.

    Args:
        factory: A function or class, or a :func:`functools.partial` of one.
        image_shape: Shape of the prior's images.

    Raises:
        InputError: If the arguments do not fit the factory, or the result is no operator.
    """
    target = factory.func if isinstance(factory, partial) else factory
    settings = dict(factory.keywords) if isinstance(factory, partial) else {}
    accepted = inspect.signature(target).parameters
    if "image_shape" in accepted:
        settings["image_shape"] = image_shape
    elif isinstance(target, type) and issubclass(target, Physics):
        sigma, noise = settings.pop("sigma", None), settings.pop("noise", "gaussian")
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
        if sigma is not None and (takes_any or "noise_model" in accepted):
            settings.setdefault("noise_model", make_noise(noise, sigma))
        for name, value in {"img_size": tuple(image_shape), "img_width": image_shape[-1]}.items():
            if name in accepted:
                settings.setdefault(name, value)
    try:
        physics = target(**settings)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise InputError(f"{target.__name__} can't be made with these arguments: {error}") from error
    if not isinstance(physics, Physics):
        raise InputError(
            f"a deepinv.physics.Physics is expected, but {target.__name__} made a {type(physics).__name__}; for a plain "
            "function of images use rlsd_lightning.operators.custom"
        )
    return physics


def as_physics(operator: Physics | Callable[[Tensor], Tensor]) -> Physics:
    """Noiseless operator from a plain function of images; operators are returned unchanged."""
    return operator if isinstance(operator, Physics) else Physics(A=lambda x, **kwargs: operator(x))


def custom(
    image_shape: tuple[int, ...],
    function: str,
    linear: bool = False,
    sigma: float = 0.001,
    noise: str = "gaussian",
) -> Physics:
    """Operator from a function.

    Args:
        function: Dotted path of the function, such as ``my_module.my_function``; called with images in [-1, 1] of shape
            :math:`(N, C, H, W)`, it returns their measurements, differentiably.
        linear: Whether it is linear; the proximal step uses conjugate gradients for linear operators and Adam for others.

    Raises:
        InputError: If the function can't be imported.
    """
    try:
        called = pkgutil.resolve_name(function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"function must be the dotted path of a function, such as my_module.my_function, got '{function}' "
            f"({error}); its module must be in the current folder or in PYTHONPATH"
        ) from error
    noise_model = make_noise(noise, sigma)
    if linear:
        return LinearPhysics(A=lambda x, **kwargs: called(x), img_size=tuple(image_shape), noise_model=noise_model)
    return Physics(A=lambda x, **kwargs: called(x), noise_model=noise_model)


def compose(
    image_shape: tuple[int, ...],
    operators: Sequence[Callable[..., Physics]],
    sigma: float = 0.001,
    noise: str = "gaussian",
) -> Physics:
    """Composition of operators, with noise at the end only.

    Args:
        operators: Factories of the operators, in the order in which they act; their own noise is ignored.

    Raises:
        InputError: If the list is empty, or the shapes do not fit.
    """
    if not operators:
        raise InputError("operators must list at least one operator, got none")
    shape, composed = tuple(image_shape), None
    for factory in operators:
        physics = make_physics(factory, shape)
        shape = tuple(physics.A(torch.zeros(1, *shape)).shape[1:])
        composed = physics if composed is None else physics * composed
    composed.noise_model = make_noise(noise, sigma)
    return composed


class NullOperator(LinearPhysics):
    """The operator that measures nothing: its output is one zero for any image."""

    def __init__(self, image_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)

    def A(self, x: Tensor, **kwargs) -> Tensor:  # noqa: N802
        return 0 * x.flatten(1)[:, :1]

    def A_adjoint(self, y: Tensor, **kwargs) -> Tensor:  # noqa: N802
        return y.new_zeros(len(y), *self.image_shape)

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float, **kwargs) -> Tensor:
        return z
