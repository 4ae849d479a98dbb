"""Computed tomography and magnetic resonance imaging."""

from rlsd_lightning.operators.medical.mri import CoilMRI, RealMRI, mri
from rlsd_lightning.operators.medical.scans import PerMeasurement, SeesGrey, as_seen
from rlsd_lightning.operators.medical.tomography import Projections, tomography

__all__ = ["CoilMRI", "PerMeasurement", "Projections", "RealMRI", "SeesGrey", "as_seen", "mri", "tomography"]
