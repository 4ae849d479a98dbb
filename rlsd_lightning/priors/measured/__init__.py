"""What is measured of a prior: its scales, and whether its networks are what they are said to be."""

from rlsd_lightning.priors.measured.calibration import (
    Calibration,
    draw,
    measure,
    reconstruction_error,
    save_calibration,
)

__all__ = ["Calibration", "draw", "measure", "reconstruction_error", "save_calibration"]
