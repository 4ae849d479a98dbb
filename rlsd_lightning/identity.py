"""Checkpoint identity: fingerprint of a run, compared before another run resumes from its checkpoint."""

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from rlsd_lightning.distributed.shard import Shard
from rlsd_lightning.errors import InputError
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.operators.compose import operator_output
from rlsd_lightning.priors import Prior

__all__ = ["CheckpointIdentity", "keep_particles", "same_output", "same_tensors", "samples", "saved_samples"]


class CheckpointIdentity:
    """Fingerprint of a run in its checkpoints.

    Args:
        settings: Plain values with a ``repr`` of their own.
        networks: Frozen networks by name; the identity has their classes, plain attributes, and samples of their weights.
        measurements: Measurements; the identity has their :func:`samples`.
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
        """Hexadecimal digest of the settings and the networks."""
        digest = hashlib.sha256(self._settings)
        for network in self._networks.values():
            digest.update(description(network))
        return digest.hexdigest()

    def _computed(self) -> dict[str, Tensor]:
        """Samples of the buffers that networks have computed themselves, each in its own type."""
        return {
            f"{kind}.{name}": sampled(network.get_buffer(name)).to(network.get_buffer(name).dtype)
            for kind, network in self._networks.items()
            for name in computed_names(network)
        }

    def _has_tiny_decoder(self) -> bool:
        return any(isinstance(each, Prior) and each.has_tiny_decoder for each in self._networks.values())

    def check_processes(self, shard: Shard) -> None:
        """Compare the measurements and operators of a group's processes, which make or read them by themselves.

        Raises:
            InputError: If they differ, in every process.
        """
        if shard.size == 1:
            return
        mine = {
            name: {part: sampled(value, 64) for part, value in parts.items()} for name, parts in self.samples.items()
        }
        first, *others = shard.objects(mine)
        for rank, other in enumerate(others, 1):
            if not all(
                same_tensors(first.get(name, {}), other.get(name, {}), same_measurement) for name in first | other
            ):
                raise InputError(
                    "all processes must have the same measurements and operators, but those of process "
                    f"{rank} ({', '.join(other)}) differ from those of process 0 ({', '.join(first)}); each runs the whole "
                    "script: draw noise and masks after torch.manual_seed, or load them from a file"
                )

    def save(self, checkpoint: dict) -> None:
        """Add the identity to a checkpoint."""
        checkpoint |= {"identity": self.digest, "samples": self.samples, "computed": self._computed()}
        checkpoint["has_tiny_decoder"] = self._has_tiny_decoder()

    def check(self, checkpoint: dict) -> None:
        """Compare a checkpoint, which may have further measurements.

        Raises:
            InputError: If it belongs to another run.
        """
        saved = saved_samples(checkpoint)
        if checkpoint.get("has_tiny_decoder", here := self._has_tiny_decoder()) != here:
            made, now = ("without", "with") if here else ("with", "without")
            raise InputError(
                f"the checkpoint was made {made} a tiny decoder, but the prior was loaded {now} one; "
                + ("set tiny_decoder=null" if here else "fetch it, or set tiny_decoder to its folder")
            )
        alike = all(
            name in saved and same_tensors(saved[name], here, same_measurement) for name, here in self.samples.items()
        )
        alike = alike and same_tensors(checkpoint["computed"], self._computed(), same_output)
        if checkpoint["identity"] != self.digest or not alike:
            raise InputError(
                f"the checkpoint belongs to measurement '{', '.join(saved)}' of a run with another measurement, "
                "operator, prior, features, method or number of particles or steps than "
                f"'{', '.join(self.samples)}' here; resume with the settings it was made with"
            )


def saved_samples(checkpoint: dict) -> dict[str, dict[str, Tensor]]:
    """Samples of a checkpoint's measurements by name.

    Raises:
        InputError: If the checkpoint was not made by this version.
    """
    if not {"samples", "computed", "identity"} <= checkpoint.keys():
        raise InputError(
            "the checkpoint was made by another version of rlsd_lightning or another program; remove it to begin again"
        )
    return checkpoint["samples"]


def keep_particles(checkpoint: dict, names: Iterable[str], num_particles: int) -> None:
    """Reduce a checkpoint to the particles of some measurements, in this order, and reopen its training loop.

    Else the Trainer would do nothing after the last step, not even write the results.
    """
    for counts in checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {}).values():
        counts.update(processed=0, completed=0)
    saved = list(checkpoint["samples"])
    rows = torch.cat([saved.index(name) * num_particles + torch.arange(num_particles) for name in names])
    states = [checkpoint["state_dict"]]
    states += [state for each in checkpoint.get("optimizer_states", []) for state in each["state"].values()]
    for state in states:
        for name, value in state.items():
            if isinstance(value, Tensor) and value.ndim and len(value) == len(saved) * num_particles:
                # all but Adam's counters and a method's other state have a row for each particle
                state[name] = value[rows.to(value.device)]


def description(module: nn.Module) -> bytes:
    """A network's class, its plain settings, and samples of the tensors that it has not computed itself."""
    plain = {name: value for name, value in vars(module).items() if isinstance(value, int | float | str)}
    plain.pop("training", None)
    parts = [repr((type(module).__name__, sorted(plain.items()))).encode()]
    computed = computed_names(module)
    for name, tensor in module.state_dict().items():
        parts.append(repr((name, tuple(tensor.shape))).encode())
        if name not in computed:
            parts.append(sampled(tensor).numpy().tobytes())
    return b"".join(parts)


def computed_names(module: nn.Module) -> tuple[str, ...]:
    """Buffers that a network has computed itself: a prior's levels, and the embeddings of its prompts."""
    return module.computed_names if isinstance(module, Prior) else ()


def same_measurement(saved: Tensor, here: Tensor) -> bool:
    """Whether samples of measurements and operators are equal up to the rounding of processors."""
    return torch.allclose(saved, here, rtol=1e-3, atol=1e-5)


def same_output(saved: Tensor, here: Tensor) -> bool:
    """Whether networks' outputs are equal up to the rounding of processors; those of two prompts differ by over 10 %."""
    if not here.is_floating_point():  # a prompt's mask
        return torch.equal(saved.cpu(), here.cpu())
    share = max(1e-5, 8 * torch.finfo(here.dtype).eps)
    saved, here = saved.cpu().double(), here.cpu().double()  # Apple's GPU has no float64
    return bool(torch.dist(saved, here) <= share * here.norm())


def same_tensors(saved: dict[str, Tensor], here: dict[str, Tensor], same: Callable[[Tensor, Tensor], bool]) -> bool:
    """Whether two sets of tensors have the same names and shapes, and each pair is the same."""
    return saved.keys() == here.keys() and all(
        saved[name].shape == value.shape and same(saved[name], value) for name, value in here.items()
    )


def samples(measurement: Measurement, image_shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Samples of a measurement, of its operator's output for a test pattern, and of its particles' start.

    Raises:
        InputError: If the operator does not fit images of this shape, or the measurement.
    """
    parts = {"y": sampled(measurement.y), "operator": sampled(probe(measurement, image_shape))}
    if measurement.start is not None:
        parts["start"] = sampled(measurement.start[0])
    return parts


def sampled(tensor: Tensor, most: int = 4096) -> Tensor:
    """Evenly spread elements of a tensor, and their mean."""
    flat = torch.view_as_real(tensor.detach()).flatten() if tensor.is_complex() else tensor.detach().flatten()
    picked = flat[:: max(1, flat.numel() // most)].cpu().double()
    return torch.cat((picked, picked.mean()[None])) if picked.numel() else picked


def probe(measurement: Measurement, image_shape: tuple[int, ...]) -> Tensor:
    """The operator's output for a test pattern.

    Raises:
        InputError: If the operator does not fit the images or the measurement.
    """
    y = measurement.y
    measured = operator_output(measurement.physics, image_shape, like=y)
    if measured.shape != y.shape:
        remedy = "crop or resize it, or make the operator for it"
        if y.ndim < measured.ndim:
            remedy = "add the batch's axis by y[None]"
        elif y.shape[1:] == measured.shape[1:]:
            remedy = "solve one at a time, or use a Reconstructor"
        raise InputError(
            f"{type(measurement.physics).__name__} turns the prior's images of shape {image_shape} into measurements "
            f"of shape {tuple(measured.shape)}, but '{measurement.name}' has shape {tuple(y.shape)}; {remedy}"
        )
    if measured.is_complex() != y.is_complex():
        raise InputError(
            f"{type(measurement.physics).__name__} measures {measured.dtype}, but '{measurement.name}' has {y.dtype}; "
            "give its real part, or an operator with complex output"
        )
    return measured
