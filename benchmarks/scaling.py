"""Several processes against one, bytes that a step exchanges, and what checkpoints cost.

python benchmarks/scaling.py --json build/scaling.json

Runs train.py on the embedded prior with one thread a process, one and two processes in turn, in both modes: each process
its own measurement with four particles, and both the eight particles of one measurement. --accelerator gpu --processes 4
compares one and four GPUs, see gpus.sh. A callback keeps the time of
every step's end. Throughput counts the particle-steps in the time in which every process is stepping, so neither starting
nor the first steps, nor waiting for the slower of two, are in it; curves, pictures and checkpoints are. All ratios are
those of runs one after the other, a median over rounds.

A step's bytes are what a process receives in the collectives that it calls, checkpoints' and curves' included, a mean over
the run; in an all-reduce it receives as much as in a ring. The least possible are the others' gradients: every process
holds all latents, so the kernel in latents needs no more than these. A checkpoint's cost is the share of the time from the
first step to the last that is spent in saving, a median over all runs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor, distributed

from rlsd_lightning.methods.base import ParticleModule

PROJECT = Path(__file__).resolve().parents[1]
MODES = {  # settings for a number of processes, and the goal for the ratio of two to one
    "measurements": (lambda processes: ["num_particles=4", f"data.limit={processes}"], 1.9),
    "particles": (lambda processes: ["num_particles=8", "data.limit=1"], 1.7),
}


class Clock(Callback):
    """Keeps the time of each step's end, the bytes received and the seconds spent saving; writes them to a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.times: list[float] = []
        self.received: list[int] = []
        self.saving: list[float] = []
        self._bytes, self._seconds = 0, 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: ParticleModule) -> None:
        others = pl_module.shard.size - 1
        self._count(distributed, "all_gather", lambda _, mine: others * _size(mine))
        self._count(distributed, "all_reduce", lambda value: 2 * others * _size(value) // (others + 1))
        save = trainer.save_checkpoint

        def timed(*args, **kwargs) -> None:
            start = time.perf_counter()
            save(*args, **kwargs)
            self._seconds += time.perf_counter() - start

        trainer.save_checkpoint = timed

    def _count(self, module: object, name: str, received: Callable[..., int]) -> None:
        collective = getattr(module, name)

        def counted(*tensors, **kwargs) -> object:
            self._bytes += received(*tensors)
            return collective(*tensors, **kwargs)

        setattr(module, name, counted)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: ParticleModule, *_) -> None:
        self.times.append(time.monotonic())  # the same clock in all processes of a machine
        self.received.append(self._bytes)
        self.saving.append(self._seconds)

    def on_train_end(self, trainer: L.Trainer, pl_module: ParticleModule) -> None:
        mine = len(pl_module.z[pl_module.rows])
        kept = {
            "times": self.times,
            "particles": mine,
            "bytes": self.received[-1] / len(self.times),
            "least_bytes": (len(pl_module.z) - mine) * _size(pl_module.z[0]),
            "saving": self.saving[-1] / (self.times[-1] - self.times[0]),
        }
        (self.folder / f"{os.getpid()}.json").write_text(json.dumps(kept))


def _size(value: Tensor) -> int:
    return value.numel() * value.element_size()


def throughput(processes: Sequence[dict], warm_up: int) -> float:
    """Particle-steps a second while all processes are stepping.

    Args:
        processes: The ``times`` of each one's steps in seconds, and its number of ``particles``.
        warm_up: First steps that are left out.
    """
    start = max(process["times"][warm_up - 1] for process in processes)
    end = min(process["times"][-1] for process in processes)
    taken = 0.0
    for process in processes:
        for since, until in pairwise(process["times"]):
            # of a step that reaches over an end, its share
            taken += process["particles"] * max(0.0, min(until, end) - max(since, start)) / (until - since)
    return taken / (end - start)


def run(processes: int, mode: str, args: argparse.Namespace) -> list[dict]:
    """What the clock of each process kept in one run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(
                sys.executable,
                str(PROJECT / "train.py"),
                f"trainer.accelerator={args.accelerator}",
                f"trainer.devices={processes}",
            ),
            *(f"parallel={mode}", f"num_steps={args.steps}", f"output_dir={folder}/run"),
            *("+callbacks.clock._target_=scaling.Clock", f"+callbacks.clock.folder={folder}"),
            *MODES[mode][0](processes),
            *args.settings,
        ]
        path = os.pathsep.join([str(PROJECT), str(Path(__file__).parent)])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        kept = [json.loads(file.read_text()) for file in Path(folder).glob("*.json")]
        if done.returncode or len(kept) != processes:
            sys.exit(f"{' '.join(command)}\nended with exit code {done.returncode}:\n{done.stdout}{done.stderr}")
        return kept


def measure(mode: str, args: argparse.Namespace) -> dict[str, float]:
    """All figures of one mode."""
    rates: dict[int, list[float]] = {1: [], args.processes: []}
    savings: list[float] = []
    for _ in range(args.rounds):
        for count, kept in rates.items():
            clocks = run(count, mode, args)
            kept.append(throughput(clocks, args.warm_up))
            savings.append(max(clock["saving"] for clock in clocks))
            print(f"  {count}: {kept[-1]:.3g} particle-steps a second, {savings[-1]:.2%} saving", flush=True)
    ratios = [several / one for one, several in zip(*rates.values(), strict=True)]
    figures = {
        **{f"particle_steps_a_second_{count}": statistics.median(kept) for count, kept in rates.items()},
        "ratio": statistics.median(ratios),
        "lowest_ratio": min(ratios),
        "checkpoint_share": statistics.median(savings),
        "bytes_per_step": max(clock["bytes"] for clock in clocks),
    }
    if mode == "particles":
        figures["least_bytes_per_step"] = max(clock["least_bytes"] for clock in clocks)
    return figures


def main() -> None:
    """Measures both modes and prints the figures."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--accelerator", default="cpu", help="cpu or gpu")
    options.add_argument("--processes", type=int, default=2, help="compared with one, at least 2")
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--warm-up", type=int, default=10, help="first steps that are not timed, at least 1")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--json", type=Path, help="also write the figures to this file")
    options.add_argument("settings", nargs="*", help="further settings of train.py")
    args = options.parse_args()
    results = {}
    for mode, (_, bar) in MODES.items():
        print(f"parallel={mode}", flush=True)
        results[mode] = measure(mode, args)
        for name, value in results[mode].items():
            goal = f"  (goal: {bar})" if name == "ratio" and args.processes == 2 else ""
            print(f"  {name:28} {value:.4g}{goal}", flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
