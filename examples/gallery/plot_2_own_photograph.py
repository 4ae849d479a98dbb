"""
Own photograph
==============

A photograph is scratched, and a mask says where. The scratches are filled in with the prior of photographs. Replace the first lines by
your own two files.
"""

import matplotlib.pyplot as plt
from PIL import Image, ImageDraw

from rlsd_lightning import StableDiffusionPrior, embedded, solve
from rlsd_lightning.data import load_measured
from rlsd_lightning.images import load_image, to_pil
from rlsd_lightning.operators import inpainting

# %%
# Two files
# ---------
# ``damaged.png`` is the picture, and ``mask.png`` is white where its pixels are good. Here both are made from a photograph of the
# package.

photo = Image.open(embedded("photos/chelsea.jpg")).convert("RGB")
photo = photo.resize((96, 96), Image.Resampling.LANCZOS)
mask = Image.new("L", photo.size, 255)
scratches = [(4, 8, 92, 16), (70, 2, 44, 94), (2, 62, 94, 76), (6, 92, 60, 56), (88, 40, 96, 92)]
for scratch in scratches:
    ImageDraw.Draw(mask).line(scratch, fill=0, width=2)
damaged = Image.composite(photo, Image.new("RGB", photo.size, "white"), mask)
photo.save("photo.png")
mask.save("mask.png")
damaged.save("damaged.png")

# %%
# Reconstruct
# -----------
# The prior of photographs knows edges and textures, so it mends scratches, and not large holes. Its images may have any size that its
# stride of 4 divides. The tiny decoder makes steps faster.

prior = StableDiffusionPrior(embedded("priors/photos"), image_size=96, tiny_decoder="auto")
physics = inpainting(prior.image_shape, mask="mask.png")
y = load_measured("damaged.png", physics, prior.image_shape)
quiet = {"enable_progress_bar": False}
result = solve(y, physics, prior, num_particles=2, num_steps=60, trainer=quiet)
print(result)

# %%
# No ground truth was given, so the metrics have no PSNR. The damaged picture, the mean of the particles,
# and the photograph:

figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
truth = load_image("photo.png", 96, 96)
pictures = {"damaged": y[0], "reconstructed": result.mean, "photograph": truth[0]}
for axis, (title, image) in zip(axes, pictures.items(), strict=True):
    axis.imshow(to_pil(image))
    axis.set_title(title)
    axis.axis("off")

# %%
# Pictures of any size
# --------------------
# On the command line the photograph may have any size, and ``full_size/`` has the result at that size:
# ``rlsd prior=photos task=inpaint data.measurement=damaged.png physics.mask=mask.png``
plt.show()
