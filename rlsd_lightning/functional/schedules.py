r"""Noise schedules and what a denoiser predicts.

A noisy latent is :math:`z_t = \alpha_t z + \sigma_t \epsilon`, where :math:`\epsilon \sim \mathcal{N}(0, I)`. Diffusion
models have :math:`\alpha_t = \sqrt{\bar\alpha_t}` and :math:`\sigma_t = \sqrt{1 - \bar\alpha_t}`, flow matching has
:math:`\alpha_t = 1 - \sigma_t`.
"""

import math

import torch
from torch import Tensor

__all__ = [
    "PREDICTION_TYPES",
    "PRIOR_WEIGHTS",
    "add_noise",
    "clean_and_noise",
    "cosine_decay",
    "ddim_timesteps",
    "fresh_noise_share",
    "guidance_factor",
    "image_variances",
    "prior_weight",
    "reverse_step",
]

FEW_STEPS = 4
"""Number of leading timesteps from which the first is near pure noise, where particles start."""
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow")
PRIOR_WEIGHTS = {
    "linear": lambda ratio: ratio,
    "sqrt": torch.sqrt,
    "log": torch.log1p,
    "square": torch.square,
    "const": torch.ones_like,
}
"""Time weights of score distillation, as functions of the noise-to-signal ratio."""
FACES = (4 * 16 * 16, 3 * 64 * 64, 0.467)
"""Values of a latent and of an image of the embedded faces, and the images' standard deviation; that of their latents is 1."""
LEAST_ALPHA = 1e-4
"""Lower bound of the signal level where it is a divisor."""
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

    Returns:
        The factors of :math:`z_t` and of :math:`z_0`, and the variance; each with shape :math:`()`.

    References:
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020), Eq. 7
        | https://arxiv.org/abs/2006.11239
    """
    ratio, kept = _signal_ratio(alpha, next_alpha), (next_sigma / sigma).square()
    gone = (1 - ratio.square() * kept).clamp_min(0)
    return ratio * kept, next_alpha * gone, next_sigma.square() * gone


def _signal_ratio(alpha: Tensor, next_alpha: Tensor) -> Tensor:
    # two steps of one level, neither of which has any signal, are the same step
    return torch.where(next_alpha > 0, alpha / next_alpha, torch.ones_like(alpha))


def fresh_noise_share(alpha: Tensor, sigma: Tensor, next_alpha: Tensor, next_sigma: Tensor, eta: float = 1.0) -> Tensor:
    r"""Share :math:`\eta_t` of a latent's noise that a step draws anew: :math:`e \leftarrow \sqrt{1 - \eta_t^2} \, \hat\epsilon + \eta_t n`.

    .. math:: \eta_t = \min\big( 1, \eta \sqrt{1 - (\alpha_t \sigma_s / (\alpha_s \sigma_t))^2} \big)

    Here :math:`\eta` is DDIM's: 0 is deterministic (DDIM), 1 ancestral (DDPM), infinity draws all noise anew.

    Returns:
        With shape :math:`()`; 0 between two timesteps of one noise level.

    References:
        | Denoising Diffusion Implicit Models (Song et al., 2021), Eq. 16
        | https://arxiv.org/abs/2010.02502
    """
    gone = (1 - (_signal_ratio(alpha, next_alpha) * next_sigma / sigma).square()).clamp_min(0)
    return torch.where(gone > 0, eta * gone.sqrt(), 0.0).clamp(max=1)


def cosine_decay(step: int, num_steps: int) -> float:
    r"""Factor :math:`(1 + \cos(\pi k / K)) / 2` of a step size in step :math:`k` of :math:`K`."""
    return 0.5 * (1 + math.cos(math.pi * step / num_steps))


def ddim_timesteps(num_train_timesteps: int, num_steps: int, offset: int = 1, spacing: str = "leading") -> list[int]:
    r"""Timesteps :math:`t_0 > t_1 > \dots`, evenly spaced over the training schedule.

    Args:
        num_train_timesteps: Length :math:`T` of the training schedule.
        num_steps: How many timesteps :math:`K` to return, from 1 to :math:`T`.
        offset: Added to every leading timestep, 1 in Stable Diffusion; the result never exceeds :math:`T - 1`.
        spacing: ``leading``: :math:`k T / K + \mathrm{offset}`, the least noise included, and below 4 steps also the most; ``trailing``:
            :math:`(k + 1) T / K - 1`, the most noise included.

    Raises:
        ValueError: If ``num_steps`` is out of range, or the spacing is unknown.

    References:
        | Denoising Diffusion Implicit Models (Song et al., 2021)
        | https://arxiv.org/abs/2010.02502
        | Common Diffusion Noise Schedules and Sample Steps are Flawed (Lin et al., 2023)
        | https://arxiv.org/abs/2305.08891
    """
    if not 1 <= num_steps <= num_train_timesteps:
        raise ValueError(f"num_steps must be from 1 to {num_train_timesteps}, the prior's schedule, got {num_steps}")
    if spacing not in ("leading", "trailing"):
        raise ValueError(f"spacing must be leading or trailing, got '{spacing}'")
    # not a stride that was rounded down, as in diffusers: 501 steps would then cover half of the schedule
    if spacing == "trailing":
        return [k * num_train_timesteps // num_steps - 1 for k in range(num_steps, 0, -1)]
    spaced = (k * num_train_timesteps // num_steps + offset for k in reversed(range(num_steps)))
    timesteps = [min(t, num_train_timesteps - 1) for t in spaced]
    return [num_train_timesteps - 1, *timesteps[1:]] if num_steps < FEW_STEPS else timesteps


def clean_and_noise(
    output: Tensor, z_t: Tensor, alpha: Tensor, sigma: Tensor, prediction_type: str
) -> tuple[Tensor, Tensor]:
    r"""Clean latents :math:`\hat z` and noise :math:`\hat\epsilon` from what a network predicts.

    Both solve :math:`z_t = \alpha_t \hat z + \sigma_t \hat\epsilon` together with

    - ``epsilon``: :math:`\hat\epsilon` is the output
    - ``v_prediction``: the output is :math:`\alpha_t \hat\epsilon - \sigma_t \hat z`, with :math:`\alpha_t^2 + \sigma_t^2 = 1`
    - ``sample``: :math:`\hat z` is the output
    - ``flow``: the output is :math:`\hat\epsilon - \hat z`

    Args:
        output: The network's output, with the shape of ``z_t``.
        z_t: The noisy latents.
        alpha: Signal level :math:`\alpha_t`; may be 0 unless the output is noise.
        sigma: Noise level :math:`\sigma_t > 0`.
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
        return (z_t - sigma * output) / alpha.clamp_min(LEAST_ALPHA), output
    if prediction_type == "v_prediction":
        return alpha * z_t - sigma * output, sigma * z_t + alpha * output
    if prediction_type == "sample":
        return output, (z_t - alpha * output) / sigma
    if prediction_type == "flow":
        return (z_t - sigma * output) / (alpha + sigma), (z_t + alpha * output) / (alpha + sigma)
    raise ValueError(f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got '{prediction_type}'")


def prior_weight(alpha: Tensor, sigma: Tensor, kind: str = "linear") -> Tensor:
    r"""The distillation weight :math:`w(t)` as a function of the noise-to-signal ratio :math:`r = \sigma_t / \alpha_t`.

    Args:
        alpha: Signal level :math:`\alpha_t`, at least :data:`LEAST_SIGNAL` here.
        sigma: Noise level :math:`\sigma_t`.
        kind: One of :data:`PRIOR_WEIGHTS`: ``linear`` is :math:`r`, ``sqrt`` :math:`\sqrt r`, ``log`` :math:`\log(1 + r)`,
            ``square`` :math:`r^2`, ``const`` 1.

    Raises:
        ValueError: If the kind is unknown.

    References:
        | A Variational Perspective on Solving Inverse Problems with Diffusion Models (Mardani et al., 2024)
        | https://arxiv.org/abs/2305.04391
    """
    if kind not in PRIOR_WEIGHTS:
        raise ValueError(f"kind must be one of {', '.join(PRIOR_WEIGHTS)}, got '{kind}'")
    return PRIOR_WEIGHTS[kind](sigma / alpha.clamp_min(LEAST_SIGNAL))


def image_variances(alphas: Tensor, sigmas: Tensor, image_std: float, decoder_std: float) -> list[float]:
    r"""Variance :math:`v_t = \mathrm{image\_std}^2 \sigma_t^2 / (\alpha_t^2 + \sigma_t^2) + \mathrm{decoder\_std}^2` of :math:`D(\hat z)` at each timestep."""
    shares = sigmas.square() / (alphas.square() + sigmas.square())
    return [image_std**2 * share + decoder_std**2 for share in shares.tolist()]


def guidance_factor(
    latent_shape: tuple[int, ...],
    image_shape: tuple[int, ...],
    latent_std: float,
    image_std: float,
    layout_only: bool = False,
) -> float:
    r"""Factor of ``guidance_scale`` with which the data's gradient moves latents by the same share of their norm, whatever their size and scale.

    With a decoder that takes latents of standard deviation :math:`v` to images of standard deviation :math:`s`, the gradient of a distance has about
    the norm :math:`(s / v) \sqrt{d_x / d_z}`, and latents have the norm :math:`v \sqrt{d_z}`. The factor is
    :math:`d_z v^2 / (\sqrt{d_x} \, s)`, in units of the embedded faces'. Where latents are images, :math:`v` is :math:`s`.

    Args:
        latent_shape: Shape of a latent, with :math:`d_z` values.
        image_shape: Shape of an image, with :math:`d_x` values.
        latent_std: Standard deviation :math:`v` of the latents.
        image_std: Standard deviation :math:`s` of the images.
        layout_only: Leave out :math:`d_z`: the same move of an image's brightness and tint, whatever its size. A denoiser's
            Jacobian is :math:`\alpha_t / \sigma_t^2` times the posterior's covariance, whose variances of such patterns grow with
            :math:`d_z`; they overshoot if details are to be moved as well.
    """
    latent_size, image_size, faces_std = FACES
    latent_std = image_std if tuple(latent_shape) == tuple(image_shape) else latent_std
    size = 1.0 if layout_only else math.prod(latent_shape) / latent_size
    return size / math.sqrt(math.prod(image_shape) / image_size) * latent_std**2 / (image_std / faces_std)
