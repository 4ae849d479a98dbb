"""The Lightning strategy that spreads the particles of a fit over processes."""

import atexit
import functools
import logging
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch import distributed

from rlsd_lightning.distributed.shard import Shard, agree, collective
from rlsd_lightning.errors import InputError, LostError, first_line

__all__ = ["STOP", "ParticleStrategy", "join_group", "leave_group"]

log = logging.getLogger(__name__)

STOP = getattr(signal, "SIGUSR1", signal.SIGTERM)
"""Signal by which a process asks those that it launched to stop after their step."""
PARENT = "RLSD_PARENT"
"""Environment variable with the process id of the one that launched the others."""

RENDEZVOUS_TIMEOUT = timedelta(minutes=10)
"""Time that processes have to find each other, unless the patience is longer."""


def _after_agreement(exchange: Callable) -> Callable:
    """An exchange of a strategy that raises a PeerError if another process has failed."""

    @functools.wraps(exchange)
    def wrapped(self: "ParticleStrategy", *arguments: Any, **options: Any) -> Any:
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            agree()
        with collective():
            return exchange(self, *arguments, **options)

    return wrapped


class ParticleStrategy(DDPStrategy):
    """Spreads the particles of a fit over processes, one per device, and averages no gradients.

    Each process holds the latents and the optimizer's state of all particles. It evaluates the networks on its own rows
    only, and gathers the other rows' gradients before the optimizer steps. Lightning's launcher, torchrun or SLURM
    start the processes. The world of the Trainer and its callbacks is torch's default process group, which may be a
    part of all processes: groups are independent.

    Args:
        patience: Timeout of an exchange between processes, in seconds, at least 1. Longer than any pause between two
            steps, such as compilation or writing results.

    Raises:
        InputError: If ``patience`` is out of range, or the processes don't find each other.
        LostError: If another process ends, or is silent for longer than ``patience``.

    Example:
        >>> L.Trainer(devices=2, strategy=ParticleStrategy()).fit(RLSD(...))  # doctest: +SKIP
    """

    def __init__(self, patience: float = 600) -> None:
        if not isinstance(patience, int | float) or not 1 <= patience < math.inf:
            raise InputError(f"patience must be a number of seconds, at least 1, got {patience}")
        self.patience = timedelta(seconds=patience)
        super().__init__(timeout=self.patience)

    @property
    def shard(self) -> Shard:
        """The rows of this process in its group."""
        return Shard(self.global_rank, self.world_size)

    @property
    def is_grouped(self) -> bool:
        """Whether this process has joined a group."""
        return self.num_nodes * self.num_processes > 1 and distributed.is_initialized()

    @property
    def global_rank(self) -> int:
        """Rank in the group; before there is one, among all processes."""
        return distributed.get_rank() if self.is_grouped else super().global_rank

    @property
    def world_size(self) -> int:
        """Number of processes in the group; before there is one, of all."""
        return distributed.get_world_size() if self.is_grouped else super().world_size

    def _configure_launcher(self) -> None:
        if self.num_nodes * self.num_processes > 1:
            self._launcher = _Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    def setup_distributed(self) -> None:
        """Join a group of all processes, unless an earlier Trainer or the runner has formed one."""
        if self.world_size > 1 and not distributed.is_initialized():
            join_group(self.rendezvous(), self.global_rank, self.world_size, self.root_device, self.patience)
            atexit.register(leave_group)
        self.set_world_ranks()

    def rendezvous(self) -> distributed.Store:
        """Key-value store of all processes, once all have connected to it.

        Raises:
            InputError: If they don't within the rendezvous timeout.
        """
        environment, size = self.cluster_environment, self.world_size
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
        timeout = max(RENDEZVOUS_TIMEOUT, self.patience)
        try:
            with _ending_with_parent():
                store, *_ = next(distributed.rendezvous("env://", self.global_rank, size, timeout=timeout))
                store = distributed.PrefixStore("rlsd", store)
                if store.add("arrived", 1) == size:  # a store of torchrun's does not wait for all
                    store.set("complete", b"")
                store.wait(["complete"], timeout)
        except distributed.DistError as error:
            raise InputError(
                f"the {size} processes of this run did not find each other ({first_line(error)}); start all of "
                "them, with the same MASTER_ADDR and MASTER_PORT, and where each can be reached by the others"
            ) from error
        return store

    def setup(self, trainer: L.Trainer) -> None:
        # before each step Lightning broadcasts whether SIGTERM came, past the agreement, so that all would wait for one that failed
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = agree
        super().setup(trainer)

    def configure_ddp(self) -> None:
        """Leave the module unwrapped, as DistributedDataParallel would average its gradients."""

    def on_exception(self, exception: BaseException) -> None:
        if isinstance(exception, LostError):
            self.end()

    def end(self, grace: float = 10.0, ask: bool = False) -> None:
        """Leave the group, and end the processes that this one launched, by force after ``grace`` seconds.

        Args:
            grace: Seconds.
            ask: Ask them at once to stop after their step, and give them the patience before.
        """
        launched = [] if self.launcher is None else self.launcher.procs.copy()
        if launched:
            self.launcher.procs.clear()  # Lightning kills this process when one of them fails, even while it says why
        leave_group()
        for process in launched if ask else ():
            process.send_signal(STOP)
        deadline = time.monotonic() + (self.patience.total_seconds() if ask else 0)
        for process in launched:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0, deadline - time.monotonic()))
            for stop in (process.terminate, process.kill):
                try:
                    process.wait(grace)
                except subprocess.TimeoutExpired:
                    stop()
            process.wait()

    # what Lightning and callbacks exchange
    barrier = _after_agreement(DDPStrategy.barrier)
    broadcast = _after_agreement(DDPStrategy.broadcast)
    reduce = _after_agreement(DDPStrategy.reduce)
    all_gather = _after_agreement(DDPStrategy.all_gather)


def join_group(store: distributed.Store, rank: int, size: int, device: torch.device, patience: timedelta) -> None:
    """Make torch's default process group of the processes that share a store; ``patience`` is its timeout.

    A GPU's tensors go through NCCL, those of the CPU through gloo.
    """
    backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl"
    with collective():
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)


def leave_group() -> None:
    """End this process's part in its group, if it has one; those that wait for it get an error at once."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


class _Launcher(_SubprocessScriptLauncher):
    """Lightning's launcher, which also tells the processes who their parent is."""

    def launch(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        if not self.cluster_environment.creates_processes_externally:
            os.environ[PARENT] = str(os.getpid())
        return super().launch(function, *args, **kwargs)


@contextmanager
def _ending_with_parent() -> Iterator[None]:
    """During the rendezvous, ends this process when its parent is gone.

    Nothing else would for minutes: it waits for others, which the parent may have been one of. The parent's id comes
    from the environment, since it may be gone before this process looks.
    """
    me = os.getpid()
    parent = int(os.environ.pop(PARENT, os.getppid()))
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            if os.getppid() != parent:
                log.error("process %s: error: the process that started it is gone", os.environ.get("LOCAL_RANK", ""))
                os._exit(1)

    if parent != me and "LOCAL_RANK" in os.environ:  # a shell may be gone
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()
