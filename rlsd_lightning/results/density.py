"""Results of two-dimensional points: their density against the exact posterior."""

import copy
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlsd_lightning.evaluation.scores import Solved
from rlsd_lightning.functional.metrics import mode_total_variation
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.priors import GaussianMixture, GaussianMixturePrior
from rlsd_lightning.results.store import write_particles
from rlsd_lightning.results.writer import Results

__all__ = ["DensityResults", "exact_posterior"]


def exact_posterior(prior: GaussianMixturePrior, measurement: Measurement) -> GaussianMixture:
    """Posterior of a mixture prior whose coordinates are observed through a mask."""
    physics = measurement.physics
    seen = physics.mask[0] > 0
    operator = torch.diag(physics.mask[0])[seen]
    return prior.mixture.posterior(operator, measurement.y[0][seen], physics.noise_model.sigma.max().item())


class DensityResults(Results):
    """Draws particles on the exact posterior's density and compares their shares of its modes."""

    def results(self, folder: Path, pl_module: ParticleModule, solved: Solved) -> dict[str, Any]:
        images = solved.images.cpu()
        posterior = exact_posterior(pl_module.prior, solved.measurement).cpu()
        write_particles(folder, {"x": images, "z": solved.z, "y": solved.measurement.y})
        _draw_density(folder / "grid.png", posterior, copy.deepcopy(pl_module.prior.mixture).cpu(), images)
        return {
            "mode_total_variation": mode_total_variation(posterior.assign(images), posterior.weights).item(),
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
        panel.set_xlabel("observed coordinate")
        panel.set_ylabel("hidden coordinate")
    figure.savefig(path, dpi=100)
