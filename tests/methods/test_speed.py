"""What makes a step cheap: no waiting for the device."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from unittest import mock

import pytest
import torch
from support.steps import optimizers_of, take_step
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.alone import Alone
from rlsd_lightning import (
    DWGF,
    RLSD,
    Distilled,
    LatentDAPS,
    LatentDPS,
    LatentFeatures,
    Measurement,
    RLSDPaper,
    StableDiffusionPrior,
    ViTFeatures,
)
from rlsd_lightning.operators import gaussian_blur, inpainting, mri, super_resolution

HALF = partial(inpainting, mask="half")
METHODS = {"loop": RLSD, "refinement": partial(RLSD, refine_share=1.0), "distilled": Distilled}


def without_autocast() -> AbstractContextManager:
    """Autocast, which is off anyway, does not know the device meta."""
    return mock.patch("torch.autocast", lambda *_, **__: nullcontext())


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
@pytest.mark.parametrize(
    ("operator", "settings"),
    [*((each, {}) for each in (HALF, super_resolution, gaussian_blur, mri)), (HALF, {"particle_chunk": 2})],
)
@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_the_device(operator, settings: dict, method: str, tiny_prior: StableDiffusionPrior) -> None:
    physics = operator(tiny_prior.image_shape)
    y = physics.A(torch.linspace(-1, 1, 3 * 32 * 32).view(1, *tiny_prior.image_shape))
    settings = {"num_particles": 3, "num_steps": 20, **settings}
    module = METHODS[method](tiny_prior, Measurement("m", y, physics), LatentFeatures(), **settings)
    for optimizer in optimizers_of(module):
        assert type(optimizer) in (torch.optim.Adam, torch.optim.SGD)
    adam_free = [torch.optim.SGD([module.z], lr=1.0) for _ in range(2)]  # Adam counts its steps on the CPU
    for step in range(3):
        with Waits() as waits:
            take_step(module, step, optimizers=adam_free)
        assert waits.operations == []


@pytest.mark.parametrize("method", [RLSD, Distilled, RLSDPaper, LatentDPS, LatentDAPS, DWGF])
def test_no_step_needs_a_value(
    method: type, tiny_prior: StableDiffusionPrior, tiny_features: ViTFeatures, measurement: Measurement
) -> None:
    # tensors of the device meta have none; the schedule is read on the CPU
    levels = {name: tiny_prior.get_buffer(name).clone() for name in ("alphas", "sigmas")}
    module = method(tiny_prior, measurement, tiny_features, num_particles=3, num_steps=6).to("meta")
    with mock.patch.object(method, "device", torch.device("meta")), without_autocast():
        alone = Alone(module)
        for name, values in levels.items():
            setattr(tiny_prior, name, values)
        for t in module.timesteps:
            alone.step(t)
    assert module.z.is_meta and alone.taken == 6
    with pytest.raises(RuntimeError, match="meta"):
        module.z.sum().item()
