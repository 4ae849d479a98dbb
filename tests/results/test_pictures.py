"""Pictures of a finished measurement."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from deepinv.physics import Physics

from rlsd_lightning import Measurement
from rlsd_lightning.evaluation.scores import Solved
from rlsd_lightning.operators import (
    compressed_sensing,
    denoising,
    mri,
    phase_retrieval,
    single_pixel,
    super_resolution,
    tomography,
)
from rlsd_lightning.results.result import image_result

SHAPE = (3, 32, 32)


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (denoising, "measurement"),
        (super_resolution, "measurement"),
        (mri, "pseudo_inverse"),
        (tomography, "pseudo_inverse"),
        (single_pixel, "pseudo_inverse"),
        (compressed_sensing, "pseudo_inverse"),
        (phase_retrieval, None),
    ],
)
def test_only_pictures_are_shown_as_the_measurement(
    make: Callable[..., Physics], shown: str | None, tmp_path: Path
) -> None:
    physics = make(SHAPE)
    images = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    measurement = Measurement("a", physics.A(images[:1]), physics)
    image_result(Solved(measurement, images, images, torch.zeros(2, 4, 4, 4))).save(tmp_path)
    written = {path.stem for path in tmp_path.glob("*.png")}
    assert written & {"measurement", "pseudo_inverse"} == ({shown} if shown else set())
