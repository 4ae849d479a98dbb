r"""Trial of a prior when it is loaded: its networks run, their outputs are finite, and are what the checkpoint declares.

The declared prediction type is tried on latents of the network's own making. From pure noise, three steps down to
:math:`\alpha_t^2 = 1/2` read the outputs as one type,

.. math:: \hat z_{k + 1}, \hat\epsilon = \mathrm{denoise}(\alpha_t \hat z_k + \sigma_t e), \qquad \hat z_0 = 0,

with fresh noise :math:`e` in each. Read rightly, the outputs explain the noise of the last step. Encoded pictures would not
do: a network that knows little else than faces takes a foreign picture for noise.
"""

import torch
from torch import Tensor

from rlsd_lightning.errors import InputError, first_line, is_out_of_memory
from rlsd_lightning.functional.schedules import add_noise, clean_and_noise
from rlsd_lightning.priors.base import Prior

__all__ = ["check_prediction", "try_networks"]

TYPES = ("epsilon", "v_prediction", "sample")
LEVELS = (0.02, 0.2, 0.5)
"""Signal energies alpha^2 of the three steps."""
TRIALS = 2
"""Latents that are denoised side by side."""
EXPLAINED = 0.15
"""Mean square error below which noise of variance 1 is explained."""
RATIO = 3.0
"""How much better another type must explain the noise."""
LEAST_SPREAD = 0.3
"""Least deviation of two latents: outputs that are always the same explain all noise if they are read as latents."""


@torch.no_grad()
def try_networks(prior: Prior, shape: tuple[int, ...]) -> None:
    """Runs the networks once, and warns of a prediction type that is declared wrongly.

    Args:
        prior: The prior, on the CPU.
        shape: Shape of the latents to try; smaller ones than the prior's save time.

    Raises:
        InputError: If a network does not take its inputs, or its output is not finite.
    """
    z = _noise(shape, 0)[:1]
    try:
        outputs = {"network": prior.network(z, prior.num_train_timesteps // 2), "decoder": prior.decode(z)}
    except Exception as error:  # networks raise errors of many kinds
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"pretrained: the networks of this checkpoint do not fit together ({first_line(error)}); fetch the whole "
            "checkpoint again, or choose another"
        ) from error
    for name, output in outputs.items():
        if not output.isfinite().all():
            raise InputError(not_finite(prior, name))
    if prior.prediction_type in TYPES:
        other = check_prediction(prior, shape)
        if other is not None:
            prior.warn(
                f"the network's outputs look like {other}, but the checkpoint declares {prior.prediction_type}; "
                f"if the pictures are poor, set prediction_type to {other} in its scheduler_config.json"
            )


def not_finite(prior: Prior, part: str) -> str:
    """Message for a network of the prior whose output is not finite, with the cause that its type of weights implies."""
    types = {parameter.dtype for parameter in prior.parameters()}
    if torch.float16 in types:
        return f"the prior's {part} overflows in float16 (above 65504); set weights=bfloat16 or weights=float32"
    return (
        f"the output of the prior's {part} is not finite; its weights are damaged, fetch or save the checkpoint again"
    )


@torch.no_grad()
def check_prediction(prior: Prior, shape: tuple[int, ...]) -> str | None:
    """The prediction type that explains noise at least three times better than the declared one; None if none does."""
    own, _ = _unexplained(prior, prior.prediction_type, shape)
    if own < EXPLAINED:
        return None
    found = {kind: _unexplained(prior, kind, shape) for kind in TYPES if kind != prior.prediction_type}
    fitting = {
        kind: error
        for kind, (error, spread) in found.items()
        if error < EXPLAINED and RATIO * error <= own and spread > LEAST_SPREAD
    }
    return min(fitting, key=fitting.get, default=None)


def _unexplained(prior: Prior, kind: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean square error of the last step's noise if outputs are of a kind, and the deviation of the latents."""
    z = torch.zeros(TRIALS, *shape).to(prior.alphas)
    energies = prior.alphas.square()
    for step, energy in enumerate(LEVELS):
        t = int((energies - energy).abs().argmin())
        noise = _noise(shape, step).to(z)
        z_t = add_noise(z, noise, prior.alpha(t), prior.sigma(t))
        z, found = clean_and_noise(prior.network(z_t, t), z_t, prior.alpha(t), prior.sigma(t), kind)
    return (found - noise).square().mean().item(), z.std(dim=0).square().mean().sqrt().item()


def _noise(shape: tuple[int, ...], step: int) -> Tensor:
    return torch.randn(TRIALS, *shape, generator=torch.Generator().manual_seed(step))
