"""Steps of a method without a Trainer, for the clock and the counter."""

from unittest import mock

import torch

from rlsd_lightning.methods.base import ParticleModule

__all__ = ["Alone"]


class Alone:
    """Takes steps of a method without a Trainer around it.

    Args:
        module: On its device.
    """

    def __init__(self, module: ParticleModule) -> None:
        self.module, self.taken = module, 0
        module.on_fit_start()
        configured = module.configure_optimizers()
        configured = configured["optimizer"] if isinstance(configured, dict) else configured
        self.optimizers = configured if isinstance(configured, list) else [configured]

    def step(self, t: int) -> None:
        """Takes one step at a timestep."""
        step = self.taken % len(self.module.timesteps)
        alone = {"optimizers": lambda: self.optimizers, "manual_backward": torch.Tensor.backward}
        with mock.patch.multiple(self.module, **alone):
            loss = self.module.training_step((step, t), step)
        if self.module.automatic_optimization:
            loss.backward()
            self.optimizers[0].step()
            self.optimizers[0].zero_grad()
        self.taken += 1
