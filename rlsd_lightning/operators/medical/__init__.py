"""Computed tomography and magnetic resonance imaging."""

from rlsd_lightning.operators.medical.mri import CoilMRI, RealMRI, mri
from rlsd_lightning.operators.medical.scans import Scan, as_seen
from rlsd_lightning.operators.medical.tomography import Projections, tomography

__all__ = ["CoilMRI", "Projections", "RealMRI", "Scan", "as_seen", "mri", "tomography"]
