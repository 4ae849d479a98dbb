"""Forward operators as configured: ``deepinv.physics`` with names, files and numbers turned into tensors.

Each factory takes the prior's ``image_shape`` first, so that one configuration serves priors of any size. It returns a
:class:`deepinv.physics.Physics` that acts on images in [-1, 1]. All share these arguments:

- ``image_shape``: Shape of an image, :math:`(C, H, W)`.
- ``sigma``: Standard deviation of the noise, in units of an image in [-1, 1] unless the factory says otherwise.
- ``noise``: Name of the noise, see :func:`make_noise`.
"""

from rlsd_lightning.operators.compose import as_physics, compose, custom, make_physics, probe_operator
from rlsd_lightning.operators.compressive import compressed_sensing, single_pixel
from rlsd_lightning.operators.filters import blur, gaussian_blur, load_kernel, motion_blur, super_resolution
from rlsd_lightning.operators.medical import mri, tomography
from rlsd_lightning.operators.noise import NOISES, PoissonNoise, make_noise
from rlsd_lightning.operators.nonlinear import hdr, jpeg, nonlinear_blur, phase_retrieval, quantization
from rlsd_lightning.operators.pixels import (
    NullOperator,
    colorization,
    demosaicing,
    denoising,
    first_coordinate,
    inpainting,
)

__all__ = [
    "NOISES",
    "NullOperator",
    "PoissonNoise",
    "as_physics",
    "blur",
    "colorization",
    "compose",
    "compressed_sensing",
    "custom",
    "demosaicing",
    "denoising",
    "first_coordinate",
    "gaussian_blur",
    "hdr",
    "inpainting",
    "jpeg",
    "load_kernel",
    "make_noise",
    "make_physics",
    "motion_blur",
    "mri",
    "nonlinear_blur",
    "phase_retrieval",
    "probe_operator",
    "quantization",
    "single_pixel",
    "super_resolution",
    "tomography",
]
