"""
Own operator
============

Any differentiable function of images can be the operator. A linear one is solved exactly in each step, if you say that it is linear.
"""

import matplotlib.pyplot as plt
import torch
from deepinv.physics import GaussianNoise, LinearPhysics
from torch.nn.functional import avg_pool2d, interpolate

from rlsd_lightning import StableDiffusionPrior, embedded, solve
from rlsd_lightning.images import load_image, to_pil

prior = StableDiffusionPrior(embedded("priors/faces"))
truth = load_image(embedded("faces/heldout/008.png"), 64, 64)
quiet = {"enable_progress_bar": False}


def show(images, titles):
    """Pictures side by side."""
    _, axes = plt.subplots(1, len(images), figsize=(1.6 * len(images), 1.9), layout="constrained")
    for axis, image, title in zip(axes, images, titles, strict=True):
        axis.imshow(to_pil(image))
        axis.set_title(title, fontsize=10)
        axis.axis("off")


# %%
# A linear operator
# -----------------
# A mosaic hides a face: each tile of 8x8 pixels becomes its mean. ``LinearPhysics`` of deepinv takes the function and finds the adjoint
# by automatic differentiation.


def mosaic(x, **kwargs):
    """Means of tiles."""
    return avg_pool2d(x, 8)


physics = LinearPhysics(A=mosaic, img_size=prior.image_shape, noise_model=GaussianNoise(0.02))
y = physics(truth)
result = solve(y, physics, prior, truth=truth, num_steps=40, trainer=quiet)
show(
    [truth[0], interpolate(y, scale_factor=8)[0], *result.particles],
    ["ground truth", "measurement", *(f"particle {i}" for i in range(4))],
)

# %%
# Each particle explains the tiles. The residual is given in standard deviations of the noise: the truth has 1, and from 3 on a result
# has a warning.

print(result.metrics["residual_sigmas"])

# %%
# A nonlinear operator
# --------------------
# A plain function needs no class. This camera darkens the corners and saturates, and it sees one colour only.

rows = torch.linspace(-1, 1, 64)[:, None]
columns = torch.linspace(-1, 1, 64)
vignette = torch.exp(-(rows**2 + columns**2))


def camera(x):
    """One colour, with dark corners and a soft limit."""
    light = (x.mean(dim=1, keepdim=True) + 1) * vignette
    return 2 * torch.tanh(light) - 1


y = camera(truth)
result = solve(y, camera, prior, truth=truth, num_particles=2, num_steps=40, trainer=quiet)
titles = ["ground truth", "measurement", "particle 0", "particle 1"]
show([truth[0], y[0], *result.particles], titles)

# %%
# The particles must find the colours and the corners by themselves. What they share is what the camera saw:

show(
    [y[0], *(camera(result.particles)[i] for i in range(2))],
    ["measurement", "of particle 0", "of particle 1"],
)
plt.show()

# sphinx_gallery_thumbnail_number = 2
