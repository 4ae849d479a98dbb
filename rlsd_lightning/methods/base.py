"""What every particle method has: the particles, their noise, the schedule, and a safe checkpoint."""

import copy
import hashlib
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlsd_lightning.distributed.shard import Shard
from rlsd_lightning.distributed.strategy import ParticleStrategy
from rlsd_lightning.errors import InputError
from rlsd_lightning.functional.noise import keyed_normal, measurement_key
from rlsd_lightning.functional.schedules import add_noise, ddim_timesteps
from rlsd_lightning.identity import agree, computed_samples, description, nearly_agree, samples
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.priors import Prior
from rlsd_lightning.timesteps import Timesteps
from rlsd_lightning.uncertainty import DecoderError

__all__ = ["ParticleModule", "check_settings", "noise_key", "saved_samples"]


class ParticleModule(L.LightningModule):
    r"""N particles of each measurement: latents ``z`` and auxiliaries ``x``, drawn from :math:`\mathcal{N}(0, I)`.

    Both are Parameters, so they are what a Lightning checkpoint holds: with M measurements they have the shape
    :math:`(M N, \dots)`, and a measurement's particles are neighbours. The networks see all of them together;
    nothing else joins two measurements, so each ends as it would alone. The prior, the features and the operators are
    frozen and held outside the module's parameters: they never are in a checkpoint, a fingerprint of them is.

    Args:
        prior: The latent diffusion prior.
        measurements: What is known: one measurement or several.
        features: Called with latents and images, returns what the kernel compares.
        num_particles: The number :math:`N \ge 1` of particles of each measurement.
        num_steps: The number :math:`K` of timesteps.
        seed: Seed of all noise.
        warm_share: Share of the timesteps, those with the least noise, that is taken where the measurement says what the
            particles start from.
        antithetic: Whether a measurement's particles have noise that sums to zero. Each noise has the distribution of
            independent ones, but any two have the correlation :math:`-1 / (N - 1)`, so that samples differ more, and
            cover more.
        particle_chunk: Networks see so many particles at a time, and those that are differentiated keep no more
            activations than theirs for the backward pass, which computes them again; all at once if left out.

    Raises:
        InputError: If a number is out of range, or an operator does not fit the prior's images.

    References:
        | Antithetic Noise in Diffusion Models (Jia et al., 2025)
        | https://arxiv.org/abs/2506.06185
    """

    def __init__(
        self,
        prior: Prior,
        measurements: Measurement | Sequence[Measurement],
        features: nn.Module,
        *,
        num_particles: int = 4,
        num_steps: int = 100,
        seed: int = 0,
        warm_share: float = 0.5,
        antithetic: bool = False,
        particle_chunk: int | None = None,
    ) -> None:
        super().__init__()
        # those of the whole chain of classes
        self.save_hyperparameters(ignore=["prior", "measurements", "features"])
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
        if particle_chunk is not None and particle_chunk < 1:
            raise InputError(f"method.particle_chunk must be at least 1, got {particle_chunk}")
        self.measurements = [measurements] if isinstance(measurements, Measurement) else list(measurements)
        if not self.measurements:
            raise InputError("at least one measurement is expected, got none")
        names = [measurement.name for measurement in self.measurements]
        if len(set(names)) < len(names):
            raise InputError(f"measurements are told apart by their names, no two alike are expected, got {names}")
        starts = [self._start(measurement, (num_particles, *prior.latent_shape)) for measurement in self.measurements]
        if len({start is None for start in starts}) > 1:
            raise InputError("measurements that all start from given particles are expected, or none that does")
        self.samples = {measurement.name: samples(measurement, prior.image_shape) for measurement in self.measurements}
        self.full_length = num_steps
        self.first_step = 0 if starts[0] is None else num_steps - max(1, round(warm_share * num_steps))
        self.timesteps = schedule[self.first_step :]
        self.num_particles = num_particles
        self.particle_chunk = particle_chunk
        self.seed = seed
        # a plain dict hides modules from state_dict() and parameters()
        self._frozen = {"prior": prior, "features": features}
        self._index = torch.arange(num_particles).repeat(len(self.measurements))  # of a particle in its measurement
        if starts[0] is None:
            z, x = self._first_draw("z_init", prior.latent_shape), self._first_draw("x_init", prior.image_shape)
        else:
            z, x = (torch.cat(parts) for parts in zip(*starts, strict=True))
        self.z, self.x = nn.Parameter(z), nn.Parameter(x)
        self.resumed_at = 0
        """The number of timesteps that were taken before this fit."""
        self.repulsion_ratios: list[Tensor] = []
        """Of every step with repulsion: its norm over that of what it stands beside, summed over this process's shares of measurements."""
        self._fingerprint: str | None = None
        self._finished: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def _start(measurement: Measurement, shape: tuple[int, ...]) -> tuple[Tensor, Tensor] | None:
        start = measurement.start
        if start is not None and start[0].shape != shape:
            raise InputError(
                f"particles that start from latents of shape {shape} are expected, got {tuple(start[0].shape)}"
            )
        return start

    @property
    def prior(self) -> Prior:
        """The latent diffusion prior."""
        return self._frozen["prior"]

    @property
    def features(self) -> nn.Module:
        """The features the kernel compares."""
        return self._frozen["features"]

    @property
    def name(self) -> str:
        """The measurement's name, or the first and the last of several."""
        first, last = self.measurements[0].name, self.measurements[-1].name
        return first if first == last else f"{first} to {last}"

    @property
    def shard(self) -> Shard:
        """Share of the particles that this process computes: all, unless a ParticleStrategy spreads them."""
        strategy = self._trainer.strategy if self._trainer else None
        return strategy.shard if isinstance(strategy, ParticleStrategy) else Shard()

    @property
    def rows(self) -> slice:
        """The particles that this process works on."""
        return self.shard.rows(len(self.z))

    def each(self, *values: Tensor) -> Iterator[tuple]:
        """Every measurement, with its particles' rows of some values."""
        return zip(self.measurements, *(value.split(self.num_particles) for value in values), strict=True)

    def each_here(self, *values: Tensor) -> Iterator[tuple]:
        """Every measurement that this process has particles of, with these particles' rows of this process's values."""
        first, last = self.rows.start, self.rows.stop
        for index, measurement in enumerate(self.measurements):
            start, stop = max(first, index * self.num_particles), min(last, (index + 1) * self.num_particles)
            if start < stop:
                yield measurement, *(value[start - first : stop - first] for value in values)

    def gather(self, mine: Tensor) -> Tensor:
        """All particles' rows of a value of this process's particles."""
        return self.shard.gather(mine, len(self.z))

    @property
    def steps_done(self) -> int:
        """How many of the timesteps have been taken."""
        return self.trainer.fit_loop.epoch_loop.total_batch_idx + 1 if self._trainer else 0

    @abstractmethod
    def reconstructions(self) -> tuple[Tensor, Tensor]:
        """The particles as images, and their decoded latents, both with shape :math:`(M N, *image_shape)`."""

    def pictures(self) -> tuple[Tensor, Tensor]:
        """The reconstructions; those after the last step, which several look at, are made once."""
        if self.steps_done < len(self.timesteps):
            return self.reconstructions()
        if self._finished is None:
            self._finished = self.reconstructions()
        return self._finished

    def decoder_error(self, measurement: Measurement, images: Tensor, decoded: Tensor) -> DecoderError | None:
        """The error that one measurement's reconstructions share; None where they are no proximal steps from decoded latents."""
        return None

    def train_dataloader(self) -> Timesteps:
        return Timesteps(self.timesteps)

    def setup(self, stage: str) -> None:
        if self.trainer.world_size > 1 and not isinstance(self.trainer.strategy, ParticleStrategy):
            raise InputError(
                "the Trainer's strategy must be a ParticleStrategy where there are several devices, got "
                f"{type(self.trainer.strategy).__name__}, which averages the gradients of different particles; pass "
                "strategy=ParticleStrategy() from rlsd_lightning"
            )

    def on_train_epoch_end(self) -> None:
        self.trainer.should_stop = True  # one pass over the timesteps, whatever max_epochs says

    def on_fit_start(self) -> None:
        for module in self._frozen.values():
            module.to(self.device)
        # the caller's operators stay where they are: others may be made from them; what shares one goes on sharing
        operators = copy.deepcopy([each.physics for each in self.measurements])
        self.measurements = [
            each._replace(y=each.y.to(self.device), physics=operator.to(self.device))
            for each, operator in zip(self.measurements, operators, strict=True)
        ]

    def on_train_start(self) -> None:
        self.resumed_at = self.steps_done

    def not_finite(self) -> list[str]:
        """The names of measurements with a particle that is infinite or not a number; waits for the device."""
        every = self.state_dict(keep_vars=True).values()
        states = [value for value in every if value.ndim > 1 and len(value) == len(self.z)]
        mine = [torch.isfinite(value[self.rows]).flatten(1).all(dim=1) for value in states]
        finite = self.gather(torch.stack(mine).all(dim=0).float()).cpu()
        return [measurement.name for measurement, particles in self.each(finite) if not particles.all()]

    def on_after_backward(self) -> None:
        """Every process has the gradients of its own particles; all need those of all."""
        if self.shard.size > 1:
            for particles in (self.z, self.x):
                if particles.grad is not None:
                    particles.grad = self.gather(particles.grad[self.rows])

    def decode(self, z: Tensor) -> Tensor:
        """Images of latents, a chunk of particles at a time."""
        if not len(z):
            return z.new_zeros(0, *self.prior.image_shape)
        return self._chunked(self.prior.decode, z)

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images, a chunk of particles at a time."""
        return self._chunked(self.prior.encode, images)

    def compared(self, z: Tensor, images: Tensor, features: nn.Module | None = None) -> Tensor:
        """The features of particles, a chunk of them at a time; what the kernel compares unless others are given."""
        if not len(z):  # how many features there are, only the network knows
            return self.compared(z.new_zeros(1, *z.shape[1:]), images.new_zeros(1, *images.shape[1:]), features)[:0]
        return self._chunked(self.features if features is None else features, z, images)

    def _chunked(self, function: Callable[..., Tensor], *values: Tensor) -> Tensor:
        if self.particle_chunk is None or self.particle_chunk >= len(values[0]):
            return function(*values)
        chunks = zip(*(value.split(self.particle_chunk) for value in values), strict=True)
        return torch.cat([checkpoint(function, *chunk, use_reentrant=False) for chunk in chunks])

    @torch.no_grad()
    def score(self, z: Tensor, eps: Tensor, t: int) -> Tensor:
        r"""The distillation residual :math:`\hat\epsilon(\alpha_t z + \sigma_t \epsilon, t) - \epsilon` of latents."""
        if not len(z):
            return torch.zeros_like(z)
        z_t = add_noise(z, eps, self.prior.alpha(t), self.prior.sigma(t))
        parts = z_t.split(self.particle_chunk or len(z_t))
        return torch.cat([self.prior.predict_noise(part, t) for part in parts]) - eps

    def noise(self, step: int) -> Tensor:
        """The noise of one step for this process's particles, of the type and on the device of ``z``."""
        return self.keyed_noise("step", step)

    def keyed_noise(self, stream: str, step: int, copies: tuple[int, ...] = ()) -> Tensor:
        r"""One step's noise of a stream for this process's latents, with shape :math:`(n, \mathrm{copies}, \dots)`."""
        shape = (*copies, *self.prior.latent_shape)
        draws = [
            self._draw(measurement, indices, shape, stream, self.first_step + step)
            for measurement, indices in self.each_here(self._index[self.rows])
        ]
        if not draws:
            return self.z.new_empty(0, *shape)
        drawn = torch.cat(draws)
        if self.z.is_cuda:
            drawn = drawn.pin_memory()  # a copy from other memory waits for the device
        return drawn.to(self.z, non_blocking=True)

    def _first_draw(self, stream: str, shape: tuple[int, ...]) -> Tensor:
        return torch.cat([self._draw(*each, shape, stream) for each in self.each(self._index)])

    def _draw(
        self, measurement: Measurement, indices: Tensor, shape: tuple[int, ...], stream: str, step: int = 0
    ) -> Tensor:
        """Noise for some particles of a measurement."""
        key = {"seed": self.seed, "measurement": noise_key(measurement), "stream": stream, "step": step}
        count = self.num_particles
        if not self.hparams.antithetic or count == 1:
            return keyed_normal(shape, indices.tolist(), **key)
        every = keyed_normal(shape, range(count), **key)
        return math.sqrt(count / (count - 1)) * (every - every.mean(dim=0))[indices]

    def repulsion_is_on(self, step: int, sigma_break: int) -> bool:
        """Whether a step's noise level is above that of the gate: the first ``sigma_break`` thousandths of steps."""
        gate = min(int(self.full_length / 1000 * sigma_break), self.full_length - 1)
        return self.first_step + step < gate

    def repulsion_ratio(self) -> float | None:
        """The mean over particles and steps with repulsion, for every process; None if it is not known."""
        ratios = self._mean_ratios()
        return sum(ratios) / len(ratios) if ratios else None

    def _mean_ratios(self) -> list[float]:
        """Of every step with repulsion, the mean over all measurements."""
        if not self.repulsion_ratios:
            return []
        mine = torch.stack([ratio.to(self.z.device) for ratio in self.repulsion_ratios])
        return (self.shard.sum(mine) / len(self.measurements)).tolist()

    def logs(self, batch_idx: int) -> bool:
        """Whether this is a step that the Trainer writes."""
        return self._trainer is not None and (batch_idx + 1) % self.trainer.log_every_n_steps == 0

    def log_step(self, values: dict[str, Tensor], batch_idx: int, prog_bar: bool = False) -> None:
        """Logs sums over particles, a measurement's mean where there are several; costs nothing on most steps."""
        if self.logs(batch_idx):
            sums = self.shard.sum(torch.stack([value.detach().float() for value in values.values()]))
            means = dict(zip(values, sums / len(self.measurements), strict=True))
            self.log_dict(means, prog_bar=prog_bar)

    def log_losses(self, losses: dict[str, Tensor], batch_idx: int) -> None:
        """Logs the terms of the loss, their sum and the noise level."""
        if self.logs(batch_idx):
            losses = {"total": sum(losses.values()), **losses}
            self.log_step({f"loss/{name}": value for name, value in losses.items()}, batch_idx, prog_bar=True)
            self.log("noise_level", self.prior.sigma(self.timesteps[batch_idx]))

    def fingerprint(self) -> str:
        """A digest of what a checkpoint must agree with: settings, particles, schedule, prior, features."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            settings_of_result = {name: value for name, value in self.hparams.items() if name != "particle_chunk"}
            settings = (self.num_particles, self.seed, self.timesteps, type(self).__name__)
            digest.update(repr((settings, sorted(settings_of_result.items()))).encode())
            for module in (self.prior, self.features):
                digest.update(description(module))
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def _computed(self) -> dict[str, Tensor]:
        return {
            f"{kind}.{name}": value
            for kind, module in self._frozen.items()
            for name, value in computed_samples(module).items()
        }

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["fingerprint"] = self.fingerprint()
        checkpoint["samples"] = self.samples
        checkpoint["computed"] = self._computed()
        checkpoint["repulsion_ratios"] = self._mean_ratios()
        if self.shard.size > 1:  # the latents are the same everywhere, the rest is known for one's own particles only
            state = checkpoint["state_dict"]
            for name in sorted(state.keys() - {"z"}):  # in the same order everywhere
                state[name] = self.gather(state[name][self.rows])

    def check_checkpoint(self, checkpoint: dict) -> None:
        """Raises an InputError if a checkpoint is not one of this module's measurements and settings."""
        saved = saved_samples(checkpoint)
        alike = all(name in saved and agree(saved[name], here) for name, here in self.samples.items())
        alike = alike and nearly_agree(checkpoint["computed"], self._computed())
        if checkpoint["fingerprint"] != self.fingerprint() or not alike:
            raise InputError(
                f"the checkpoint belongs to measurement '{', '.join(saved)}' of a run with another measurement, "
                "operator, prior, features, method or number of particles or steps than "
                f"'{self.name}' here; resume with the settings it was made with"
            )

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.check_checkpoint(checkpoint)
        # one that was saved after the last step would let the Trainer do nothing, not even write the results
        for counts in checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {}).values():
            counts.update(processed=0, completed=0)
        share = len(self.measurements) / self.shard.size
        self.repulsion_ratios = [torch.tensor(ratio * share) for ratio in checkpoint["repulsion_ratios"]]
        names = list(checkpoint["samples"])
        kept = torch.cat(
            [names.index(name) * self.num_particles + torch.arange(self.num_particles) for name in self.samples]
        )
        _keep_rows(checkpoint["state_dict"], kept)
        for optimizer in checkpoint.get("optimizer_states", []):
            for state in optimizer["state"].values():
                _keep_rows(state, kept)


def saved_samples(checkpoint: dict) -> dict[str, dict[str, Tensor]]:
    """What a checkpoint knows of its measurements, by their names.

    Raises:
        InputError: If it was not made by this version.
    """
    if not {"samples", "computed", "fingerprint"} <= checkpoint.keys():
        raise InputError(
            "the checkpoint was made by another version of rlsd_lightning or another program; remove it to begin again"
        )
    return checkpoint["samples"]


def noise_key(measurement: Measurement) -> int:
    """What keys the noise of a measurement's particles."""
    return measurement_key(measurement.series or measurement.name)


def _keep_rows(state: dict[str, Tensor], rows: Tensor) -> None:
    """Keeps the particles of the measurements that go on; everything but Adam's counters has a row per particle."""
    for name, value in state.items():
        if isinstance(value, Tensor) and value.ndim:
            state[name] = value[rows.to(value.device)]


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
