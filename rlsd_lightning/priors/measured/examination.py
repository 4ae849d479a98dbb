r"""Examination of a prior's parts: what a healthy checkpoint shows, and the likely fault of one that does not.

Pictures are reconstructed by the autoencoder, latents compared with the network's own samples, and noise of five levels is
predicted. A guess that only knows that latents are white has the mean square error :math:`\alpha^2 / (\alpha^2 + \sigma^2)`
for unit noise; a network of the declared type stays far below it.
"""

import math
from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor

from rlsd_lightning.functional.schedules import add_noise
from rlsd_lightning.priors.base import Prior

__all__ = ["Finding", "examine_autoencoder", "examine_latents", "examine_prediction", "least_error"]

LEAST_PSNR = 24.0
"""Decibels that autoencoders of Stable Diffusion reach on photographs."""
PERMUTED = 0.8
"""Share of the error that remains when channels are put into their right order."""
SCALE = (0.7, 1.45)
"""Root mean square of pictures' latents over that of the network's own samples."""
FOREIGN = 3.0
"""Error of the clean latents of pictures, over that of own samples, from which on the network does not know them."""
LEVELS = (0.98, 0.8, 0.5, 0.2, 0.02)
"""Signal energies, alpha^2 / (alpha^2 + sigma^2), at which noise is predicted."""


LARGEST_SHARE = 1.5
"""Error of the predicted noise over a blind guess's; at high noise a small network knows little more than the guess."""


class Finding(NamedTuple):
    """Result of one check.

    Attributes:
        name: What was checked.
        ok: Whether it is as in a healthy prior.
        text: The figures, and the likely fault.
    """

    name: str
    ok: bool
    text: str

    def __str__(self) -> str:
        return f"{self.name:12} {'ok  ' if self.ok else 'FAIL'} {self.text}"


@torch.no_grad()
def examine_autoencoder(prior: Prior, pictures: Sequence[Tensor], shown: str) -> Finding:
    """Checks reconstructions of pictures, each with shape :math:`(1, C, H, W)`; ``shown`` says what they are."""
    errors = _errors(prior, pictures)
    error, (order, best) = errors["rgb"], min(errors.items(), key=lambda item: item[1])
    psnr = 20 * math.log10(2 / max(error, 1e-6))
    text = f"{psnr:.1f} dB on {shown} (healthy: {LEAST_PSNR:g} and more)"
    if best < PERMUTED * error:
        return Finding("autoencoder", False, f"{text}; its channels are swapped: {order} works")
    if psnr < LEAST_PSNR:
        text += "; it does not know such pictures, or its weights are not those of its config.json"
    return Finding("autoencoder", psnr >= LEAST_PSNR, text)


@torch.no_grad()
def least_error(prior: Prior, pictures: Sequence[Tensor]) -> float:
    """Root mean square of the reconstruction error in the channels' best order, which tells what a prior was made for."""
    return min(_errors(prior, pictures).values())


def _errors(prior: Prior, pictures: Sequence[Tensor]) -> dict[str, float]:
    """Reconstruction errors by the order of channels that goes in, comes out, or both."""
    pictures, found = [picture.to(prior.alphas) for picture in pictures], {}
    for order in map(list, permutations(range(prior.image_shape[0]))):
        name = "".join("rgb"[place] for place in order)
        turned = [picture[:, order] for picture in pictures]
        decoded = [prior.decode(prior.encode(picture)) for picture in turned]
        if order == sorted(order):
            found["rgb"] = _error(decoded, pictures)
            plain = decoded
            continue
        found[f"{name} in"] = _error(decoded, pictures)
        found[f"{name} in and out"] = _error(decoded, turned)
        found[f"{name} out"] = _error([each[:, order] for each in plain], pictures)
    return found


@torch.no_grad()
def examine_latents(prior: Prior, pictures: Sequence[Tensor], own: Tensor) -> Finding:
    """Checks that the network was trained on such latents as the pictures have, by those of ``own`` samples."""
    encoded = torch.cat([prior.encode(picture.to(prior.alphas)) for picture in pictures])
    scale = (encoded.square().mean() / own.square().mean()).sqrt().item()
    text = f"root mean square {encoded.square().mean().sqrt().item():.3g}, {scale:.3g} times the network's own samples'"
    if not SCALE[0] <= scale <= SCALE[1]:
        return Finding(
            "latents", False, f"{text}; divide scaling_factor in the autoencoder's config.json by {scale:.2g}"
        )
    errors = [_clean_error(prior, z, LEVELS[2]) for z in (encoded, own)]
    text += f"; denoised with {errors[0] / errors[1]:.2g} times the error of these"
    foreign = errors[0] > FOREIGN * errors[1]
    return Finding(
        "latents", not foreign, f"{text}; the network was trained on another autoencoder" if foreign else text
    )


@torch.no_grad()
def examine_prediction(prior: Prior, own: Tensor) -> Finding:
    """Checks the predicted noise of own samples at five levels, and says what the trial at the start has found."""
    shares = []
    for level in LEVELS:
        t, noise = _timestep(prior, level), _noise(own)
        _, found = prior.denoise(add_noise(own, noise, prior.alpha(t), prior.sigma(t)), t)
        energy = prior.alpha(t).square() / (prior.alpha(t).square() + prior.sigma(t).square())
        shares.append(((found - noise).square().mean() / energy).item())
    levels = ", ".join(f"{share:.2g} at {level:g}" for share, level in zip(shares, LEVELS, strict=True))
    text = f"{prior.prediction_type}: error over a blind guess's {levels} of signal (healthy: below {LARGEST_SHARE:g})"
    faults = [sentence for sentence in prior.warnings if "prediction_type" in sentence]
    ok = not faults and max(shares) < LARGEST_SHARE
    return Finding("prediction", ok, "; ".join([text, *faults]))


def _clean_error(prior: Prior, z: Tensor, level: float) -> float:
    t, noise = _timestep(prior, level), _noise(z)
    found, _ = prior.denoise(add_noise(z, noise, prior.alpha(t), prior.sigma(t)), t)
    return (found - z).square().mean().sqrt().item()


def _noise(z: Tensor) -> Tensor:
    # not the noise that own samples were made of, which they remember
    return torch.randn(z.shape, generator=torch.Generator().manual_seed(1234)).to(z)


def _timestep(prior: Prior, level: float) -> int:
    """The timestep whose signal energy is nearest to a level."""
    energies = prior.alphas.square() / (prior.alphas.square() + prior.sigmas.square())
    return int((energies - level).abs().argmin())


def _error(images: Sequence[Tensor], pictures: Sequence[Tensor]) -> float:
    pairs = zip(images, pictures, strict=True)
    return math.sqrt(sum((image - picture).square().mean().item() for image, picture in pairs) / len(pictures))
