"""Small problems in float64, and what a step of RLSD is made of, from the networks themselves."""

from collections.abc import Callable

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from rlsd_lightning import RLSD, Features, LatentFeatures, Measurement, Prior
from rlsd_lightning.functional.kernels import log_density, median_bandwidth
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.operators import inpainting

F64 = torch.float64


def half(shape: tuple[int, ...], sigma: float = 0.001) -> LinearPhysics:
    """Half of an image."""
    return inpainting(shape, mask="half", sigma=sigma)


def make(
    prior: Prior,
    features: Features | None = None,
    operator: Callable = half,
    method: type[ParticleModule] = RLSD,
    **settings,
) -> ParticleModule:
    """A problem of a random image, all in float64."""
    physics = operator(prior.image_shape).double()
    truth = 2 * torch.rand(1, *prior.image_shape, generator=torch.Generator().manual_seed(0), dtype=F64) - 1
    measurement = Measurement("face", physics.A(truth), physics)
    settings = {"num_particles": 3, "num_steps": 20, **settings}
    return method(prior, measurement, features or LatentFeatures(), **settings).double()


def noisy(module: RLSD, step: int) -> Tensor:
    """The noisy latents of a step, as a leaf."""
    t = module.timesteps[step]
    return (module.prior.alphas[t] * module.z.detach() + module.prior.sigmas[t] * module.e).requires_grad_()


def predicted(module: ParticleModule, z_t: Tensor, step: int) -> Tensor:
    """The noise that the network of a pipeline predicts."""
    prior = module.prior
    return prior.denoiser(z_t, module.timesteps[step], prior.text.expand(len(z_t), -1, -1)).sample


def denoised(module: ParticleModule, z_t: Tensor, step: int) -> Tensor:
    """Clean latents."""
    t = module.timesteps[step]
    return (z_t - module.prior.sigmas[t] * predicted(module, z_t, step)) / module.prior.alphas[t]


def distance_gradient(module: RLSD, image: Tensor, x: Tensor) -> Tensor:
    """The gradient in the images of their distance to x, or to the measurement without it."""
    measurement = module.measurements[0]
    residual = x - image if module.hparams.augmented else measurement.y - measurement.physics.A(image)
    return torch.autograd.grad(residual.flatten(1).norm(dim=1).sum(), image, retain_graph=True)[0]


def density_gradient(features: Features, clean: Tensor, image: Tensor) -> Tensor:
    """Autograd's gradient of the log density, in what the features are of."""
    compared = features(clean, image)
    density = log_density(compared, compared.detach(), median_bandwidth(compared)).sum()
    return torch.autograd.grad(density, clean if features.of_latents else image, retain_graph=True)[0]


def back(leaf: Tensor, *values_with_gradients: tuple[Tensor, Tensor]) -> Tensor:
    """The gradient in a leaf of values whose gradients are known."""
    values, given = zip(*values_with_gradients, strict=True)
    return torch.autograd.grad(values, leaf, given, retain_graph=True)[0]


def norms(value: Tensor) -> Tensor:
    """Every particle's norm."""
    return value.flatten(1).norm(dim=1)
