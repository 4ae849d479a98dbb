r"""
Own prior
=========

A prior of your own needs a noise schedule, an encoder, a decoder and a denoiser. Here they are eigenfaces: the mean and the principal
components of 92 faces. This prior is Gaussian, so the exact mean of the posterior is known.
"""

import matplotlib.pyplot as plt
import torch

from rlsd_lightning import PixelFeatures, Prior, embedded, solve
from rlsd_lightning.images import load_image, to_pil
from rlsd_lightning.operators import inpainting

files = sorted(embedded("faces/heldout").glob("*.png"))
faces = torch.cat([load_image(file, 64, 64) for file in files])
training, truth = faces[8:], faces[3:4]

# %%
# The class
# ---------
# A latent :math:`z` has one coefficient for each component, with :math:`z \sim \mathcal{N}(0, I)`. The decoder is
# :math:`D(z) = m + B^\top S z`, with the mean face :math:`m`, components :math:`B` and their scales :math:`S`. The noisy latent is
# :math:`z_t = \alpha_t z + \sigma_t \epsilon`, and the best estimate of the clean one is
#
# .. math:: \hat z = \frac{\alpha_t}{\alpha_t^2 + \sigma_t^2} z_t.
#
# ``prediction_type="sample"`` says that ``network`` returns this estimate. Most networks return the noise, ``"epsilon"``.


class Eigenfaces(Prior):
    """The Gaussian distribution with the mean and the covariance of some images."""

    def __init__(self, images):
        angle = torch.linspace(0.001, 0.999, 1000) * torch.pi / 2
        rank = len(images) - 1
        shapes = (rank,), images.shape[1:]
        super().__init__(angle.cos(), angle.sin(), *shapes, prediction_type="sample")
        mean = images.mean(dim=0)
        centred = (images - mean).flatten(1)
        _, scales, components = torch.linalg.svd(centred, full_matrices=False)
        self.register_buffer("mean", mean)
        self.register_buffer("scales", scales[:rank] / rank**0.5)
        self.register_buffer("components", components[:rank])
        self.freeze()

    def network(self, z_t, t):
        """The estimate of the clean latents."""
        alpha, sigma = self.alpha(t), self.sigma(t)
        return alpha / (alpha**2 + sigma**2) * z_t

    def encode(self, images):
        """Coefficients of images."""
        return (images - self.mean).flatten(1) @ self.components.T / self.scales

    def decode(self, z):
        """Images of coefficients."""
        return self.mean + (z * self.scales @ self.components).unflatten(1, self.image_shape)


prior = Eigenfaces(training)


def show(images, titles):
    """Pictures side by side."""
    _, axes = plt.subplots(1, len(images), figsize=(1.6 * len(images), 1.9), layout="constrained")
    for axis, image, title in zip(axes, images, titles, strict=True):
        axis.imshow(to_pil(image))
        axis.set_title(title, fontsize=10)
        axis.axis("off")


# %%
# The mean face, the decoded face of three components, and three samples of the prior:

axes = [prior.decode(2 * torch.eye(91)[i : i + 1])[0] for i in range(3)]
samples = prior.decode(torch.randn(3, 91, generator=torch.Generator().manual_seed(0)))
show([prior.mean, *axes, *samples], ["mean", "axis 0", "axis 1", "axis 2", *["sample"] * 3])

# %%
# Half a face
# -----------
# The prior works with every operator and every method. Its scales, such as the error of its decoder, are measured on samples of its own.

physics = inpainting(prior.image_shape, mask="half", sigma=0.02)
y = physics(truth)
quiet = {"enable_progress_bar": False}
pixels = PixelFeatures()
result = solve(y, physics, prior, truth=truth, num_particles=16, features=pixels, trainer=quiet)
show(
    [truth[0], y[0], *result.particles[:4], result.mean],
    ["ground truth", "measurement", *(f"particle {i}" for i in range(4)), "mean of 16"],
)

# %%
# Against the exact posterior
# ---------------------------
# With the variance :math:`s^2` of noise and decoder error together, the posterior's mean is
# :math:`(M^\top M + s^2 I)^{-1} M^\top (y - A m)`, where :math:`M` has the seen part of each scaled component.

seen = physics.mask[0].flatten() > 0
matrix = (prior.scales[:, None] * prior.components)[:, seen].T
variance = prior.calibration.decoder_std**2 + 0.02**2
residual = (y - physics.A(prior.mean[None])).flatten()[seen]
exact = torch.linalg.solve(matrix.T @ matrix + variance * torch.eye(91), matrix.T @ residual)
exact_mean = physics.mask[0] * y[0] + (1 - physics.mask[0]) * prior.decode(exact[None])[0]
titles = ["prior's mean", "exact mean", "mean of 16", "ground truth"]
show([prior.mean, exact_mean, result.mean, truth[0]], titles)

# %%
# Distances to the exact mean in the hidden half, as root mean squares. The method is an approximation: its steps know one standard
# deviation for all directions of the image, so the mean of the particles ends between the prior's and the exact one.

hidden = physics.mask[0] == 0
images = [prior.mean, result.particles[0], result.mean]
for name, image in zip(["prior's mean", "one particle", "mean of 16"], images, strict=True):
    print(f"{name:13} {(image - exact_mean)[hidden].square().mean().sqrt():.3f}")
plt.show()

# sphinx_gallery_thumbnail_number = 3
