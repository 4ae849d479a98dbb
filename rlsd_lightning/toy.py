"""A two-dimensional problem with an exact posterior: five equal modes that one coordinate can't tell apart."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from deepinv.physics import GaussianNoise, Inpainting
from matplotlib.figure import Figure
from safetensors.torch import save
from torch import Tensor

from rlsd_lightning.engine.callbacks import Results
from rlsd_lightning.functional.metrics import mode_total_variation
from rlsd_lightning.measurement import Measurement, MeasurementList
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.priors import GaussianMixture, GaussianMixturePrior
from rlsd_lightning.results.writer import PARTICLES_FILE, write_atomically

__all__ = ["DensityResults", "exact_posterior", "first_coordinate", "point_measurement"]


def first_coordinate(image_shape: tuple[int, ...], sigma: float = 0.1) -> Inpainting:
    """Sees the first coordinate of a point only.

    Args:
        image_shape: Shape of a point, :math:`(d,)`.
        sigma: Standard deviation of the noise.
    """
    mask = torch.zeros(image_shape)
    mask[0] = 1
    return Inpainting(image_shape, mask=mask, noise_model=GaussianNoise(sigma=float(sigma)))


def point_measurement(
    image_shape: tuple[int, ...], physics: Callable[..., Inpainting], value: float = 0.0
) -> MeasurementList:
    """The measurement that the first coordinate is ``value``.

    Args:
        image_shape: Shape of a point, :math:`(d,)`.
        physics: Makes the operator that sees the first coordinate, from the point's shape.
        value: What it saw.
    """
    y = torch.zeros(1, *image_shape)
    y[0, 0] = value
    return MeasurementList([Measurement("toy", y, physics(image_shape))])


def exact_posterior(prior: GaussianMixturePrior, measurement: Measurement) -> GaussianMixture:
    """The posterior of a mixture prior when some coordinates are seen."""
    physics = measurement.physics
    seen = physics.mask[0] > 0
    operator = torch.diag(physics.mask[0])[seen]
    return prior.mixture.posterior(operator, measurement.y[0][seen], physics.noise_model.sigma.max().item())


class DensityResults(Results):
    """Draws the particles over the exact posterior's density and compares their shares of its modes."""

    def results(
        self,
        folder: Path,
        pl_module: ParticleModule,
        measurement: Measurement,
        images: Tensor,
        decoded: Tensor,
        z: Tensor,
    ) -> dict[str, Any]:
        posterior, images = exact_posterior(pl_module.prior, measurement).cpu(), images.cpu()
        prior = copy.deepcopy(pl_module.prior.mixture).cpu()
        assignments = posterior.assign(images)
        tensors = {"x": images, "z": z.detach(), "y": measurement.y}
        # copies: where the latent is the point, both may be one tensor
        copies = {name: v.cpu().clone(memory_format=torch.contiguous_format) for name, v in tensors.items()}
        write_atomically(folder / PARTICLES_FILE, save(copies))
        _draw_density(folder / "grid.png", posterior, prior, images)
        return {
            "mode_total_variation": mode_total_variation(assignments, posterior.weights).item(),
            "log_density": posterior.log_prob(images).mean().item(),
        }


def _draw_density(path: Path, posterior: GaussianMixture, prior: GaussianMixture, points: Tensor) -> None:
    reach = prior.means.abs().max().item() + 1
    axis = torch.linspace(-reach, reach, 300)
    grid = torch.cartesian_prod(axis, axis)
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    for panel, (name, density) in zip(
        figure.subplots(1, 2), (("prior", prior), ("exact posterior", posterior)), strict=True
    ):
        values = density.log_prob(grid).exp().view(300, 300).T
        panel.imshow(values, origin="lower", extent=(-reach, reach, -reach, reach), cmap="Blues")
        panel.plot(*points.T, ".", color="crimson", markersize=6, label="particles")
        panel.set_title(f"{name} and {len(points)} particles")
        panel.set_xlabel("seen coordinate")
        panel.set_ylabel("hidden coordinate")
    figure.savefig(path, dpi=100)
