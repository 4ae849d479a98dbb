"""Checkpoint identity: what a checkpoint must agree with before a run resumes from it."""

import functools
import hashlib
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from rlsd_lightning.errors import InputError, first_line
from rlsd_lightning.measurement import Measurement

__all__ = [
    "CheckpointIdentity",
    "agree",
    "computed_samples",
    "keep_particles",
    "nearly_agree",
    "samples",
    "saved_samples",
]


class CheckpointIdentity:
    """What a checkpoint holds of its run, to be compared with the run that resumes from it.

    Args:
        settings: Plain values with a ``repr`` of their own.
        networks: The frozen networks by name: their classes, plain attributes, and samples of their weights count.
        measurements: Samples of each, of what its operator makes of a pattern, and of its start count.
        image_shape: Shape of an image.

    Raises:
        InputError: If an operator does not fit images of this shape, or its measurement.
    """

    def __init__(
        self,
        settings: object,
        networks: Mapping[str, nn.Module],
        measurements: Iterable[Measurement],
        image_shape: tuple[int, ...],
    ) -> None:
        self._settings, self._networks = repr(settings).encode(), networks
        self.samples = {measurement.name: samples(measurement, image_shape) for measurement in measurements}

    @functools.cached_property
    def digest(self) -> str:
        """Of the settings and the networks, in hexadecimal."""
        digest = hashlib.sha256(self._settings)
        for network in self._networks.values():
            digest.update(description(network))
        return digest.hexdigest()

    def _computed(self) -> dict[str, Tensor]:
        return {
            f"{kind}.{name}": value
            for kind, network in self._networks.items()
            for name, value in computed_samples(network).items()
        }

    def save(self, checkpoint: dict) -> None:
        """Adds the identity to a checkpoint."""
        checkpoint |= {"identity": self.digest, "samples": self.samples, "computed": self._computed()}

    def check(self, checkpoint: dict) -> None:
        """Compares a checkpoint; it may hold further measurements.

        Raises:
            InputError: If it belongs to another run.
        """
        saved = saved_samples(checkpoint)
        alike = all(name in saved and agree(saved[name], here) for name, here in self.samples.items())
        alike = alike and nearly_agree(checkpoint["computed"], self._computed())
        if checkpoint["identity"] != self.digest or not alike:
            raise InputError(
                f"the checkpoint belongs to measurement '{', '.join(saved)}' of a run with another measurement, "
                "operator, prior, features, method or number of particles or steps than "
                f"'{', '.join(self.samples)}' here; resume with the settings it was made with"
            )


def saved_samples(checkpoint: dict) -> dict[str, dict[str, Tensor]]:
    """The samples of a checkpoint's measurements, by their names.

    Raises:
        InputError: If the checkpoint was not made by this version.
    """
    if not {"samples", "computed", "identity"} <= checkpoint.keys():
        raise InputError(
            "the checkpoint was made by another version of rlsd_lightning or another program; remove it to begin again"
        )
    return checkpoint["samples"]


def keep_particles(checkpoint: dict, names: Iterable[str], num_particles: int) -> None:
    """Keeps the particles of some of a checkpoint's measurements, in the order of ``names``, and drops the others."""
    saved = list(checkpoint["samples"])
    rows = torch.cat([saved.index(name) * num_particles + torch.arange(num_particles) for name in names])
    states = [checkpoint["state_dict"]]
    states += [state for each in checkpoint.get("optimizer_states", []) for state in each["state"].values()]
    for state in states:
        for name, value in state.items():
            if isinstance(value, Tensor) and value.ndim:  # all but Adam's counters have a row for each particle
                state[name] = value[rows.to(value.device)]


def description(module: nn.Module) -> bytes:
    """A network's class, its plain settings, and samples of its tensors but for those that it has computed itself."""
    plain = {name: value for name, value in vars(module).items() if isinstance(value, int | float | str)}
    plain.pop("training", None)
    parts = [repr((type(module).__name__, sorted(plain.items()))).encode()]
    computed = _computed(module)
    for name, tensor in module.state_dict().items():
        parts.append(repr((name, tuple(tensor.shape))).encode())
        if name not in computed:
            parts.append(sampled(tensor).numpy().tobytes())
    return b"".join(parts)


def _computed(module: nn.Module) -> tuple[str, ...]:
    """Tensors that every processor rounds in its own way: a prior's levels, and the embeddings of its prompts."""
    return ("alphas", "sigmas", *getattr(module, "condition_names", ()))


def computed_samples(module: nn.Module) -> dict[str, Tensor]:
    """Samples of what a network has computed itself, of the type that it has it in."""
    buffers = dict(module.named_buffers())
    return {name: sampled(buffers[name]).to(buffers[name].dtype) for name in _computed(module) if name in buffers}


def nearly_agree(saved: dict[str, Tensor], here: dict[str, Tensor]) -> bool:
    """Whether two networks have computed the same, but for what a processor rounds."""
    return saved.keys() == here.keys() and all(
        saved[name].shape == value.shape
        and torch.dist(saved[name].double(), value.double()) <= _rounding(value.dtype) * value.double().norm()
        for name, value in here.items()
    )


def _rounding(dtype: torch.dtype) -> float:
    """How far, as a share, networks' outputs are from each other on two processors; two prompts' are by tens of per cent."""
    return max(1e-5, 8 * torch.finfo(dtype).eps)


def samples(measurement: Measurement, image_shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Samples of a measurement, of what its operator makes of a pattern, and of what its particles start from.

    Raises:
        InputError: If the operator does not fit images of this shape, or the measurement.
    """
    parts = {"y": sampled(measurement.y), "operator": sampled(probe(measurement, image_shape))}
    if measurement.start is not None:
        parts["start"] = sampled(measurement.start[0])
    return parts


def agree(saved: dict[str, Tensor], here: dict[str, Tensor]) -> bool:
    """Whether two sets of samples are of the same thing, perhaps computed on another machine."""
    return saved.keys() == here.keys() and all(
        saved[name].shape == value.shape and torch.allclose(saved[name], value, rtol=1e-3, atol=1e-5)
        for name, value in here.items()
    )


def sampled(tensor: Tensor, most: int = 4096) -> Tensor:
    """Some elements of a tensor, evenly spread, and its mean: tells two apart and costs nothing for gigabytes."""
    flat = torch.view_as_real(tensor.detach()).flatten() if tensor.is_complex() else tensor.detach().flatten()
    picked = flat[:: max(1, flat.numel() // most)].cpu().double()
    return torch.cat((picked, picked.mean()[None])) if picked.numel() else picked


@torch.no_grad()
def probe(measurement: Measurement, image_shape: tuple[int, ...]) -> Tensor:
    """What the operator makes of a pattern; refuses one that does not fit."""
    count = math.prod(image_shape)
    pattern = torch.linspace(0, 40 * math.pi, count, device=measurement.y.device).sin().view(1, *image_shape)
    try:
        measured = measurement.physics.A(pattern)
    except (RuntimeError, ValueError, IndexError) as error:
        raise InputError(
            f"{type(measurement.physics).__name__} does not take images of shape {image_shape}, which the prior makes "
            f"({first_line(error)})"
        ) from error
    if measured.shape != measurement.y.shape:
        raise InputError(
            f"{type(measurement.physics).__name__} turns the prior's images of shape {image_shape} into measurements "
            f"of shape {tuple(measured.shape)}, but '{measurement.name}' has shape {tuple(measurement.y.shape)}"
        )
    return measured
