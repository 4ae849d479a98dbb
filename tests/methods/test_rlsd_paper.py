"""The published algorithm against a transcription of the official update into a plain loop."""

import math
from typing import ClassVar

import lightning as L
import pytest
import torch
from deepinv.physics import Physics
from support.processes import as_process
from support.steps import take_step
from torch import Tensor

from rlsd_lightning import (
    DWGF,
    RLSD,
    Distilled,
    InputError,
    LatentFeatures,
    Measurement,
    PixelFeatures,
    RLSDPaper,
    StableDiffusionPrior,
    ViTFeatures,
)
from rlsd_lightning.distributed.ranks import Shard
from rlsd_lightning.operators import denoising, inpainting

SETTINGS = {"gamma": 50.0, "rho": 0.07, "distillation_weight": 0.15, "lr_z": 0.8, "lr_x": 0.4}


class Trace(L.Callback):
    """Both variables after every step."""

    def __init__(self) -> None:
        self.steps: list[tuple[Tensor, Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: RLSDPaper, *args) -> None:
        self.steps.append((module.z.detach().clone(), module.x.detach().clone()))


def make(prior: StableDiffusionPrior, features: torch.nn.Module, **settings) -> RLSDPaper:
    physics = inpainting(prior.image_shape, mask="half").double()
    truth = 2 * torch.rand(1, *prior.image_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    measurement = Measurement("face", physics.A(truth), physics)
    settings = {"num_particles": 3, "num_steps": 10, **SETTINGS, **settings}
    return RLSDPaper(prior, measurement, features, **settings).double()


def fit(module: RLSDPaper) -> list[tuple[Tensor, Tensor]]:
    trace = Trace()
    options = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "use_distributed_sampler": False}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    L.Trainer(**options, **quiet, enable_progress_bar=False, callbacks=[trace]).fit(module)
    return trace.steps


def push_of_the_official_code(f: Tensor) -> Tensor:
    count = len(f)
    pushes = []
    for i in range(count):
        others = [j for j in range(count) if j != i]
        distance = torch.stack([(f[i] - f[j]).norm() for j in others])
        h = distance.median() ** 2 / math.log(count - 1)
        k = torch.exp(-(distance**2) / h)
        pushes.append(sum(k[n] * 2 * (f[i] - f[j]) / h for n, j in enumerate(others)) / k.sum())
    return torch.stack(pushes)


def transcription(
    module: RLSDPaper,
    prior: StableDiffusionPrior,
    physics: Physics,
    y: Tensor,
    phi: torch.nn.Module,
    repulsion_until: float,
) -> list[tuple[Tensor, Tensor]]:
    """Version B of the official update: z, decode again, x; every mean over particles and pixels."""
    z, x = module.z.detach().clone().requires_grad_(), module.x.detach().clone().requires_grad_()
    optimizer_z = torch.optim.Adam([z], lr=SETTINGS["lr_z"], betas=(0.9, 0.99))
    optimizer_x = torch.optim.Adam([x], lr=SETTINGS["lr_x"], betas=(0.9, 0.99))
    timesteps = module.timesteps
    sigmas = [prior.sigmas[t] for t in timesteps]
    # the official sigma_break counts thousandths of the schedule; with 1000 the index would be one beyond it
    gate = sigmas[min(int(len(timesteps) * repulsion_until), len(timesteps) - 1)]
    steps = []
    for k, t in enumerate(timesteps):
        alpha, sigma, eps = prior.alphas[t], sigmas[k], module.noise(k)
        with torch.no_grad():
            eps_hat = prior.denoiser(alpha * z + sigma * eps, t, prior.text.expand(len(z), -1, -1)).sample
        decoded = prior.decode(z)
        rep = torch.zeros_like(z)
        if sigma > gate:
            f = phi(z, decoded)
            (g,) = torch.autograd.grad(f, z, push_of_the_official_code(f.detach()), retain_graph=True)
            rep = SETTINGS["gamma"] * sigma * g
        residual = (eps_hat - eps - rep).detach()
        loss_z = 0.5 * ((x.detach() - decoded) ** 2).mean()
        loss_z = loss_z + SETTINGS["distillation_weight"] * (sigma / alpha) * (residual * z).mean()
        (z.grad,) = torch.autograd.grad(loss_z, z)
        optimizer_z.step()
        decoded = prior.decode(z.detach())
        loss_x = 0.5 * ((y - physics.A(x)) ** 2).mean() + SETTINGS["rho"] * 0.5 * ((x - decoded) ** 2).mean()
        (x.grad,) = torch.autograd.grad(loss_x, x)
        optimizer_x.step()
        steps.append((z.detach().clone(), x.detach().clone()))
    return steps


@pytest.mark.parametrize("repulsion_until", [0.999, 0.6])
@pytest.mark.parametrize("kind", ["vit", "pixels"])
def test_every_step_is_the_official_update(
    kind: str, repulsion_until: float, prior: StableDiffusionPrior, tiny_features: ViTFeatures
):
    features = tiny_features.double() if kind == "vit" else PixelFeatures()
    module = make(prior, features, repulsion_until=repulsion_until)
    (measurement,) = module.measurements
    physics, y = measurement.physics, measurement.y
    expected = transcription(module, prior, physics, y, features, repulsion_until)
    actual = fit(module)
    assert len(actual) == len(expected) == 10
    for (z, x), (expected_z, expected_x) in zip(actual, expected, strict=True):
        assert z.dtype == torch.float64
        torch.testing.assert_close(z, expected_z, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(x, expected_x, rtol=1e-5, atol=1e-5)


def test_repulsion_of_the_published_run_matters(prior: StableDiffusionPrior):
    # otherwise the transcription would agree with any repulsion
    (with_it, _), (without, _) = fit(make(prior, PixelFeatures()))[-1], fit(make(prior, PixelFeatures(), gamma=0.0))[-1]
    assert (with_it - without).abs().max() > 0.1


def test_two_particles_are_not_repelled(prior: StableDiffusionPrior):
    # the official bandwidth is infinite for two
    (with_it, _), (without, _) = (
        fit(make(prior, PixelFeatures(), num_particles=2, num_steps=3, gamma=gamma))[-1] for gamma in (50.0, 0.0)
    )
    torch.testing.assert_close(with_it, without, rtol=1e-12, atol=1e-12)


class Recording(Shard):
    """The first of two processes, whose other has zeros in all it sends."""

    sent: ClassVar[list[tuple[int, ...]]] = []

    def gather(self, mine: Tensor, total: int) -> Tensor:
        self.sent.append(tuple(mine.shape))
        return torch.cat([mine, mine.new_zeros(total - len(mine), *mine.shape[1:])])


def test_a_step_exchanges_the_gradient_of_each_variable_once(prior: StableDiffusionPrior):
    module = as_process(make(prior, PixelFeatures(), gamma=0.0, num_particles=4), 0, 2, Recording)
    z, x = module.z.detach().clone(), module.x.detach().clone()
    Recording.sent.clear()
    take_step(module)
    assert Recording.sent == [(2, *prior.latent_shape), (2, *prior.image_shape)]
    assert not torch.isclose(module.z[:2], z[:2]).any()
    assert not torch.isclose(module.x[:2], x[:2]).all()
    assert torch.equal(module.z[2:], z[2:])  # their gradients came as zeros
    assert torch.equal(module.x[2:], x[2:])


def test_one_particle_runs(prior: StableDiffusionPrior):
    z, x = fit(make(prior, PixelFeatures(), num_particles=1, num_steps=3))[-1]
    assert torch.isfinite(z).all()
    assert torch.isfinite(x).all()


def test_result_is_the_auxiliary_and_the_decoded_latent(prior: StableDiffusionPrior):
    module = make(prior, PixelFeatures(), num_steps=2)
    fit(module)
    images, decoded = module.reconstructions()
    assert torch.equal(images, module.x)
    with torch.no_grad():
        torch.testing.assert_close(decoded, prior.decode(module.z))
    assert not torch.equal(images, decoded)


def test_noise_that_the_published_method_does_not_know_is_refused(tiny_prior):
    physics = denoising(tiny_prior.image_shape, noise="poisson")
    with pytest.raises(InputError, match=r"RLSDPaper expects Gaussian noise, .* choose RLSD"):
        RLSDPaper(tiny_prior, Measurement("m", torch.zeros(1, 3, 32, 32), physics), LatentFeatures())


@pytest.mark.parametrize(
    ("method", "settings"),
    [(RLSDPaper, {"rho": 1.0, "gamma": 0.0}), (Distilled, {"gamma": 0.0}), (DWGF, {}), (RLSD, {"refine_share": 1.0})],
    ids=["paper", "distilled", "dwgf", "refinement"],
)
def test_half_precision_does_not_lose_the_coupling(method: type, settings: dict, tiny_prior: StableDiffusionPrior):
    # at 512x512 its gradient is as small as this in every pixel
    decode = tiny_prior.decode
    tiny_prior.decode = lambda z: decode(z).half().float()  # as a decoder that is held in half precision hands it on
    physics = inpainting(tiny_prior.image_shape, mask="half")
    common = {"num_particles": 2, "num_steps": 1, "distillation_weight": 0.0}
    y = physics.A(torch.zeros(1, *tiny_prior.image_shape))
    module = method(tiny_prior, Measurement("face", y, physics), LatentFeatures(), **common, **settings)
    start = module.z.detach().clone()
    with torch.no_grad():
        decoded = tiny_prior.decode(start)
        noise = torch.randn(decoded.shape, generator=torch.Generator().manual_seed(0))
        module.x.copy_(decoded + 1e-5 * noise)
        module.measurements = [module.measurements[0]._replace(y=physics.A(module.x[:1]))]
    ((z, _),) = fit(module)
    assert (z[0] != start[0]).float().mean() > 0.99
