"""Checks of finished particles that need no truth."""

from rlsd_lightning.evaluation.checks.directions import Directions, principal_directions
from rlsd_lightning.evaluation.checks.verdicts import Check, truth_free_checks

__all__ = ["Check", "Directions", "principal_directions", "truth_free_checks"]
