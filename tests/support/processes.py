"""One of several processes, without the others."""

from rlsd_lightning.distributed.ranks import Shard

from rlsd_lightning.methods.base import ParticleModule


def as_process(module: ParticleModule, position: int, size: int, shard: type[Shard] = Shard) -> ParticleModule:
    """The module as the process at a position of ``size`` processes has it."""
    module.shard = shard(position, size)
    return module
