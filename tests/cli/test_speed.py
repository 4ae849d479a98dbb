"""What makes a step cheap: gradients that are held, and no waiting for the device."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlsd_lightning import RLSD, InputError, LatentFeatures, Measurement, StableDiffusionPrior
from rlsd_lightning.functional.schedules import prior_weight
from rlsd_lightning.operators import gaussian_blur, inpainting, mri, super_resolution
from rlsd_lightning.priors import Prior

HALF = partial(inpainting, mask="half")


def make(prior: Prior, operator=HALF, **settings) -> RLSD:
    physics = operator(prior.image_shape)
    y = physics.A(torch.linspace(-1, 1, 3 * 32 * 32).view(1, *prior.image_shape))
    settings = {"num_particles": 3, "num_steps": 20, "sampling_share": 0.0, **settings}
    return RLSD(prior, Measurement("m", y, physics), LatentFeatures(), **settings)


def gradient(module: RLSD, step: int) -> Tensor:
    module.zero_grad()
    module.training_step((step, module.timesteps[step]), step).backward()
    return module.z.grad.clone()


# --- gradients that are held ---------------------------------------------------------------------------------------


def test_held_gradients_are_those_of_the_last_renewal(tiny_prior: StableDiffusionPrior) -> None:
    every, held = make(tiny_prior), make(tiny_prior, renew_every=3)
    first = gradient(held, 0)
    torch.testing.assert_close(first, gradient(every, 0))
    # the same latents in the next step: the denoiser's part is new, the rest is not
    parts = []
    for step in (0, 1):
        t = held.timesteps[step]
        residual = held.score(held.z, held.noise(step), t).detach()
        weight = prior_weight(tiny_prior.alpha(t), tiny_prior.sigma(t), held.hparams.weighting)
        parts.append(held.hparams.distillation_weight * weight * residual / residual[0].numel())
    torch.testing.assert_close(gradient(held, 1), first - parts[0] + parts[1], rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(gradient(held, 3), gradient(every, 3))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_decoder_runs_once_in_so_many_steps(
    share: float, tiny_prior: StableDiffusionPrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, decode = [], tiny_prior.decode
    monkeypatch.setattr(tiny_prior, "decode", lambda z: decoded.append(step) or decode(z))
    module = make(tiny_prior, renew_every=4, sampling_share=share)
    for step in range(10):
        gradient(module, step)
    assert decoded == [0, 4, 8]


@pytest.mark.parametrize("settings", [{"renew_every": 0}, {"renew_every": 2, "x_update": "adam"}])
def test_renewals_that_make_no_sense_are_refused(settings: dict, tiny_prior: StableDiffusionPrior) -> None:
    with pytest.raises(InputError, match=r"method\.renew_every must be at least 1, and 1 where method\.x_update is"):
        make(tiny_prior, **settings)


# --- no waiting for the device -------------------------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """Notes every number that is read back from a tensor, for which a GPU would be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.operations.append(str(function))
        return function(*args, **(kwargs or {}))


# operators without a closed form are solved by deepinv's conjugate gradients or torch's Adam, which look at numbers
@pytest.mark.parametrize("operator", [HALF, super_resolution, gaussian_blur, mri])
@pytest.mark.parametrize("settings", [{}, {"renew_every": 2}, {"particle_chunk": 2}], ids=str)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_no_step_waits_for_the_device(operator, settings: dict, share: float, tiny_prior: StableDiffusionPrior) -> None:
    module = make(tiny_prior, operator, sampling_share=share, **settings)
    for step in range(3):
        with Waits() as waits:
            module.training_step((step, module.timesteps[step]), step).backward()
        assert waits.operations == []
