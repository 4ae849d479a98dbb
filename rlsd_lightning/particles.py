"""What every particle method has: the particles, their noise, the schedule, and a safe checkpoint."""

import hashlib
from abc import abstractmethod
from collections.abc import Callable

import lightning as L
import torch
from deepinv.physics import Physics
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlsd_lightning.errors import InputError
from rlsd_lightning.fingerprint import description, probe, sampled
from rlsd_lightning.functional.losses import at_least_float32
from rlsd_lightning.functional.noise import keyed_normal, measurement_key
from rlsd_lightning.functional.schedules import add_noise, ddim_timesteps
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.priors import Prior
from rlsd_lightning.timesteps import Timesteps

__all__ = ["ParticleModule", "check_settings"]


class ParticleModule(L.LightningModule):
    r"""N particles of one measurement: latents ``z`` and auxiliaries ``x``, drawn from :math:`\mathcal{N}(0, I)`.

    Both are Parameters, so they are what a Lightning checkpoint holds. The prior, the features and the physics are
    frozen and held outside the module's parameters: they never are in a checkpoint, a fingerprint of them is.

    Args:
        prior: The latent diffusion prior.
        measurement: What is known.
        features: Called with latents and images, returns what the kernel compares.
        num_particles: The number :math:`N \ge 1` of particles.
        num_steps: The number :math:`K` of timesteps.
        seed: Seed of all noise.
        warm_share: Share of the timesteps, those with the least noise, that is taken where the measurement says what the
            particles start from.
        particle_chunk: Networks see so many particles at a time, and the decoder keeps no more activations than theirs
            for the backward pass, which computes them again; all at once if left out.

    Raises:
        InputError: If a number is out of range, or the operator does not fit the prior's images.
    """

    def __init__(
        self,
        prior: Prior,
        measurement: Measurement,
        features: nn.Module,
        *,
        num_particles: int,
        num_steps: int,
        seed: int,
        warm_share: float = 0.5,
        particle_chunk: int | None = None,
    ) -> None:
        super().__init__()
        if num_particles < 1:
            raise InputError(f"num_particles must be at least 1, got {num_particles}")
        try:
            schedule = ddim_timesteps(prior.num_train_timesteps, num_steps, prior.timestep_offset)
        except ValueError as error:
            raise InputError(str(error)) from error
        if not 0 <= seed < 2**64:
            raise InputError(f"seed must be from 0 to 2^64 - 1, got {seed}")
        if not 0 < warm_share <= 1:
            raise InputError(f"method.warm_share must be above 0 and at most 1, got {warm_share}")
        start, latents = measurement.start, (num_particles, *prior.latent_shape)
        if start is not None and start[0].shape != latents:
            raise InputError(
                f"particles that start from latents of shape {latents} are expected, got {tuple(start[0].shape)}"
            )
        self.evidence = {"y": sampled(measurement.y), "operator": sampled(probe(measurement, prior.image_shape))}
        if start is not None:
            self.evidence["start"] = sampled(start[0])
        self.full_length = num_steps
        self.first_step = 0 if start is None else num_steps - max(1, round(warm_share * num_steps))
        self.timesteps = schedule[self.first_step :]
        if particle_chunk is not None and particle_chunk < 1:
            raise InputError(f"method.particle_chunk must be at least 1, got {particle_chunk}")
        self.num_particles = num_particles
        self.particle_chunk = particle_chunk or num_particles
        self.seed = seed
        # a plain dict hides modules from state_dict() and parameters()
        self._frozen = {"prior": prior, "features": features, "physics": measurement.physics}
        self.measurement = measurement
        self._key = measurement_key(measurement.series or measurement.name)
        z, x = start or (self._draw("z_init", prior.latent_shape), self._draw("x_init", prior.image_shape))
        self.z, self.x = nn.Parameter(z.clone()), nn.Parameter(x.clone())
        self._fingerprint: str | None = None

    @property
    def prior(self) -> Prior:
        """The latent diffusion prior."""
        return self._frozen["prior"]

    @property
    def features(self) -> nn.Module:
        """The features the kernel compares."""
        return self._frozen["features"]

    @property
    def physics(self) -> Physics:
        """The forward operator."""
        return self._frozen["physics"]

    @property
    def y(self) -> Tensor:
        """The measurement, on this module's device."""
        return self.measurement.y

    @property
    def steps_done(self) -> int:
        """How many of the timesteps have been taken."""
        return self.trainer.fit_loop.epoch_loop.total_batch_idx + 1 if self._trainer else 0

    @abstractmethod
    def reconstructions(self) -> tuple[Tensor, Tensor]:
        """The particles as images, and their decoded latents, both with shape :math:`(N, *image_shape)`."""

    def train_dataloader(self) -> Timesteps:
        return Timesteps(self.timesteps)

    def on_fit_start(self) -> None:
        for module in self._frozen.values():
            module.to(self.device)
        self.measurement = self.measurement._replace(y=self.measurement.y.to(self.device))

    def decode(self, z: Tensor) -> Tensor:
        """Images of latents, a chunk of particles at a time."""
        return self._chunked(self.prior.decode, z)

    def compared(self, z: Tensor, images: Tensor) -> Tensor:
        """The features of particles, a chunk of them at a time."""
        return self._chunked(self.features, z, images)

    def measured(self, images: Tensor) -> Tensor:
        """The measurements of images, in full precision."""
        with torch.autocast(images.device.type, enabled=False):
            return self.physics.A(at_least_float32(images))

    def _chunked(self, function: Callable[..., Tensor], *values: Tensor) -> Tensor:
        if self.particle_chunk >= len(values[0]):
            return function(*values)
        chunks = zip(*(value.split(self.particle_chunk) for value in values), strict=True)
        return torch.cat([checkpoint(function, *chunk, use_reentrant=False) for chunk in chunks])

    @torch.no_grad()
    def score(self, z: Tensor, eps: Tensor, t: int) -> Tensor:
        r"""The distillation residual :math:`\hat\epsilon(\alpha_t z + \sigma_t \epsilon, t) - \epsilon` of latents."""
        z_t = add_noise(z, eps, self.prior.alpha(t), self.prior.sigma(t))
        parts = z_t.split(self.particle_chunk)
        return torch.cat([self.prior.predict_noise(part, t) for part in parts]) - eps

    def noise(self, step: int) -> Tensor:
        """The noise of one step, with the shape, type and device of ``z``."""
        return self._draw("step", self.prior.latent_shape, self.first_step + step).to(self.z)

    def repulsion_is_on(self, step: int, sigma_break: int) -> bool:
        """Whether a step's noise level is above that of the gate: the first ``sigma_break`` thousandths of steps."""
        gate = min(int(self.full_length / 1000 * sigma_break), self.full_length - 1)
        return self.first_step + step < gate

    def log_step(self, values: dict[str, Tensor], batch_idx: int, prog_bar: bool = False) -> None:
        """Logs scalars on the steps that the Trainer writes, and costs nothing on the others."""
        if self._trainer is not None and (batch_idx + 1) % self.trainer.log_every_n_steps == 0:
            self.log_dict({name: value.detach() for name, value in values.items()}, prog_bar=prog_bar)

    def log_losses(self, losses: dict[str, Tensor], batch_idx: int) -> None:
        """Logs the terms of the loss and the noise level."""
        self.log_step({f"loss/{name}": value for name, value in losses.items()}, batch_idx, prog_bar=True)
        self.log_step({"noise_level": self.prior.sigma(self.timesteps[batch_idx])}, batch_idx)

    def fingerprint(self) -> str:
        """A digest of what a checkpoint must agree with: names, settings, particles, schedule, prior, features."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            settings_of_result = {name: value for name, value in self.hparams.items() if name != "particle_chunk"}
            settings = (self.measurement.name, self.num_particles, self.seed, self.timesteps, type(self).__name__)
            digest.update(repr((settings, type(self.physics).__name__, sorted(settings_of_result.items()))).encode())
            for module in (self.prior, self.features):
                digest.update(description(module))
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["fingerprint"] = self.fingerprint()
        checkpoint["measurement"] = self.measurement.name
        checkpoint["evidence"] = self.evidence

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        saved = checkpoint.get("evidence", {})
        # with a tolerance: another machine may have computed them
        same = saved.keys() == self.evidence.keys() and all(
            saved[name].shape == value.shape and torch.allclose(saved[name], value, rtol=1e-3, atol=1e-5)
            for name, value in self.evidence.items()
        )
        if checkpoint.get("fingerprint") != self.fingerprint() or not same:
            raise InputError(
                f"the checkpoint belongs to measurement '{checkpoint.get('measurement')}' of a run with another "
                "measurement, operator, prior, features, method or number of particles or steps than "
                f"'{self.measurement.name}' here; resume with the settings it was made with"
            )

    def _draw(self, stream: str, shape: tuple[int, ...], step: int = 0) -> Tensor:
        particles = range(self.num_particles)
        return keyed_normal(shape, particles, seed=self.seed, measurement=self._key, stream=stream, step=step)


def check_settings(not_negative: dict[str, float], positive: dict[str, float]) -> None:
    """Refuses settings of a method that are out of range.

    Raises:
        InputError: If one of them is.
    """
    for name, value in not_negative.items():
        if not value >= 0:
            raise InputError(f"method.{name} must be at least 0, got {value}")
    for name, value in positive.items():
        if not value > 0:
            raise InputError(f"method.{name} must be above 0, got {value}")
