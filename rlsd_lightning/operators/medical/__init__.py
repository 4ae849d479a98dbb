"""Computed tomography and magnetic resonance imaging; each colour channel is measured separately."""

from rlsd_lightning.operators.medical.mri import CoilMRI, RealMRI, mri
from rlsd_lightning.operators.medical.scans import ReadsScans
from rlsd_lightning.operators.medical.tomography import Projections, tomography

__all__ = ["CoilMRI", "Projections", "ReadsScans", "RealMRI", "mri", "tomography"]
