"""Every operator, made for small images: one list for all laws."""

from collections.abc import Callable
from functools import partial

import torch
from deepinv.physics import Physics
from torch import Tensor

from rlsd_lightning import operators
from rlsd_lightning.operators.medical import CoilMRI

SHAPE = (3, 32, 32)


def coil_maps(coils: int, height: int, width: int) -> Tensor:
    """Complex sensitivities of coils around the image; the squares of their sizes sum to one."""
    turns = 2 * torch.pi * torch.arange(coils)[:, None, None] / coils
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    across, along = columns - 1.5 * turns.cos(), rows - 1.5 * turns.sin()
    maps = torch.complex(across, along) / (across.square() + along.square())
    return maps / maps.abs().square().sum(dim=0).sqrt()


def coil_mri(shape: tuple[int, ...], coils: int = 4, grey: bool = False) -> Physics:
    """Magnetic resonance imaging with several coils, made without a file."""
    maps = coil_maps(coils, *shape[1:])
    return CoilMRI(operators.mri(shape).mask[0, 0], maps, shape[0], operators.make_noise("gaussian", 0.001), grey=grey)


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
    "tomography_of_limited_angles": partial(operators.tomography, angles=[0, 7.5, 20, 40, 90], n_detector_pixels=32),
    "tomography_of_grey": partial(operators.tomography, grey=True),
    "tomography_by_a_fan": partial(
        operators.tomography, angles=20, geometry="fan", source_radius=40, rotation_axis=31.5
    ),
    "mri": operators.mri,
    "mri_of_everything": partial(operators.mri, acceleration=1),
    "mri_of_grey": partial(operators.mri, grey=True),
    "mri_by_coils": coil_mri,
    "mri_of_grey_by_coils": partial(coil_mri, grey=True),
    "composition": partial(
        operators.compose,
        operators=[
            partial(operators.inpainting, mask="random"),
            operators.colorization,
            partial(operators.super_resolution, factor=2),
        ],
    ),
}
ITERATED = [LINEAR[name] for name in LINEAR if name.startswith("tomography") or name.endswith("by_coils")]
"""Operators whose proximal step and pseudo-inverse are conjugate gradients that stop early."""
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
