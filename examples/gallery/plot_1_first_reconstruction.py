"""
First reconstruction
====================

The lower half of a cartoon face is hidden. Four particles fill it in, each in its own way. The prior is a small Stable Diffusion
model that comes with the package, so nothing is downloaded.
"""

import matplotlib.pyplot as plt

from rlsd_lightning import StableDiffusionPrior, ViTFeatures, embedded, solve
from rlsd_lightning.images import load_image, to_pil
from rlsd_lightning.operators import inpainting

# %%
# The prior and the measurement
# -----------------------------
# An operator :math:`A` acts on images in [-1, 1] with the shape of the prior's. Calling it adds its noise: ``physics(truth)`` is
# :math:`y = A(x) + n`. The half that the mask hides is shown in grey.

prior = StableDiffusionPrior(embedded("priors/faces"))
physics = inpainting(prior.image_shape, mask="half")
truth = load_image(embedded("faces/heldout/000.png"), 64, 64)
y = physics(truth)


def show(images, titles):
    """Pictures side by side."""
    _, axes = plt.subplots(1, len(images), figsize=(1.6 * len(images), 1.9), layout="constrained")
    for axis, image, title in zip(axes, images, titles, strict=True):
        axis.imshow(to_pil(image))
        axis.set_title(title, fontsize=10)
        axis.axis("off")


show([truth[0], y[0]], ["ground truth", "measurement"])

# %%
# Four particles
# --------------
# ``solve`` draws the particles. The truth is used for metrics only. The repulsion compares particles by the features of a small
# vision transformer, which is part of the package too.

features = ViTFeatures(embedded("features/faces"))
quiet = {"enable_progress_bar": False}
result = solve(y, physics, prior, truth=truth, features=features, trainer=quiet)
print(result)

# %%
# The result has all particles, their mean, and an uncertainty map.

show(
    [truth[0], y[0], *result.particles, result.mean],
    ["ground truth", "measurement", *(f"particle {i}" for i in range(4)), "mean"],
)

# %%
# Where the measurement shows the face, the particles agree. The uncertainty map is dark there, and bright where the prior had to
# invent.

figure, axis = plt.subplots(figsize=(4, 3), layout="constrained")
picture = axis.imshow(result.std, cmap="magma")
figure.colorbar(picture, label="standard deviation, on [-1, 1]")
axis.axis("off")

# %%
# ``save`` writes pictures, metrics and tensors to a folder.

result.save("first_reconstruction")

# %%
# The command line does the same with ``rlsd task=inpaint``, and adds a report.
plt.show()

# sphinx_gallery_thumbnail_number = 2
