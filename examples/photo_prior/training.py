"""What the two trainings share: a resumable loop whose length is a number of steps or of minutes."""

import argparse
import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

__all__ = ["Progress", "best_device", "learning_rate", "parser", "train"]

WARMUP = 200
"""Steps in which the learning rate rises."""
MAX_DECAY = 0.999
"""Decay of the average of weights after the first steps."""


@dataclass
class Progress:
    """How much of a training is done, the time before a resume included.

    Args:
        steps: Steps of the whole training; counts if ``minutes`` is None.
        minutes: Minutes of the whole training, compilation included; None for no limit of time.
        step: Steps done.
        seconds: Seconds spent.
    """

    steps: int
    minutes: float | None
    step: int = 0
    seconds: float = 0.0

    @property
    def share(self) -> float:
        """Share that is done, from 0 to 1."""
        if self.minutes is None:
            return min(1.0, self.step / max(1, self.steps))
        return min(1.0, self.seconds / max(1e-9, 60 * self.minutes))


def learning_rate(highest: float, progress: Progress) -> float:
    """Linear rise over the first steps, cosine decay to zero over the whole training."""
    rise = min(1.0, (progress.step + 1) / WARMUP)
    return highest * rise * 0.5 * (1 + math.cos(math.pi * progress.share))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int) -> None:
    """Exponential moving average of the weights; its memory grows over the first steps."""
    decay = min(MAX_DECAY, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def save_checkpoint(path: Path, model: nn.Module, average: nn.Module, optimizer: Optimizer, progress: Progress) -> None:
    """Writes the whole state beside the old file first, so that one of them is always complete."""
    state = {
        name: part.state_dict() for name, part in (("model", model), ("average", average), ("optimizer", optimizer))
    }
    partial = path.with_suffix(".partial")
    torch.save({**state, "progress": asdict(progress)}, partial)
    partial.replace(path)


def load_checkpoint(path: Path, model: nn.Module, average: nn.Module, optimizer: Optimizer, progress: Progress) -> None:
    """Restores the state of a training; its length stays as the command line says."""
    state = torch.load(path, map_location="cpu")
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    progress.step, progress.seconds = state["progress"]["step"], state["progress"]["seconds"]


def train(model: nn.Module, loss: Callable[[], dict[str, Tensor]], args: argparse.Namespace, path: Path) -> nn.Module:
    """Minimises a loss, from its checkpoint if there is one.

    Args:
        model: The network, on its device.
        loss: Draws a batch and returns figures to print; ``loss`` among them is minimised.
        args: Options of :func:`parser`.
        path: File of the checkpoint.

    Returns:
        The average of the weights over the last steps, in evaluation mode.

    Raises:
        RuntimeError: If the loss is no longer finite.
    """
    average = copy.deepcopy(model).eval().requires_grad_(False)
    device = next(model.parameters()).device
    optimizer = AdamW(model.parameters(), args.lr, (0.9, 0.99), weight_decay=1e-3, fused=device.type == "cuda")
    progress = Progress(args.steps, args.minutes)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        load_checkpoint(path, model, average, optimizer, progress)
    began, saved = time.monotonic() - progress.seconds, time.monotonic()
    while progress.share < 1:
        figures = _step(model, loss, optimizer, learning_rate(args.lr, progress))
        update_average(average, model, progress.step)
        progress.step += 1
        if progress.step % args.log_every == 0:
            _print(figures, progress)  # waits for the device, so that the clock is right
        progress.seconds = time.monotonic() - began
        if time.monotonic() - saved > args.save_every:
            save_checkpoint(path, model, average, optimizer, progress)
            saved = time.monotonic()
    save_checkpoint(path, model, average, optimizer, progress)
    return average


def _step(
    model: nn.Module, loss: Callable[[], dict[str, Tensor]], optimizer: Optimizer, rate: float
) -> dict[str, Tensor]:
    for group in optimizer.param_groups:
        group["lr"] = rate
    figures = loss()
    figures["loss"].backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return figures


def _print(figures: dict[str, Tensor], progress: Progress) -> None:
    if not figures["loss"].isfinite():
        raise RuntimeError(f"the loss at step {progress.step} is {figures['loss'].item()}; use a smaller --lr")
    text = ", ".join(f"{name} {value.item():.4f}" for name, value in figures.items())
    print(f"step {progress.step}, {progress.seconds:.0f} s, {100 * progress.share:.0f} %: {text}", flush=True)


def best_device() -> torch.device:
    """A GPU if there is one, set up for convolutions of a fixed size."""
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def parser(description: str, steps: int, batch_size: int, lr: float) -> argparse.ArgumentParser:
    """Command line options that both trainings have."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--photographs", type=Path, default=Path("build/photographs/training"), help="their folder")
    options.add_argument("--out", type=Path, default=Path("data/priors/photos"), help="folder that gets the weights")
    options.add_argument("--work", type=Path, default=Path("build/photo_training"), help="folder of the checkpoints")
    options.add_argument("--steps", type=int, default=steps, help="optimiser steps in all")
    options.add_argument("--minutes", type=float, help="minutes in all, in place of --steps")
    options.add_argument("--batch-size", type=int, default=batch_size, help="patches a step")
    options.add_argument("--patch-size", type=int, default=128, help="height and width of a patch in pixels")
    options.add_argument("--lr", type=float, default=lr, help="highest learning rate")
    options.add_argument("--seed", type=int, default=0, help="seed of weights and batches")
    options.add_argument("--log-every", type=int, default=50, help="steps between lines of figures")
    options.add_argument("--save-every", type=float, default=60, help="seconds between checkpoints")
    options.add_argument("--compile", action="store_true", help="compile the training step: worth it on a GPU")
    options.add_argument(
        "--bfloat16",
        action=argparse.BooleanOptionalAction,
        default=torch.cuda.is_available(),
        help="compute in bfloat16 where that is precise enough",
    )
    return options
