"""Results of two-dimensional points: their density against the exact posterior."""

import copy
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlsd_lightning.evaluation.scores import Solved
from rlsd_lightning.functional.metrics import mode_total_variation
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.priors import GaussianMixture, GaussianMixturePrior
from rlsd_lightning.results.result import Result
from rlsd_lightning.results.writer import PointResults

__all__ = ["DensityResults", "exact_posterior"]


def exact_posterior(prior: GaussianMixturePrior, measurement: Measurement) -> GaussianMixture:
    """Posterior of a mixture prior whose coordinates are observed through a mask."""
    physics = measurement.physics
    seen = physics.mask[0] > 0
    operator = torch.diag(physics.mask[0])[seen]
    return prior.mixture.posterior(operator, measurement.y[0][seen], physics.noise_model.sigma.max().item())


class DensityResults(PointResults):
    """Draws particles on the exact posterior's density and compares their shares of its modes."""

    def result(self, module: ParticleModule, solved: Solved) -> Result:
        made = super().result(module, solved)
        posterior = exact_posterior(module.prior, solved.measurement).cpu()
        shares = mode_total_variation(posterior.assign(made.particles), posterior.weights).item()
        density = posterior.log_prob(made.particles).mean().item()
        metrics = made.metrics | {"mode_total_variation": shares, "log_density": density}
        return replace(made, metrics=metrics)

    def write(self, folder: Path, module: ParticleModule, result: Result) -> None:
        (measurement,) = (each for each in module.measurements if each.name == result.metrics["name"])
        posterior, prior = exact_posterior(module.prior, measurement).cpu(), copy.deepcopy(module.prior.mixture).cpu()
        folder.mkdir(parents=True, exist_ok=True)
        _draw_density(folder / "grid.png", posterior, prior, result.particles)
        super().write(folder, module, result)


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
