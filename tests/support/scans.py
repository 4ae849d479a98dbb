"""Images of scans, and numpy's Fourier transform of them."""

import numpy as np


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth image in [-1, 1] that has no symmetry."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    image = sum(
        rng.uniform(-1, 1) * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 0.02)
        for x, y in rng.uniform(0.2, 0.7, (6, 2))
    )
    return 2 * (image - image.min()) / np.ptp(image) - 1


def kspace(image: np.ndarray) -> np.ndarray:
    """The transform in the convention of docs/scans.md."""
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image, axes=axes), norm="ortho"), axes=axes)
