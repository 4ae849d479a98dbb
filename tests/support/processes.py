"""Modules that are one of several processes, without the others."""

from rlsd_lightning.distributed.shard import Shard
from rlsd_lightning.methods.base import ParticleModule


def as_process(module: ParticleModule, position: int, size: int, shard: type[Shard] = Shard) -> ParticleModule:
    """Gives a module the shard that a ParticleStrategy of a process in a group has; returns the module."""
    kind = type(module)
    if not hasattr(kind, "of_a_process"):
        # a property of the class can't be set on one object
        module.__class__ = type(kind.__name__, (kind,), {"shard": None, "of_a_process": True})
    type(module).shard = shard(position, size)
    return module
