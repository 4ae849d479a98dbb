"""Computed tomography and magnetic resonance imaging; each colour channel is measured separately."""

from rlsd_lightning.operators.medical.mri import CoilMRI, RealMRI, mri
from rlsd_lightning.operators.medical.scans import PerMeasurement
from rlsd_lightning.operators.medical.tomography import Projections, tomography

__all__ = ["CoilMRI", "PerMeasurement", "Projections", "RealMRI", "mri", "tomography"]
