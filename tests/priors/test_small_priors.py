"""The default on two small trained priors that no setting was chosen on; examples/small_priors has their recipes."""

from pathlib import Path

import pytest

from rlsd_lightning import solve
from rlsd_lightning.images import load_image
from rlsd_lightning.operators import super_resolution
from rlsd_lightning.priors import PixelPrior, Prior, SanaPrior

PRIORS = Path(__file__).parent
FACE = PRIORS.parents[1] / "data" / "faces" / "heldout" / "003.png"
MOST_BYTES = 3_000_000


@pytest.mark.parametrize(("name", "kind", "least_gain"), [("flow", SanaPrior, 1.5), ("pixels", PixelPrior, 3.0)])
def test_the_default_is_above_the_pseudo_inverse(name: str, kind: type[Prior], least_gain: float):
    prior = kind(str(PRIORS / name), local_files_only=True)
    truth = load_image(FACE, *prior.image_shape[-2:])
    physics = super_resolution(prior.image_shape)
    result = solve(physics(truth), physics, prior, truth=truth, num_particles=2, num_steps=25)
    assert result.metrics["psnr_mean"] > result.metrics["psnr_pseudo_inverse"] + least_gain


@pytest.mark.parametrize("name", ["flow", "pixels"])
def test_the_weights_are_small_and_calibrated(name: str):
    assert sum(file.stat().st_size for file in (PRIORS / name).rglob("*.safetensors")) < MOST_BYTES
    assert (PRIORS / name / "calibration.json").is_file()
