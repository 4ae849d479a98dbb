"""Single steps of a method without a Trainer."""

from unittest import mock

import torch
from torch import Tensor
from torch.optim import Optimizer

from rlsd_lightning.methods.base import ParticleModule


def optimizers_of(module: ParticleModule) -> list[Optimizer]:
    """The optimizers that a Trainer would use."""
    configured = module.configure_optimizers()
    configured = configured["optimizer"] if isinstance(configured, dict) else configured
    return configured if isinstance(configured, list) else [configured]


def take_step(
    module: ParticleModule, step: int = 0, *, optimizers: list[Optimizer] | None = None, skip: bool = False
) -> Tensor:
    """Takes a step as a Trainer does.

    Args:
        module: In automatic or in manual optimization.
        step: The step k.
        optimizers: Those of the steps before; new ones if left out.
        skip: Whether optimizers do nothing, as in mixed precision where gradients overflow.

    Returns:
        The gradient in the latents that an optimizer saw.
    """
    optimizers = optimizers or optimizers_of(module)
    gradients: list[Tensor] = []

    def seen(*_) -> None:
        gradients.append(module.z.grad.clone())

    def backward(loss: Tensor) -> None:
        loss.backward()
        module.on_after_backward()

    hooks = [each.register_step_pre_hook(seen) for each in optimizers if module.z is each.param_groups[0]["params"][0]]
    nothing = [mock.patch.object(each, "step", seen) for each in optimizers if skip]
    manual = {"optimizers": lambda: optimizers, "manual_backward": backward}
    batch = (step, module.timesteps[step])
    module.zero_grad()
    try:
        for each in nothing:
            each.start()
        with mock.patch.multiple(module, **manual):
            loss = module.training_step(batch, step)
        if module.automatic_optimization:
            backward(loss)
            optimizers[0].step()
    finally:
        for each in nothing:
            each.stop()
        for hook in hooks:
            hook.remove()
    module.zero_grad()
    return gradients[0]


def loss_of(module: ParticleModule, step: int = 0) -> tuple[Tensor, Tensor]:
    """The loss that a step returns, with its graph, and its gradient in the latents; the optimizers do nothing."""
    optimizers, losses = optimizers_of(module), []
    manual = {"optimizers": lambda: optimizers, "manual_backward": losses.append}
    for each in optimizers:
        each.step = lambda *_: None
    with mock.patch.multiple(module, **manual):
        loss = module.training_step((step, module.timesteps[step]), step)
    assert not losses or losses == [loss]
    return loss, torch.autograd.grad(loss, module.z)[0]
