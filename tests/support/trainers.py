"""Trainers with checkpoints and results in a folder, stopped where a test wants it."""

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from safetensors.torch import load_file

from rlsd_lightning.engine.checkpoints import AtomicCheckpointIO
from rlsd_lightning.errors import StoppedError
from rlsd_lightning.results.writer import ImageResults


class StopError(StoppedError):
    """What stops a run in these tests."""


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        if batch_idx == self.step:
            raise StopError


class Visited(Callback):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        self.steps.append(batch[0])


def trainer_with(
    folder: Path,
    *callbacks: Callback,
    every: int = 1,
    results: Path | None = None,
    position: str = "",
    batches: int = 1,
    probe: bool = False,
    **options: object,
) -> L.Trainer:
    """Checkpoints of one batch go to ``folder``, and so do results unless they have a folder of their own."""
    folder.mkdir(exist_ok=True)
    checkpoint = ModelCheckpoint(
        folder / "checkpoints",
        save_last=True,
        save_top_k=0,
        every_n_train_steps=every,
        enable_version_counter=False,
    )
    return L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        enable_checkpointing=not probe,
        callbacks=[] if probe else [*callbacks, checkpoint, ImageResults(results or folder)],
        max_steps=1 if probe else -1,
        plugins=[AtomicCheckpointIO()],
        **options,
    )


def assert_same_bits(first: Path, second: Path) -> None:
    """Of two measurements' results."""
    one, other = (load_file(folder / "particles.safetensors") for folder in (first, second))
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].equal(other[name]), name


def fit(module: L.LightningModule, folder: Path, *callbacks: Callback, **options) -> None:
    """Fits a module on the CPU, without checkpoints or a bar unless the options say so."""
    L.Trainer(
        **{"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, **options},
        accelerator="cpu",
        max_epochs=1,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
    ).fit(module)
