r"""Causes of poor results that lie in the data or the checkpoint, looked for before the method's settings.

**The noise.** The residual :math:`y - A(D(z))` holds the noise and the decoder's error :math:`e`, of known size. So

.. math:: s^2 \approx \mathrm{mean}((y - A(D(z)))^2) - \mathrm{mean}((A(D(z) + e) - A(D(z)))^2)

is the noise's variance if the residual has no other part. The test of this is whether the residual is white: what a prior
can't represent has edges, so neighbours in it are correlated.
"""

import math
from contextlib import suppress

import torch
from deepinv.physics import CompressedSensing, LinearPhysics, Physics, SinglePixelCamera, StructuredRandom
from torch import Tensor

from rlsd_lightning.evaluation.scores import Solved
from rlsd_lightning.functional.losses import at_least_float32
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.operators.likelihood import measured, noise_std, observed_values
from rlsd_lightning.operators.noise import PoissonNoise
from rlsd_lightning.priors.measured.prediction import not_finite

__all__ = ["cause_warnings", "noise_estimate", "non_finite_cause", "quantization_step"]

MIXING = (CompressedSensing, SinglePixelCamera, StructuredRandom)
"""Operators whose measured values have no neighbours; their residual is looked at in the image."""
TOO_SMALL = 3.0
"""How many times larger the noise must look than declared."""
TOO_LARGE = 0.6
"""Share of the declared noise that the whole residual stays below."""
WHITE = 0.3
"""Largest correlation of neighbours in a white residual; a third of it where the operator mixes all pixels."""
FEWEST_VALUES = 100
"""Fewer measured values say nothing certain."""
MOST_LEVELS = 256
"""Most levels of quantised data."""
EACH_LEVEL = 8
"""Fewest values for each level."""
LARGEST_ROUNDING = 3.0
"""Rounding error that counts, in standard deviations of the declared noise."""


@torch.no_grad()
def cause_warnings(module: ParticleModule, solved: Solved) -> list[str]:
    """Warnings of quantised data, or of noise that is not as declared; empty if the noise level fits."""
    physics, y = solved.measurement.physics, solved.measurement.y
    if isinstance(physics.noise_model, PoissonNoise) or y.is_complex() or y.numel() < FEWEST_VALUES:
        return []
    declared = noise_std(physics.noise_model, y)
    step = quantization_step(y[observed_values(physics, y)]) if isinstance(physics, LinearPhysics) else None
    rounding = (step or 0.0) / math.sqrt(12)
    if rounding > LARGEST_ROUNDING * declared:
        rounded = f"the measurement is quantised in steps of {step:.2g}, with a rounding error of {rounding:.2g}"
        return [f"{rounded}, not {declared:.2g}: set physics.sigma={rounding:.2g}"]
    level, residual, correlation = noise_estimate(physics, y, solved.decoded, module.decoder_std)
    if declared and residual < TOO_LARGE * declared:
        return [f"the noise looks like {residual:.2g} at most, not {declared:.2g}: set physics.sigma={residual:.2g}"]
    decoder_part = math.sqrt(max(residual**2 - level**2, 0.0))
    most = y[observed_values(physics, y)].std().item()  # larger residuals are those of poor images
    is_white = abs(correlation) < (WHITE / 3 if isinstance(physics, MIXING) else WHITE)
    if is_white and max(TOO_SMALL * declared, decoder_part) < level < most:
        return [f"the noise looks like {level:.2g}, not {declared:.2g}: set physics.sigma={level:.2g}"]
    return []


def noise_estimate(physics: Physics, y: Tensor, decoded: Tensor, decoder_std: float) -> tuple[float, float, float]:
    """Noise's standard deviation, RMS of the residual, and the correlation of the residual's neighbours.

    Args:
        physics: The operator.
        y: The measurement, with shape (1, ...).
        decoded: Decoded latents in [-1, 1], with shape (N, C, H, W).
        decoder_std: Standard deviation of the decoder's error.
    """
    decoded, seen = at_least_float32(decoded), observed_values(physics, y)
    at_decoded = measured(physics, decoded)
    signs = torch.randn(decoded.shape, generator=torch.Generator().manual_seed(0)).sign().to(decoded)
    shifted = measured(physics, decoded + decoder_std * signs) - at_decoded
    residuals = (y - at_decoded) * seen
    count = seen.sum()
    energy, expected = (value.square().mean(dim=0).sum() / count for value in (residuals, shifted * seen))
    level = (energy - expected).clamp_min(0).sqrt().item()
    mean = residuals.mean(dim=0, keepdim=True)
    if isinstance(physics, MIXING) and isinstance(physics, LinearPhysics):
        mean = physics.A_adjoint(mean)
        seen = torch.ones_like(mean, dtype=torch.bool)
    return level, energy.sqrt().item(), _neighbour_correlation(mean, seen)


def _neighbour_correlation(residual: Tensor, seen: Tensor) -> float:
    """Largest correlation of a residual's neighbours along its last two axes; 0 without neighbours."""
    found = [0.0]
    for dim in range(max(1, residual.ndim - 2), residual.ndim):
        count = residual.shape[dim] - 1
        both = seen.narrow(dim, 0, count) & seen.narrow(dim, 1, count)
        if both.sum() >= FEWEST_VALUES:
            first, second = residual.narrow(dim, 0, count)[both], residual.narrow(dim, 1, count)[both]
            scale = (first.square().sum() * second.square().sum()).sqrt()
            found.append(((first * second).sum() / scale).item() if scale > 0 else 0.0)
    return max(found, key=abs)


def quantization_step(values: Tensor) -> float | None:
    """Distance of the levels of rounded values; None if the values are not rounded."""
    levels = torch.unique((values.cpu().flatten().double() * 1e6).round()) / 1e6
    if not 2 <= len(levels) <= MOST_LEVELS or values.numel() < EACH_LEVEL * len(levels):
        return None
    gaps = levels.diff()
    step = gaps.min()
    off = (gaps / step - (gaps / step).round()).abs().max()
    return step.item() if off < 0.05 else None


@torch.no_grad()
def non_finite_cause(module: ParticleModule) -> str:
    """Likely cause of infinite or NaN particles, and the remedy; the checkpoint and the precision come before settings."""
    prior = module.prior
    z = torch.randn(1, *prior.latent_shape, generator=torch.Generator().manual_seed(0)).to(module.z)
    for part, evaluate in (
        ("network", lambda: prior.network(z, prior.num_train_timesteps // 2)),
        ("decoder", lambda: prior.decode(z)),
    ):
        with suppress(RuntimeError):  # a full memory must not hide what has happened
            if not evaluate().isfinite().all():
                return not_finite(prior, part)
    first = ""
    if any(parameter.dtype == torch.float16 for parameter in prior.parameters()):
        first = (
            "the weights are in float16, which overflows above 65504: set weights=bfloat16 or weights=float32; else "
        )
    if module._trainer is not None and module.trainer.precision == "16-mixed":
        first += "precision 16-mixed overflows above 65504: set precision bf16-mixed or 32-true; else "
    return f"{first}lower guidance_scale, lr_z or gamma, or use precision 32-true"
