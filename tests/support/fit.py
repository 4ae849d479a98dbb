"""A user's own script: fits particles over several processes, each of which writes what it has to a file."""

import argparse
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from rlsd_lightning import RLSD, LatentFeatures, Measurement, ParticleStrategy, StableDiffusionPrior, solve
from rlsd_lightning.operators import inpainting

SETTINGS = {"num_particles": 5, "particle_chunk": 1}


def fit(prior, measurement, folder: Path, args: argparse.Namespace, seed: int, checkpoint: Path | None = None) -> dict:
    decoded = []
    decode = type(prior).decode
    prior.decode = lambda z: decoded.append(len(z)) or decode(prior, z)
    module = RLSD(prior, measurement, LatentFeatures(), num_steps=args.steps, seed=seed, **SETTINGS)
    strategy = ParticleStrategy(args.patience) if args.strategy == "particles" else args.strategy
    trainer = L.Trainer(
        accelerator="cpu",
        devices=args.devices,
        strategy=strategy,
        default_root_dir=folder,
        callbacks=[ModelCheckpoint(folder / "checkpoints", "{step}", every_n_train_steps=5, save_top_k=-1)],
        enable_progress_bar=False,
    )
    trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
    mine, rank = torch.tensor([float(len(module.z[module.rows]))]), trainer.global_rank
    return {
        "x": module.final_images()[0],
        "rows": int(mine),
        "decoded": sum(decoded),
        "steps": trainer.global_step,
        "is_first": (rank == 0, trainer.is_global_zero, rank_zero_only.rank == 0),
        "world": trainer.world_size,
        "broadcast": trainer.strategy.broadcast(f"from {rank}"),
        "gathered": trainer.strategy.all_gather(mine).flatten().tolist(),
        "sum": trainer.strategy.reduce(mine.clone(), reduce_op="sum").item(),
        "decisions": [trainer.strategy.reduce_boolean_decision(rank == 0, all=every) for every in (True, False)],
    }


def main(arguments: list[str] | None = None) -> None:
    """Two fits and a solve, and a fit from a checkpoint if there is one; or that alone."""
    options = argparse.ArgumentParser()
    options.add_argument("prior")
    options.add_argument("folder", type=Path)
    options.add_argument("--devices", type=int, default=1)
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--strategy", default="particles")
    options.add_argument("--patience", type=float, default=600)
    options.add_argument("--checkpoint", type=Path)
    options.add_argument("--only-resume", action="store_true")
    args = options.parse_args(arguments)
    prior = StableDiffusionPrior(args.prior, local_files_only=True)
    physics = inpainting(prior.image_shape, "half")
    truth = 2 * torch.rand(1, *prior.image_shape, generator=torch.Generator().manual_seed(0)) - 1
    measurement = Measurement("noise", physics.A(truth), physics)
    # one Trainer after another in the same processes
    kept = {}
    if args.checkpoint:
        kept["resumed"] = fit(prior, measurement, args.folder / "resumed", args, 0, args.checkpoint)
    if not args.only_resume:
        kept["fits"] = [fit(prior, measurement, args.folder / f"{seed}", args, seed) for seed in (0, 1)]
        kept["solved"], kept["metrics"] = solved(prior, measurement, truth, args)
    torch.save(kept, args.folder / f"process{rank_zero_only.rank}.pt")


def solved(prior, measurement, truth, args: argparse.Namespace) -> tuple:
    trainer = {"accelerator": "cpu", "devices": args.devices, "enable_progress_bar": False}
    options = {"num_steps": args.steps, "trainer": trainer, **SETTINGS}
    result = solve(measurement.y, measurement.physics, prior, truth=truth, **options)
    result.save(args.folder / "saved")
    return result.particles, result.metrics


if __name__ == "__main__":
    main()
