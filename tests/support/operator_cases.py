"""Every operator, made for small images: one list for all laws."""

from collections.abc import Callable
from functools import partial

import torch
from deepinv.physics import Physics
from torch import Tensor

from rlsd_lightning import operators

SHAPE = (3, 32, 32)

LINEAR: dict[str, Callable[..., Physics]] = {
    "inpainting": partial(operators.inpainting, mask="random"),
    "super_resolution_bicubic": operators.super_resolution,
    "super_resolution_average": partial(operators.super_resolution, filter="average"),
    "super_resolution_gaussian": partial(operators.super_resolution, factor=2, filter="gaussian"),
    "gaussian_blur": operators.gaussian_blur,
    "motion_blur": operators.motion_blur,
    "denoising": operators.denoising,
    "colorization": operators.colorization,
    "demosaicing": operators.demosaicing,
    "compressed_sensing": operators.compressed_sensing,
    "single_pixel": operators.single_pixel,
    "tomography": operators.tomography,
    "mri": operators.mri,
    "mri_of_everything": partial(operators.mri, acceleration=1),
    "composition": partial(
        operators.compose,
        operators=[
            partial(operators.inpainting, mask="random"),
            operators.colorization,
            partial(operators.super_resolution, factor=2),
        ],
    ),
}
SMOOTH: dict[str, Callable[..., Physics]] = {
    "phase_retrieval": operators.phase_retrieval,
    "hdr": operators.hdr,
    "nonlinear_blur": operators.nonlinear_blur,
    "nonlinear_composition": partial(operators.compose, operators=[operators.super_resolution, operators.hdr]),
}
STEPS: dict[str, Callable[..., Physics]] = {
    "jpeg": operators.jpeg,
    "quantization": operators.quantization,
}
EVERY = {**LINEAR, **SMOOTH, **STEPS, "nothing": operators.NullOperator}


def images(count: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Uniform noise in [-1, 1]."""
    return 2 * torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed)) - 1
