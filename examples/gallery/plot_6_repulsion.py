r"""
Repulsion in two dimensions
===========================

A point in the plane has two coordinates, and one is measured. Five places explain the measurement equally well. Particles that follow
score distillation alone gather in one of them. With repulsion they spread over all five.
"""

import lightning as L
import matplotlib.pyplot as plt
import torch

from rlsd_lightning import Distilled, GaussianMixturePrior, LatentFeatures, solve
from rlsd_lightning.operators import first_coordinate

# %%
# The problem
# -----------
# The prior has seven equal modes. The first coordinate is measured to be 0, so the five modes on this line remain. Prior and posterior are
# known exactly.

modes = [[0, -2], [0, -1], [0, 0], [0, 1], [0, 2], [2, 1], [2, -1]]
prior = GaussianMixturePrior(modes, std=0.15)
physics = first_coordinate(prior.image_shape, sigma=0.1)
y = torch.zeros(1, 2)
posterior = prior.mixture.posterior(torch.tensor([[1.0, 0.0]]), torch.zeros(1), 0.1)

# %%
# The paths of the particles
# --------------------------
# A method is a LightningModule, so a callback can watch its latents.


class Paths(L.Callback):
    """Positions of all particles after each step."""

    def __init__(self):
        self.positions = []

    def on_train_batch_end(self, trainer, module, *args):
        """Called by Lightning."""
        self.positions.append(module.z.detach().clone())


settings = {
    "gamma_mode": "absolute",
    "lr_z": 0.1,
    "weighting": "sqrt",
    "distillation_weight": 0.1,
    "repulsion_until": 0.8,
}


def run(gamma):
    """Final particles and their paths."""
    paths = Paths()
    quiet = {"enable_progress_bar": False}
    result = solve(
        y, physics, prior, num_particles=32, num_steps=400, method=Distilled,
        features=LatentFeatures(), callbacks=[paths], trainer=quiet, gamma=gamma, **settings,
    )  # fmt: skip
    return result.particles, torch.stack(paths.positions)


runs = {"without repulsion": run(0.0), "with repulsion": run(2.0)}

# %%
# The grey areas are the prior, and the dashed line is the measurement. Each line is the path of a particle.

grid = torch.linspace(-3, 3, 200)
points = torch.cartesian_prod(grid, grid)
density = prior.mixture.log_prob(points).exp().view(200, 200).T
figure, axes = plt.subplots(1, 2, figsize=(9, 4.9), layout="constrained", sharey=True)
for axis, (title, (particles, positions)) in zip(axes, runs.items(), strict=True):
    axis.contourf(grid, grid, density, levels=12, cmap="Greys")
    axis.axvline(0, color="tab:orange", linestyle="--", linewidth=1)
    for path in positions.movedim(1, 0):
        axis.plot(*path.T, color="tab:blue", alpha=0.35, linewidth=0.8)
    axis.scatter(*particles.T, color="tab:red", s=18, zorder=3)
    axis.set(title=title, xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
    axis.set(xlabel="measured", ylabel="not measured")

# %%
# How many particles end in each mode
# -----------------------------------
# The exact posterior has the same weight in each of the five modes. Repulsion balances the modes, but the particles are no exact samples:
# some end between two modes.

figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
width = 0.27
exact = 32 * posterior.weights[:5]
axis.bar(torch.arange(5) - width, exact, width, label="exact posterior", color="lightgrey")
for offset, (title, (particles, _)) in enumerate(runs.items()):
    counts = posterior.assign(particles).bincount(minlength=7)[:5]
    axis.bar(torch.arange(5) + offset * width, counts, width, label=title)
    print(f"{title}: {counts.tolist()}")
axis.set(xlabel="mode, from bottom to top", ylabel="particles")
axis.legend()
plt.show()
