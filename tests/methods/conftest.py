"""What tests of methods share."""

from collections.abc import Callable

import pytest

from rlsd_lightning import Features, LatentFeatures, PixelFeatures, StableDiffusionPrior, ViTFeatures


@pytest.fixture
def prior(tiny_prior: StableDiffusionPrior) -> StableDiffusionPrior:
    """The tiny pipeline in float64."""
    return tiny_prior.double()


@pytest.fixture
def features_of(tiny_features: ViTFeatures) -> Callable[[str], Features]:
    """Features by name, in float64."""
    return {"latents": LatentFeatures(), "pixels": PixelFeatures(), "vit": tiny_features.double()}.__getitem__
