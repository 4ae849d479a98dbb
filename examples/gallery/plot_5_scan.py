"""
Measured MRI data
=================

A scanner's k-space is an array in its own units. ``mri`` takes the array, the sampling pattern and the coil maps, and says what one unit
of the image is. Replace the first section by your own files; :doc:`/scans` lists axes, centre and units.
"""

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from rlsd_lightning import StableDiffusionPrior, embedded, solve
from rlsd_lightning.operators import mri

# %%
# Raw data
# --------
# The raw data are simulated in a scanner's form: four coils, every fourth column, noise, and 900 units where the object is white. The
# object is a face, because the embedded prior knows faces.

head = np.asarray(Image.open(embedded("faces/heldout/007.png")).convert("L"), float) / 255
rng = np.random.default_rng(0)


def transform(image):
    """The centred, orthonormal Fourier transform."""
    centred = np.fft.ifftshift(image, axes=(-2, -1))
    return np.fft.fftshift(np.fft.fft2(centred, norm="ortho"), axes=(-2, -1))


rows, columns = np.mgrid[-1:1:64j, -1:1:64j]
turns = np.pi / 2 * np.arange(4)[:, None, None]
# four coils around the head
maps = 1 / ((columns - 1.5 * np.cos(turns)) + 1j * (rows - 1.5 * np.sin(turns)))
maps /= np.sqrt((np.abs(maps) ** 2).sum(axis=0))
measured = np.arange(64) % 4 == 0
measured[28:36] = True
kspace = transform(maps * 900 * head)
kspace += 4 * (rng.standard_normal(kspace.shape) + 1j * rng.standard_normal(kspace.shape))
np.save("kspace.npy", (kspace * measured).astype("complex64"))  # (coil, row, column)
np.save("measured.npy", measured)  # (column,)
np.save("maps.npy", maps.astype("complex64"))  # (coil, row, column)

figure, axes = plt.subplots(1, 4, figsize=(9, 2.4), layout="constrained")
for coil, axis in enumerate(axes):
    axis.imshow(np.log1p(np.abs(kspace * measured)[coil]), cmap="gray")
    axis.set_title(f"k-space of coil {coil}", fontsize=10)
    axis.axis("off")

# %%
# Reconstruct
# -----------
# ``white=900`` says which value is white. The noise of the file has the standard deviation 4, which is 2 / 900 times that on [-1, 1].
# ``from_array`` converts the file to these units, and ``for_measurement`` makes the operator of this measurement.

prior = StableDiffusionPrior(embedded("priors/faces"))
files = {"mask": "measured.npy", "coil_maps": "maps.npy"}
scan = mri(prior.image_shape, **files, white=900, sigma=4 * 2 / 900)
y = scan.from_array(np.load("kspace.npy"))
physics = scan.for_measurement(y)
quiet = {"enable_progress_bar": False}
result = solve(y, physics, prior, num_steps=30, trainer=quiet)
print(result)

# %%
# A scan measures one grey image. The pseudo-inverse is the reconstruction without a prior: the missing columns fold the image.

figure, axes = plt.subplots(1, 4, figsize=(9, 2.6), layout="constrained")
pictures = {
    "object": 2 * head - 1,
    "pseudo-inverse": physics.A_dagger(y)[0].mean(dim=0),
    "mean of four particles": result.mean.mean(dim=0),
}
for axis, (title, image) in zip(axes, pictures.items(), strict=False):
    axis.imshow(image, cmap="gray", vmin=-1, vmax=1)
    axis.set_title(title, fontsize=10)
uncertainty = axes[3].imshow(result.std, cmap="magma", vmin=0)
axes[3].set_title("standard deviation", fontsize=10)
figure.colorbar(uncertainty, ax=axes[3])
for axis in axes:
    axis.axis("off")

# %%
# The command line reads the same files:
#
# .. code-block:: bash
#
#    rlsd task=mri data.measurement=kspace.npy physics.mask=measured.npy physics.coil_maps=maps.npy \
#        physics.white=900 physics.sigma=0.0089
plt.show()

# sphinx_gallery_thumbnail_number = 2
