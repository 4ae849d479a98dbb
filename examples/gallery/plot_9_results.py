"""
Results in a notebook
=====================

A run leaves pictures, tensors and metrics. This example reads them back, and asks questions that no picture answers.
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt
from safetensors.torch import load_file

from rlsd_lightning import StableDiffusionPrior, ViTFeatures, embedded, representatives, solve
from rlsd_lightning.images import load_image, to_pil
from rlsd_lightning.operators import inpainting

# %%
# A run
# -----
# Eight particles of half a face. In a notebook, ``result`` as the last line of a cell shows the grid below.

prior = StableDiffusionPrior(embedded("priors/faces"), tiny_decoder="auto")
physics = inpainting(prior.image_shape, mask="half")
truth = load_image(embedded("faces/heldout/005.png"), 64, 64)
features = ViTFeatures(embedded("features/faces"))
quiet = {"enable_progress_bar": False}
result = solve(
    physics(truth), physics, prior, truth=truth,
    features=features, num_particles=8, num_steps=30, trainer=quiet,
)  # fmt: skip
result.save("run/005")

figure, axis = plt.subplots(figsize=(9, 2.6), layout="constrained")
axis.imshow(plt.imread("run/005/grid.png"))
axis.axis("off")

# %%
# Files
# -----
# A run of the command line has the same files in ``outputs/<task>/<time>/<name>``.

for file in sorted(Path("run/005").iterdir()):
    print(file.name)

# %%
# Metrics and warnings
# --------------------

metrics = json.loads(Path("run/005/metrics.json").read_text(encoding="utf-8"))
for name in ("psnr_mean", "psnr_best", "psnr_of_mean", "residual_sigmas"):
    print(f"{name:16} {metrics[name]:.3f}")
print(metrics["warnings"] or "no warnings")

# %%
# Representatives
# ---------------
# A few particles stand for all. Each has the share of particles that are nearest to it.

chosen = representatives(result, k=3)
figure, axes = plt.subplots(1, 3, figsize=(6, 2.2), layout="constrained")
for axis, (particle, share) in zip(axes, chosen, strict=True):
    axis.imshow(to_pil(result.particles[particle]))
    axis.set_title(f"particle {particle}: {share:.0%}", fontsize=10)
    axis.axis("off")

# %%
# A question of your own
# ----------------------
# Particles are samples, so a question about the image is a question about the particles. What is the colour of the chin?

particles = load_file("run/005/particles.safetensors")["x"].clamp(-1, 1)
chin = particles[:, :, 44:48, 29:35].mean(dim=(2, 3)) / 2 + 0.5
brightness = chin.mean(dim=1)
low, high = brightness.min(), brightness.max()
print(f"brightness of the chin: {brightness.mean():.2f}, from {low:.2f} to {high:.2f}")

figure, axis = plt.subplots(figsize=(6, 1.4), layout="constrained")
axis.imshow(chin[brightness.argsort()][None])
axis.set(xticks=range(8), yticks=[], xlabel="particles, in order of brightness")

# %%
# How the particles formed
# ------------------------
# The filmstrip shows each particle at ten moments.

figure, axis = plt.subplots(figsize=(9, 7), layout="constrained")
axis.imshow(plt.imread("run/005/filmstrip.png"))
axis.axis("off")
plt.show()

# sphinx_gallery_thumbnail_number = 2
