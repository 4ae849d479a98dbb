"""Checks of one measurement's particles that need no truth, each with its range and its verdict."""

from typing import NamedTuple

from torch import Tensor

from rlsd_lightning.evaluation.checks.draws import Draws
from rlsd_lightning.evaluation.checks.predictive import predictive_check
from rlsd_lightning.evaluation.checks.stein import stein_check
from rlsd_lightning.evaluation.checks.whiteness import Whiteness, twice_median
from rlsd_lightning.evaluation.health import (
    MIN_NULL_SPACE_ENERGY,
    MIN_NULL_SPACE_SPREAD,
    HealthMetrics,
    has_collapsed,
)
from rlsd_lightning.evaluation.scores import Solved
from rlsd_lightning.functional.losses import at_least_float32
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.operators import NullOperator
from rlsd_lightning.operators.likelihood import has_square_misfit, measured, noise_std, observed_values

__all__ = ["Check", "truth_free_checks"]

LEAST_P = 1e-3
"""Below it, a residual is unlike the noise beyond chance."""
SIZE = (0.75, 1.33)
"""Residual of a draw over the noise; the decoder's error is known to about that factor."""
MOST_CORRELATION = 0.1
"""Of neighbours in a residual."""
MOST_BAND = 1.5
"""Ratio of a band's power, or of its inverse, to that of white noise."""
MOST_DISTANCE = 0.05
"""Between a residual's distribution function and the normal one."""
MOST_LATENT_RESIDUAL = 3.0
"""Residual of the decoded latents over what noise and autoencoder explain; known pictures differ by a factor of two."""
MOST_STEIN = 10.0
"""Stein discrepancy of a right run."""
SPREAD = (0.2, 8.0)
"""Spread of a right run in the Stein check."""
FIRST_DRAW = 16
"""Number of the first draw; other checks have those before."""


class Check(NamedTuple):
    """One check.

    Attributes:
        name: Its key.
        statistic: What it tests, in a few words.
        value: The number that was found.
        low: Lowest number of a right run; None: no limit.
        high: Highest number of a right run; None: no limit.
        passed: Verdict. A residual's check fails only if its p-value is below 0.001 too, the spread's only if the
            particles' diversity is that of a collapse too.
        p_value: Probability of such a number in a right run, if known.
        reference: The number of independent prior noise, if known.
    """

    name: str
    statistic: str
    value: float
    low: float | None
    high: float | None
    passed: bool
    p_value: float | None = None
    reference: float | None = None


def truth_free_checks(
    module: ParticleModule, solved: Solved, health: HealthMetrics | None = None, prior_diversity: float | None = None
) -> list[Check]:
    """All checks that apply to one measurement's particles.

    The Stein check evaluates the networks twice for each particle, forward and backward: two steps of the default.

    Args:
        module: Method.
        solved: The measurement and its particles.
        health: Their health metrics, for the check of a collapse.
        prior_diversity: Diversity of the prior's samples, if known.
    """
    found = predictive_check(module, solved)
    checks = [] if found is None else _of_residuals(found)
    latent = _latent_residual(module, solved)
    if latent is not None:
        statistic = "residual of the decoded latents, over what noise and autoencoder explain"
        checks.append(_limited("latent_residual", statistic, latent, MOST_LATENT_RESIDUAL))
    stein = stein_check(module, solved)
    if stein is not None:
        statistic = "Stein discrepancy of the latents from the posterior's score"
        check = _limited("stein_discrepancy", statistic, stein.discrepancy, MOST_STEIN)
        checks.append(check._replace(reference=stein.reference))
        statistic = "spread of the latents by that score; more than 1: too wide"
        inside = SPREAD[0] <= stein.spread <= SPREAD[1]
        checks.append(Check("stein_spread", statistic, stein.spread, *SPREAD, inside))
    return checks + ([] if health is None else _of_collapse(health, prior_diversity))


def _of_collapse(health: HealthMetrics, prior_diversity: float | None) -> list[Check]:
    """The particles' spread in the null space; no check where there is none to speak of."""
    spread = health.null_space_spread
    if spread is None or health.null_space_energy <= MIN_NULL_SPACE_ENERGY:
        return []
    statistic = "spread of the particles in the operator's null space, over the mean image's RMS there"
    passed = not has_collapsed(health, prior_diversity)
    return [Check("null_space_spread", statistic, spread, MIN_NULL_SPACE_SPREAD, None, passed)]


def _limited(name: str, statistic: str, value: float, high: float) -> Check:
    return Check(name, statistic, value, None, high, value <= high)


def _of_residuals(found: Whiteness) -> list[Check]:
    """Checks of residuals; a number is the median over particles."""

    def check(name: str, statistic: str, values: Tensor, p_values: Tensor, low: float | None, high: float) -> Check:
        value, p_value = values.median().item(), twice_median(p_values)
        inside = (low is None or value >= low) and value <= high
        return Check(f"residual_{name}", statistic, value, low, high, inside or p_value >= LEAST_P, p_value)

    parts = {
        "size": ("residual of posterior draws, in standard deviations of the noise", found.size, found.size_p, *SIZE),
        "correlation": (
            "largest correlation of the residual's neighbours",
            found.correlation.abs(),
            found.white_p,
            None,
            MOST_CORRELATION,
        ),
        "spectrum": (
            "largest ratio of the residual's spectrum to that of white noise",
            found.spectrum,
            found.white_p,
            None,
            MOST_BAND,
        ),
        "distribution": (
            "distance of the residual's distribution from the noise's",
            found.distance,
            found.normal_p,
            None,
            MOST_DISTANCE,
        ),
    }
    return [check(name, *part) for name, part in parts.items()]


def _latent_residual(module: ParticleModule, solved: Solved) -> float | None:
    """RMS of y - A(D(z)) over that of the noise and of errors of the decoder's size; None if neither is known."""
    physics, y, decoded = solved.measurement.physics, solved.measurement.y, at_least_float32(solved.decoded)
    if isinstance(physics, NullOperator) or not module.decoder_std or not has_square_misfit(physics.noise_model):
        return None
    seen, at_decoded = observed_values(physics, y), measured(physics, decoded)
    errors = Draws(module, solved.measurement, len(decoded), first=FIRST_DRAW)(decoded)
    moved = measured(physics, decoded + module.decoder_std * errors) - at_decoded
    explained = (moved * seen).abs().square().sum() / len(moved) + noise_std(physics.noise_model, y) ** 2 * seen.sum()
    if not explained > 0:
        return None
    return ((((y - at_decoded) * seen).abs().square().sum() / len(decoded)) / explained).sqrt().item()
