"""With the auxiliary image and without it: where the latents go, and how sharp the images are.

python benchmarks/geometry.py --json build/geometry.json

For held-out faces, means over particles: the distance of the final latents to the range of the encoder, the root mean
square of z - E(D(z)); the path of the clean latents, its length over that of the straight line from its first to its last
point (1 is straight) and the mean angle between two moves in a row in degrees; gradient energy of the images over that
of D(z) and over the truth's; PSNR in dB. Latents have about the standard deviation 1.
"""

import argparse
import json
import logging
import math
import warnings
from itertools import pairwise
from pathlib import Path

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from torch import Tensor

from rlsd_lightning.functional.metrics import gradient_energy, psnr
from rlsd_lightning.measurement import Measurement
from rlsd_lightning.methods.base import ParticleModule

PROJECT = Path(__file__).resolve().parents[1]
TASKS = ("inpaint", "super_resolution", "inpaint_random", "colorize")
FORMS = {
    "sampled, x": ["method=independent"],
    "sampled, no x": ["method=independent", "method.augmented=false"],
    "distilled, x": ["method=sds"],
    "distilled, no x": ["method=not_augmented", "method.refine_share=1", "method.antithetic=false"],
}


class Trace(Callback):
    """The latents after every step."""

    def __init__(self) -> None:
        self.points: list[Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: ParticleModule, *args: object) -> None:
        self.points.append(pl_module.z.detach().clone())


def figures(module: ParticleModule, points: list[Tensor], measurements: list[Measurement]) -> dict[str, float]:
    """Means over particles of finished measurements."""
    images, decoded = module.reconstructions()
    truth = torch.cat([each.truth for each in measurements]).repeat_interleave(module.num_particles, dim=0)
    z = module.z.detach()
    with torch.no_grad():
        away = (z - module.encode(decoded)).square().flatten(1).mean(dim=1).sqrt()
    moves = [(b - a).flatten(1) for a, b in pairwise(points)]
    cosines = torch.stack([torch.cosine_similarity(a, b) for a, b in pairwise(moves)]).clamp(-1, 1)
    length = torch.stack([move.norm(dim=1) for move in moves]).sum(dim=0)
    energy = gradient_energy(images.clamp(-1, 1))
    values = {
        "rms_z_to_encoded": away,
        "length_over_chord": length / (points[-1] - points[0]).flatten(1).norm(dim=1),
        "turning_degrees": cosines.acos().mean(dim=0) * 180 / math.pi,
        "sharpness_to_decoded": energy / gradient_energy(decoded.clamp(-1, 1)),
        "sharpness_to_truth": energy / gradient_energy(truth),
        "psnr": psnr(images, truth),
        "psnr_decoded": psnr(decoded, truth),
    }
    return {name: value.mean().item() for name, value in values.items()}


def run(task: str, form: str, limit: int) -> dict[str, float]:
    """One form on the first held-out faces."""
    with initialize_config_dir(str(PROJECT / "configs"), version_base="1.3"):
        cfg = compose("train", [f"task={task}", f"data.limit={limit}", "output_dir=unused", *FORMS[form]])
    prior, features = instantiate(cfg.prior), instantiate(cfg.features)
    data = instantiate(cfg.data)(prior.image_shape, instantiate(cfg.physics))
    measurements = [data[index] for index in range(len(data))]
    module = instantiate(cfg.method)(prior, measurements, features)
    trace = Trace()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    L.Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, callbacks=[trace], **quiet).fit(module)
    return figures(module, trace.points, measurements)


def main() -> None:
    """Runs every task and form and prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=TASKS, metavar="TASK")
    parser.add_argument("--limit", type=int, default=8, help="how many held-out faces")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    OmegaConf.register_new_resolver("project", lambda path: str(PROJECT / path), replace=True)
    OmegaConf.register_new_resolver("run_folder", lambda *names: "unused", replace=True)
    rows = [{"task": task, "form": form, **run(task, form, args.limit)} for task in args.tasks for form in FORMS]
    names = list(rows[0])
    print(f"| {' | '.join(names)} |", "|---" * len(names) + "|", sep="\n")
    for row in rows:
        print("| " + " | ".join(f"{value:.3g}" if isinstance(value, float) else value for value in row.values()) + " |")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
