"""Arguments of deepinv's operators for small colour images; all others are tried with their defaults."""

import deepinv
import torch
from deepinv.physics import Denoising, Inpainting, Physics

SHAPE = (3, 16, 16)
KERNEL = torch.ones(1, 1, 3, 3) / 9


def mask(*shape: int) -> torch.Tensor:
    """Every other column."""
    return (torch.arange(shape[-1]) % 2).float().expand(*shape).clone()


ARGUMENTS: dict[str, dict] = {
    "Blur": {"filter": KERNEL},
    "BlurFFT": {"filter": KERNEL},
    "BlurFFTMultiScaler": {"physics": deepinv.physics.BlurFFT(SHAPE, filter=KERNEL)},
    "BlurMultiScaler": {"physics": deepinv.physics.Blur(filter=KERNEL)},
    "CompressedSensing": {"m": 200},
    "ComposedLinearPhysics": {},
    "Downsampling": {"filter": "bicubic"},
    "HyperSpectralUnmixing": {},
    "Inpainting": {"mask": 0.5},
    "InpaintingMultiScaler": {"physics": Inpainting(SHAPE, mask=0.5)},
    "LinearPhysicsMultiScaler": {"physics": Denoising()},
    "PhaseRetrieval": {"B": deepinv.physics.LinearPhysics(A=lambda x, **kwargs: x.to(torch.complex64))},
    "PhysicsCropper": {"physics": Denoising(), "crop": (2, 2)},
    "PhysicsMultiScaler": {"physics": Denoising()},
    "RandomPhaseRetrieval": {"m": 900},
    "SinglePixelCamera": {"m": 100},
    "SpaceVaryingBlur": {"filters": KERNEL.expand(1, 1, 2, 3, 3), "multipliers": torch.full((1, 1, 2, 16, 16), 0.5)},
    "StackedLinearPhysics": {"physics_list": [Denoising(), Denoising()]},
    "StackedPhysics": {"physics_list": [Denoising(), Denoising()]},
    "StructuredRandom": {"output_size": SHAPE},
    "StructuredRandomPhaseRetrieval": {"output_size": SHAPE},
    "Tomography": {"angles": 12},
    "UltrasoundPlaneWave": {},
}


def classes() -> list[str]:
    """Names of all operators of deepinv.physics."""
    found = {name: getattr(deepinv.physics, name) for name in dir(deepinv.physics)}
    return sorted(name for name, each in found.items() if isinstance(each, type) and issubclass(each, Physics))
