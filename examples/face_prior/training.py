"""What the trainings share: schedule, resumable trainer, loss of classifiers, command line."""

import argparse
import math
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

__all__ = ["cosine_adamw", "fit", "loss_and_accuracy", "parser"]


def cosine_adamw(module: nn.Module, lr: float, max_steps: int, warmup: int = 200) -> dict:
    """AdamW with a linear warm-up and a cosine decay to zero, in the form ``configure_optimizers`` returns."""
    optimizer = AdamW(module.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-3)
    warmup = min(warmup, max(1, max_steps // 10))

    def factor(step: int) -> float:
        progress = min(1.0, step / max_steps)
        return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * progress))

    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}


def loss_and_accuracy(logits: dict[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over attributes, and the share of attributes that are named rightly.

    Args:
        logits: By attribute, with shape :math:`(N, K)`.
        labels: With shape :math:`(N, A)`, an attribute a column.
    """
    loss = sum(cross_entropy(value, labels[:, i]) for i, value in enumerate(logits.values()))
    named = torch.stack([value.argmax(-1) for value in logits.values()], dim=-1)
    return loss, (named == labels).float().mean()


def fit(
    module: L.LightningModule, loader: DataLoader, work: Path, max_steps: int, callbacks: tuple[Callback, ...] = ()
) -> L.LightningModule:
    """Trains a module, from its last checkpoint in ``work`` if there is one.

    Args:
        module: The module to train.
        loader: Its batches; repeated until ``max_steps``.
        work: The folder of checkpoints and TensorBoard events.
        max_steps: The number of optimiser steps, those before a resume included.
        callbacks: Further callbacks.

    Returns:
        The trained module.
    """
    checkpoint = ModelCheckpoint(
        dirpath=work,
        save_last=True,
        save_top_k=0,
        every_n_train_steps=min(250, max(1, max_steps // 4)),
        enable_version_counter=False,
    )
    trainer = L.Trainer(
        max_steps=max_steps,
        accelerator="auto",
        devices=1,
        logger=TensorBoardLogger(work, name="", version=""),
        callbacks=[checkpoint, LearningRateMonitor("step"), *callbacks],
        gradient_clip_val=1.0,
        log_every_n_steps=min(25, max_steps),
    )
    last = work / "last.ckpt"
    torch.set_float32_matmul_precision("high")
    trainer.fit(module, loader, ckpt_path=last if last.is_file() else None)
    return module


def parser(description: str, steps: int, batch_size: int, out: str) -> argparse.ArgumentParser:
    """Command line options that every training has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--faces", type=Path, default=Path("build/faces/train"), help="folder of generated faces")
    options.add_argument("--out", type=Path, default=Path(out), help="folder that gets the trained weights")
    options.add_argument("--work", type=Path, default=Path("build/miniature"), help="folder of checkpoints and logs")
    options.add_argument("--steps", type=int, default=steps, help="optimiser steps in all")
    options.add_argument("--batch-size", type=int, default=batch_size, help="faces per step")
    options.add_argument("--seed", type=int, default=0, help="seed of weights and batches")
    return options
