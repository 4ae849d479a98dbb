r"""
Uncertainty and its calibration
===============================

The uncertainty map says how far a reconstruction may be from the truth. Where the truth is known, this can be checked: an interval for
90 % should contain 90 % of the true values.
"""

import matplotlib.pyplot as plt
import torch

from rlsd_lightning import Reconstructor, StableDiffusionPrior, embedded
from rlsd_lightning.functional.calibration import LEVELS, calibration, total_calibration
from rlsd_lightning.images import load_image, to_pil
from rlsd_lightning.operators import super_resolution

# %%
# Four small pictures
# -------------------
# Each measurement has a quarter of the rows and columns of a face. ``Reconstructor`` solves a batch side by side.

prior = StableDiffusionPrior(embedded("priors/faces"))
physics = super_resolution(prior.image_shape, factor=4, sigma=0.02)
files = [embedded(f"faces/heldout/{i:03d}.png") for i in range(4, 8)]
truths = torch.cat([load_image(file, 64, 64) for file in files])
y = physics(truths)
results = Reconstructor(prior, num_particles=4, num_steps=30).results(y, physics)

# %%
# Errors and the map
# ------------------
# The map should be bright where the error is large: at edges, whose place the small picture does not tell.

figure, axes = plt.subplots(4, 4, figsize=(8, 8), layout="constrained")
for index, (result, row) in enumerate(zip(results, axes, strict=True)):
    error = (result.mean - truths[index]).square().mean(dim=0).sqrt()
    row[0].imshow(to_pil(y[index]))
    row[1].imshow(to_pil(result.mean))
    row[2].imshow(error, cmap="magma", vmin=0, vmax=0.5)
    row[3].imshow(result.std, cmap="magma", vmin=0, vmax=0.5)
    for axis in row:
        axis.axis("off")
titles = ["measurement", "mean", "error of the mean", "standard deviation"]
for axis, title in zip(axes[0], titles, strict=True):
    axis.set_title(title, fontsize=10)

# %%
# Coverage
# --------
# The particles' spread alone leaves out the error of the autoencoder, which all particles share. The map adds an estimate of this error,
# ``shared_variance``. Below the grey line intervals are too narrow, above it they are wider than needed.

spread, total = torch.zeros(len(LEVELS)), torch.zeros(len(LEVELS))
for index, result in enumerate(results):
    particles, truth = result.particles.clamp(-1, 1), truths[index : index + 1]
    alone = calibration(particles, truth, resolution=1 / 255)
    shared = result.tensors["shared_variance"]
    both = total_calibration(particles, shared, truth, resolution=1 / 255)
    spread += torch.tensor([alone[f"coverage_{level}"] for level in LEVELS]) / len(results)
    total += torch.tensor([both[f"total_coverage_{level}"] for level in LEVELS]) / len(results)

figure, axis = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
axis.plot([40, 100], [40, 100], color="lightgrey", label="exact")
axis.plot(LEVELS, 100 * spread, "o-", label="spread of the particles")
axis.plot(LEVELS, 100 * total, "o-", label="with the autoencoder's error")
axis.set(xlabel="interval, in percent", ylabel="true values inside, in percent")
axis.legend()

for level, before, after in zip(LEVELS, spread.tolist(), total.tolist(), strict=True):
    print(f"interval of {level} %: {before:.0%} by the spread alone, {after:.0%} in total")

# %%
# Pixels of one face depend on each other, so the coverage of four faces still scatters. ``rlsd evaluate`` averages it over many
# measurements; :doc:`/evaluation` defines each figure.
plt.show()
