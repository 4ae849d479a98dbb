"""The part that all particle methods share: particles, noise, networks, schedule and a safe checkpoint."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint

from rlsd_lightning.checks import calibrated_settings, check_trainer, check_types, checked_measurements
from rlsd_lightning.distributed.shard import Shard
from rlsd_lightning.distributed.strategy import ParticleStrategy
from rlsd_lightning.features import Features
from rlsd_lightning.functional.kernels import sets_in
from rlsd_lightning.functional.noise import ParticleNoise
from rlsd_lightning.functional.schedules import add_noise, ddim_timesteps
from rlsd_lightning.identity import CheckpointIdentity, keep_particles
from rlsd_lightning.measurement import Measurement, moved_to
from rlsd_lightning.operators.likelihood import hidden_as_zero
from rlsd_lightning.operators.medical import as_seen
from rlsd_lightning.operators.proximal import RESULT_STEPS, ProximalSteps
from rlsd_lightning.priors import Prior
from rlsd_lightning.timesteps import Timesteps

__all__ = ["ParticleModule"]


class ParticleModule(L.LightningModule):
    r"""N particles of each measurement: latents ``z`` and images ``x``, both drawn from :math:`\mathcal{N}(0, I)`.

    Both are Parameters with shape :math:`(M N, \dots)` for M measurements; those of a measurement are neighbours. A Lightning
    checkpoint holds them, and the identity of prior, features and operators. Measurements share only networks' batches.

    Args:
        prior: The latent diffusion prior.
        measurements: One measurement, or several that are solved side by side.
        features: The features that the kernel compares.
        num_particles: The number :math:`N \ge 1` of particles of each measurement.
        num_steps: The number :math:`K` of timesteps.
        seed: Seed of all noise, from 0 to :math:`2^{64} - 1`.
        warm_share: Share of the timesteps, those with the least noise, for measurements with a start, in (0, 1].
        antithetic: Whether a measurement's particles have noise that sums to zero
            (:class:`~rlsd_lightning.functional.noise.ParticleNoise`); False draws independent noise.
        particle_chunk: Particles that a network sees at a time; the backward pass computes activations again. None: all.
        decoder_std: Typical distance of :math:`D(z)` from an image, in units of an image in [-1, 1]. 0 (only DPS, DAPS and
            the twisted filter take it): the results are :math:`D(z)`. None: the prior's (:class:`~rlsd_lightning.priors.Calibration`).
        min_mu: Least weight of :math:`\mathrm{mean}((x - D(z))^2)` beside the misfit, above 0.

    Raises:
        InputError: If a number is out of range, or an operator does not fit the prior's images.
    """

    timestep_spacing = "leading"  # of ddim_timesteps

    def __init__(
        self,
        prior: Prior,
        measurements: Measurement | Sequence[Measurement],
        features: Features,
        *,
        num_particles: int = 4,
        num_steps: int = 50,
        seed: int = 0,
        warm_share: float = 0.5,
        antithetic: bool = False,
        particle_chunk: int | None = None,
        decoder_std: float | None = None,
        min_mu: float = 1e-3,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["prior", "measurements", "features"])  # of all classes of the chain
        check_types(type(self), {"prior": prior, "features": features, **self.hparams})
        self.save_hyperparameters(calibrated_settings(self.hparams, prior))
        self.measurements = checked_measurements(measurements, self.hparams, prior)
        self._frozen = {"prior": prior, "features": features}  # a plain dict hides modules from state_dict()
        self.num_particles, self.num_steps, self.seed = num_particles, num_steps, seed
        self.particle_chunk, self.decoder_std = particle_chunk, self.hparams.decoder_std
        self.has_proximal_results = self.decoder_std > 0
        is_warm = self.measurements[0].start is not None
        self.first_step = num_steps - max(1, round(warm_share * num_steps)) if is_warm else 0
        every = ddim_timesteps(prior.num_train_timesteps, num_steps, prior.timestep_offset, self.timestep_spacing)
        self.timesteps = every[self.first_step :]
        self._noise = ParticleNoise([each.noise_key for each in self.measurements], num_particles, seed, antithetic)
        if is_warm:
            z, x = (torch.cat(parts) for parts in zip(*(each.start for each in self.measurements), strict=True))
        else:
            z, x = self._noise(prior.latent_shape, None, "z_init"), self._noise(prior.image_shape, None, "x_init")
        self.z, self.x = nn.Parameter(z), nn.Parameter(x, requires_grad=False)
        settings = {"method": type(self).__name__, "timesteps": self.timesteps, **self.hparams, "particle_chunk": None}
        self.identity = CheckpointIdentity(sorted(settings.items()), self._frozen, self.measurements, prior.image_shape)
        self.measurements = [hidden_as_zero(each) for each in self.measurements]  # of checked shapes
        self.proximal = ProximalSteps(self.measurements, x[0].numel(), min_mu, together=particle_chunk is None)
        self.resumed_at = 0  # timesteps that were taken before this fit
        self.repulsion_ratios: list[Tensor] = []
        """Ratio of the repulsion's norm to the data gradient's in each step, summed over this process's particles / N."""
        self.step_images: tuple[Tensor, Tensor] | None = None  # of this process's particles, see keep_images
        self._final_images: tuple[Tensor, Tensor] | None = None

    @abstractmethod
    def training_step(self, batch: tuple[int, int], batch_idx: int) -> Tensor:
        """Take all particles from one timestep to the next; ``batch`` is (step k, timestep t)."""

    @torch.no_grad()
    def reconstructions(self) -> tuple[Tensor, Tensor]:
        r"""The particles as images, and their decoded latents, both with shape :math:`(M N, *\mathrm{image\_shape})`.

        The images are :math:`\arg\min_x \mathrm{misfit}(A(x), y) + \mu \, \mathrm{mean}((x - D(z))^2)` for all methods, so
        that they are compared at an equal residual; the decoded latents if ``decoder_std`` is 0.
        """
        decoded = self.decode(self.z.detach()[self.rows])
        if not self.has_proximal_results:
            return (self.gather(decoded),) * 2
        pairs, variance = self.each_here(decoded), self.decoder_std**2
        images = self.proximal(pairs, variance, inner_steps=RESULT_STEPS) if len(decoded) else decoded
        return self.gather(images), self.gather(decoded)

    def solve_images(self, decoded: Tensor, image_var: float) -> Tensor:
        r"""Set this process's images to :math:`x = \arg\min_x \mathrm{misfit}(A(x), y) + \mu \, \mathrm{mean}((x - D(z))^2)`.

        The variance of the decoded latents' error sets :math:`\mu` (:class:`~rlsd_lightning.operators.proximal.ProximalSteps`).
        """
        x = self.proximal(self.each_here(decoded), image_var) if len(decoded) else decoded
        self.x.data[self.rows] = x
        self.keep_images(x, decoded)
        return x

    @property
    def prior(self) -> Prior:
        """The latent diffusion prior."""
        return self._frozen["prior"]

    @property
    def features(self) -> Features:
        """The features that the kernel compares."""
        return self._frozen["features"]

    @property
    def name(self) -> str:
        """The measurement's name, or the first and the last of several."""
        return " to ".join(dict.fromkeys((self.measurements[0].name, self.measurements[-1].name)))

    @property
    def shard(self) -> Shard:
        """Share of the particles that this process computes: all, unless a ParticleStrategy spreads them."""
        strategy = self._trainer.strategy if self._trainer else None
        return strategy.shard if isinstance(strategy, ParticleStrategy) else Shard()

    @property
    def rows(self) -> slice:
        """Rows of this process's particles."""
        return self.shard.rows(len(self.z))

    def each(self, *values: Tensor) -> Iterator[tuple]:
        """Every measurement, with its particles' rows of some values."""
        return zip(self.measurements, *(value.split(self.num_particles) for value in values), strict=True)

    def each_here(self, *values: Tensor) -> Iterator[tuple]:
        """Every measurement with particles on this process, with its rows of values whose rows are this process's."""
        first = self.rows.start
        for index, start, stop in sets_in(self.rows, self.num_particles):
            yield self.measurements[index], *(value[start - first : stop - first] for value in values)

    def gather(self, mine: Tensor) -> Tensor:
        """All particles' rows of a value, from this process's rows."""
        return self.shard.gather(mine, len(self.z))

    def keep_images(self, images: Tensor, decoded: Tensor) -> None:
        """Keep the images and decoded latents that a step has computed of this process's particles."""
        self.step_images = images.detach(), decoded.detach()

    def intermediate_images(self) -> tuple[Tensor, Tensor] | None:
        """Images and decoded latents of all particles as the last step computed them; None before the first decode."""
        return None if self.step_images is None else tuple(map(self.gather, self.step_images))

    def final_images(self) -> tuple[Tensor, Tensor]:
        """The reconstructions, in grey where a scan is; those after the last step are cached."""
        images = self._final_images or tuple(as_seen(self.each(images)) for images in self.reconstructions())
        if self.steps_done >= len(self.timesteps):
            self._final_images = images
        return images

    @property
    def steps_done(self) -> int:
        """Number of timesteps that were taken."""
        return self.trainer.fit_loop.epoch_loop.total_batch_idx + 1 if self._trainer else 0

    def train_dataloader(self) -> Timesteps:
        return Timesteps(self.timesteps)

    def begin(self, batch: tuple[int, int], batch_idx: int) -> tuple[int, int, int | None]:
        """Step k, its timestep t, and the timestep s of the next step; s is None in the last."""
        step, t = batch
        assert step == batch_idx, f"step {step} came as batch {batch_idx}: the schedule was not restored"
        return step, t, self.timesteps[step + 1] if step + 1 < len(self.timesteps) else None

    def setup(self, stage: str) -> None:
        check_trainer(self.trainer)
        self.identity.check_processes(self.shard)

    def configure_optimizers(self) -> Any:  # SGD with step size 1 sets z to the target of half_square_distance
        return SGD([self.z], lr=1.0)

    def on_train_batch_start(self, batch: tuple[int, int], batch_idx: int) -> None:
        if self.is_log_step(batch_idx):
            self.log("noise_level", self.prior.sigma(batch[1]))

    def on_train_end(self) -> None:
        if self.steps_done == len(self.timesteps):
            self.final_images()  # while the latents are on their device and all processes are here

    def on_train_epoch_end(self) -> None:
        self.trainer.should_stop = True  # one pass over the timesteps, whatever max_epochs says

    def on_fit_start(self) -> None:
        for module in self._frozen.values():
            module.to(self.device)
        self.measurements = moved_to(self.device, self.measurements)

    def on_train_start(self) -> None:
        self.resumed_at = self.steps_done

    def on_after_backward(self) -> None:
        """Every process has the gradients of its own particles; the optimizer needs all of them."""
        for particles in (self.z, self.x):
            if particles.grad is not None:
                particles.grad = self.gather(particles.grad[self.rows])

    def denoise(self, z_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        r"""Clean latents :math:`\hat z` and noise :math:`\hat\epsilon` of noisy latents, a chunk of particles at a time."""
        return self.chunked(lambda part: self.prior.denoise(part, t), z_t) if len(z_t) else (z_t, z_t)

    def decode(self, z: Tensor, tiny: bool = False) -> Tensor:
        """Images of latents, a chunk of particles at a time; by the prior's tiny decoder if it has one and ``tiny`` is set."""
        return self.chunked(self.prior.decode_tiny if tiny else self.prior.decode, z) if len(z) else self.x[:0]

    def chunked(self, function: Callable[..., Any], *values: Tensor) -> Any:
        """A function's tensor, or tuple of tensors, for a chunk of particles at a time."""
        if self.particle_chunk is None or self.particle_chunk >= len(values[0]):
            return function(*values)
        chunks = zip(*(value.split(self.particle_chunk) for value in values), strict=True)
        parts = [checkpoint(function, *chunk, use_reentrant=False) for chunk in chunks]
        return torch.cat(parts) if isinstance(parts[0], Tensor) else tuple(map(torch.cat, zip(*parts, strict=True)))

    def particle_features(self, z: Tensor, images: Tensor, network: nn.Module | None = None) -> Tensor:
        """Features of particles, a chunk at a time; by the kernel's network unless another is given."""
        if not len(z):  # only the network knows how many features there are
            return self.particle_features(*(each.new_zeros(1, *each.shape[1:]) for each in (z, images)), network)[:0]
        return self.chunked(self.features if network is None else network, z, images)

    def noise(self, step: int, stream: str = "step", copies: tuple[int, ...] = ()) -> Tensor:
        r"""The noise of one step for this process's latents, with shape :math:`(n, \mathrm{copies}, \dots)`."""
        drawn = self._noise((*copies, *self.prior.latent_shape), self.rows, stream, self.first_step + step)
        drawn = drawn.pin_memory() if self.z.is_cuda else drawn  # a copy from other memory waits for the device
        return drawn.to(self.z, non_blocking=True)

    def noisy_start(self) -> Tensor:
        r"""Noisy latents :math:`z_T` of all particles: standard normal, or the measurements' starts with noise."""
        z, t, prior = self.z.detach().clone(), self.timesteps[0], self.prior
        if self.measurements[0].start is None:
            return z
        return add_noise(z, self._noise(prior.latent_shape, None, "z_init"), prior.alpha(t).cpu(), prior.sigma(t).cpu())

    def is_log_step(self, batch_idx: int) -> bool:
        """Whether the Trainer writes this step."""
        every = self._trainer.log_every_n_steps if self._trainer else 0  # 0 is never
        return every > 0 and (batch_idx + 1) % every == 0

    def log_terms(self, terms: dict[str, Tensor], batch_idx: int, **figures: Tensor) -> None:
        """Log the terms of the loss, their sum, and figures: sums over particles, means over measurements."""
        if self.is_log_step(batch_idx):
            every = {"total": sum(terms.values()), **terms}
            values = {f"loss/{name}": value for name, value in every.items()} | figures
            sums = self.shard.sum(torch.stack([value.detach().float().to(self.z.device) for value in values.values()]))
            self.log_dict(dict(zip(values, sums / len(self.measurements), strict=True)), prog_bar=True)

    def repulsion_ratio(self) -> float | None:
        """Mean ratio of the repulsion's norm to the data gradient's over particles and steps; None without repulsion."""
        ratios = self._mean_ratios() if self.repulsion_ratios else []
        return sum(ratios) / len(ratios) if ratios else None

    def _mean_ratios(self) -> list[float]:
        mine = torch.stack([self.z.new_zeros(()), *(ratio.to(self.z) for ratio in self.repulsion_ratios)])
        return (self.shard.sum(mine) / len(self.measurements)).tolist()[1:]

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        self.identity.save(checkpoint)
        checkpoint["repulsion_ratios"] = self._mean_ratios()
        state = checkpoint["state_dict"]  # z is the same on every process, the rest is that of its own particles
        for name in sorted(state.keys() - {"z"}):  # in the same order on every process
            if state[name].ndim and len(state[name]) == len(self.z):  # a method may have other state
                state[name] = self.gather(state[name][self.rows])

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.identity.check(checkpoint)
        here = len(self.measurements) / self.shard.size
        self.repulsion_ratios = [torch.tensor(ratio * here) for ratio in checkpoint["repulsion_ratios"]]
        keep_particles(checkpoint, self.identity.samples, self.num_particles)
