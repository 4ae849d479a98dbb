r"""Noise schedules and what a denoiser predicts.

A noisy latent is :math:`z_t = \alpha_t z + \sigma_t \epsilon`, where :math:`\epsilon \sim \mathcal{N}(0, I)`. Diffusion
models have :math:`\alpha_t = \sqrt{\bar\alpha_t}` and :math:`\sigma_t = \sqrt{1 - \bar\alpha_t}`, flow matching has
:math:`\alpha_t = 1 - \sigma_t`.
"""

import torch
from torch import Tensor

__all__ = [
    "PREDICTION_TYPES",
    "PRIOR_WEIGHTS",
    "add_noise",
    "ddim_timesteps",
    "noise_from_output",
    "prior_weight",
    "reverse_step",
]

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow")
PRIOR_WEIGHTS = ("linear", "sqrt", "log", "square", "const")
LEAST_SIGNAL = 0.03
"""Signal levels below count as this one in the weight, which is infinite at the end of a schedule of pure noise."""


def add_noise(z: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    r"""Returns :math:`z_t = \alpha_t z + \sigma_t \epsilon`, with the shape of ``z``."""
    return alpha * z + sigma * eps


def reverse_step(alpha: Tensor, sigma: Tensor, next_alpha: Tensor, next_sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""The distribution of a less noisy latent :math:`z_s` given a noisier one and the clean one.

    With :math:`a = \alpha_t / \alpha_s` it is
    :math:`\mathcal{N}(a \sigma_s^2 / \sigma_t^2 \; z_t + \alpha_s (1 - a^2 \sigma_s^2 / \sigma_t^2) \, z_0, \;
    \sigma_s^2 (1 - a^2 \sigma_s^2 / \sigma_t^2) I)`.

    Args:
        alpha: Signal level :math:`\alpha_t`.
        sigma: Noise level :math:`\sigma_t`.
        next_alpha: Signal level :math:`\alpha_s`.
        next_sigma: Noise level :math:`\sigma_s`.

    Returns:
        The factors of :math:`z_t` and of :math:`z_0`, and the variance; each with shape :math:`()`.

    References:
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020), Eq. 7
        | https://arxiv.org/abs/2006.11239
    """
    # two steps of one level, none of which has any signal, are the same step
    ratio = torch.where(next_alpha > 0, alpha / next_alpha, torch.ones_like(alpha))
    kept = (next_sigma / sigma).square()
    gone = (1 - ratio.square() * kept).clamp_min(0)
    return ratio * kept, next_alpha * gone, next_sigma.square() * gone


def ddim_timesteps(num_train_timesteps: int, num_steps: int, offset: int = 1) -> list[int]:
    r"""Timesteps :math:`t_0 > t_1 > \dots`, evenly spaced over the training schedule ("leading" spacing).

    Args:
        num_train_timesteps: Length :math:`T` of the training schedule.
        num_steps: How many timesteps to return, from 1 to :math:`T`.
        offset: Added to every timestep, 1 in Stable Diffusion; the result never exceeds :math:`T - 1`.

    Raises:
        ValueError: If ``num_steps`` is out of range.

    References:
        | Denoising Diffusion Implicit Models (Song et al., 2021)
        | https://arxiv.org/abs/2010.02502
    """
    if not 1 <= num_steps <= num_train_timesteps:
        raise ValueError(f"num_steps must be from 1 to {num_train_timesteps}, the prior's schedule, got {num_steps}")
    # not a stride that was rounded down, as in diffusers: 501 steps would then cover half of the schedule
    spaced = (k * num_train_timesteps // num_steps + offset for k in reversed(range(num_steps)))
    return [min(t, num_train_timesteps - 1) for t in spaced]


def noise_from_output(output: Tensor, z_t: Tensor, alpha: Tensor, sigma: Tensor, prediction_type: str) -> Tensor:
    r"""Turns what a network predicts into the noise :math:`\hat\epsilon`.

    - ``epsilon``: the noise itself
    - ``v_prediction``: :math:`v = \alpha_t \epsilon - \sigma_t z`, so :math:`\hat\epsilon = \sigma_t z_t + \alpha_t v`
    - ``sample``: the clean latent, so :math:`\hat\epsilon = (z_t - \alpha_t \hat z) / \sigma_t`
    - ``flow``: the velocity :math:`u = \epsilon - z`, so
      :math:`\hat\epsilon = (z_t + \alpha_t u) / (\alpha_t + \sigma_t)`

    Args:
        output: What the network predicts, with shape :math:`(N, \dots)`.
        z_t: The noisy latents, with the same shape.
        alpha: Signal level :math:`\alpha_t`, with shape :math:`()`.
        sigma: Noise level :math:`\sigma_t > 0`, with shape :math:`()`.
        prediction_type: One of :data:`PREDICTION_TYPES`.

    Raises:
        ValueError: If the prediction type is unknown.

    References:
        | Progressive Distillation for Fast Sampling of Diffusion Models (Salimans & Ho, 2022)
        | https://arxiv.org/abs/2202.00512
        | Flow Matching for Generative Modeling (Lipman et al., 2023)
        | https://arxiv.org/abs/2210.02747
    """
    if prediction_type == "epsilon":
        return output
    if prediction_type == "v_prediction":
        return sigma * z_t + alpha * output
    if prediction_type == "sample":
        return (z_t - alpha * output) / sigma
    if prediction_type == "flow":
        return (z_t + alpha * output) / (alpha + sigma)
    raise ValueError(f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got '{prediction_type}'")


def prior_weight(alpha: Tensor, sigma: Tensor, kind: str = "linear") -> Tensor:
    r"""The distillation weight :math:`w(t)` as a function of the noise-to-signal ratio :math:`r = \sigma_t / \alpha_t`.

    Args:
        alpha: Signal level :math:`\alpha_t`; below :data:`LEAST_SIGNAL` it counts as that.
        sigma: Noise level :math:`\sigma_t`.
        kind: ``linear`` (:math:`r`), ``sqrt``, ``log`` (:math:`\log(1 + r)`), ``square`` or ``const`` (1).

    Raises:
        ValueError: If the kind is unknown.

    References:
        | A Variational Perspective on Solving Inverse Problems with Diffusion Models (Mardani et al., 2024)
        | https://arxiv.org/abs/2305.04391
    """
    ratio = sigma / alpha.clamp_min(LEAST_SIGNAL)
    if kind == "linear":
        return ratio
    if kind == "sqrt":
        return ratio.sqrt()
    if kind == "log":
        return torch.log1p(ratio)
    if kind == "square":
        return ratio.square()
    if kind == "const":
        return torch.ones_like(ratio)
    raise ValueError(f"weighting must be one of {', '.join(PRIOR_WEIGHTS)}, got '{kind}'")
