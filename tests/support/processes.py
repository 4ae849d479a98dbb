"""Modules that are one of several processes, without the others; and real processes without a command line."""

import os
import pickle
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from rlsd_lightning.distributed.shard import Shard
from rlsd_lightning.distributed.strategy import join_group, leave_group
from rlsd_lightning.methods.base import ParticleModule


def as_process(module: ParticleModule, position: int, size: int, shard: type[Shard] = Shard) -> ParticleModule:
    """Gives a module the shard that a ParticleStrategy of a process in a group has; returns the module."""
    kind = type(module)
    if not hasattr(kind, "of_a_process"):
        # a property of the class can't be set on one object
        module.__class__ = type(kind.__name__, (kind,), {"shard": None, "of_a_process": True})
    type(module).shard = shard(position, size)
    return module


class Group:
    """What a run needs of its processes, for a group that has been joined."""

    def __init__(self, shard: Shard) -> None:
        self.shard, self.group, self.groups, self.size, self.rank = shard, 0, 1, shard.size, shard.position
        self.is_first, self.device = shard.position == 0, torch.device("cpu")

    def form_groups(self, parallel: str, batches: int) -> None:
        """There is one group."""

    def broadcast(self, value: int | None) -> int | None:
        values = [value]
        distributed.broadcast_object_list(values)
        return values[0]

    def sum(self, value: int, check: Callable[[], None]) -> int:
        return int(self.shard.sum(torch.tensor(value)).item())


def forked(folder: Path, size: int, work: Callable[[Group], Any]) -> list[Any]:
    """What work returns in each process of a group, which are forks of this one; their output is their own."""
    children = [_fork(folder, position, size, work) for position in range(size)]
    codes = [os.waitpid(child, 0)[1] for child in children]
    files = [folder / f"process{position}" for position in range(size)]
    assert codes == [0] * size, [file.read_bytes() for file in files if file.exists()]
    return [pickle.loads(file.read_bytes()) for file in files]


def _fork(folder: Path, position: int, size: int, work: Callable[[Group], Any]) -> int:
    child = os.fork()
    if child:
        return child
    code, file = 1, folder / f"process{position}"
    try:
        os.environ |= {"LOCAL_RANK": str(position), "MASTER_ADDR": "127.0.0.1"}
        store = distributed.FileStore(str(folder / "store"), size)
        join_group(store, position, size, torch.device("cpu"), timedelta(seconds=120))
        file.write_bytes(pickle.dumps(work(Group(Shard(position, size)))))
        leave_group()
        code = 0
    except BaseException:  # noqa: BLE001  the parent reads it
        file.write_text(traceback.format_exc())
    finally:
        os._exit(code)
