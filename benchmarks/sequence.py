"""Flicker and cost of a sequence whose items start from each other, against independent items.

python benchmarks/sequence.py --json build/sequence.json

Makes a sequence of a held-out face that moves to the right by one pixel a frame, hides a box in the middle, and
reconstructs it as independent images and with data.sequence=true at several shares of the schedule. Flicker is the root
mean square difference between a particle in one frame, moved by a pixel, and the same particle in the next, inside the
box; the truth's own flicker is zero.
"""

import argparse
import csv
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file

from rlsd_lightning.images import load_image, to_pil
from rlsd_lightning.operators.pixels import box_mask

PROJECT = Path(__file__).resolve().parents[1]
SIZE = 64


def make_frames(face: Path, count: int, folder: Path) -> None:
    """Writes the frames; the border wraps around, which on a white background does not show."""
    folder.mkdir(parents=True, exist_ok=True)
    image = load_image(face, SIZE, SIZE)[0]
    for index in range(count):
        to_pil(image.roll(index - count // 2, dims=-1)).save(folder / f"{index:03d}.png")


def flicker(run: Path) -> float:
    """Root mean square change of the particles from frame to frame in the box, beyond the motion."""
    frames = [load_file(file)["x"].clamp(-1, 1) for file in sorted(run.glob("*/particles.safetensors"))]
    hidden = (box_mask(SIZE, SIZE) == 0).roll(1, dims=-1) & (box_mask(SIZE, SIZE) == 0)
    changes = [(after - before.roll(1, dims=-1))[..., hidden[0]] for before, after in pairwise(frames)]
    return torch.stack(changes).square().mean().sqrt().item()


def main() -> None:
    """Runs every form and prints the table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--face", type=Path, default=PROJECT / "data" / "faces" / "heldout" / "000.png")
    options.add_argument("--frames", type=int, default=8)
    options.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.25])
    options.add_argument("--out", type=Path, default=Path("outputs/sequence"), help="folder of the runs")
    options.add_argument("--json", type=Path, help="also write the figures to this file")
    args = options.parse_args()
    frames = args.out / "frames"
    make_frames(args.face, args.frames, frames)
    forms = {"independent": ["data.sequence=false"]}
    forms |= {f"warm, {share:g}": ["data.sequence=true", f"method.warm_share={share}"] for share in args.shares}
    results = {}
    print("| form | flicker | PSNR mean, best, of the mean | steps per frame after the first |\n|---|---|---|---|")
    for form, settings in forms.items():
        run = args.out / form.replace(", ", "_")
        if not (run / "summary.csv").is_file():
            command = [sys.executable, str(PROJECT / "train.py"), "task=inpaint_box", f"data.images={frames.resolve()}"]
            subprocess.run([*command, "data.limit=null", f"output_dir={run}", *settings], check=True)
        rows = list(csv.DictReader((run / "summary.csv").open()))
        mean = {key: float(rows[-1][key]) for key in ("psnr_mean", "psnr_best", "psnr_of_mean", "seconds")}
        results[form] = {"flicker": flicker(run), "steps": int(rows[1]["num_steps"]), **mean}
        f = results[form]
        psnr = f"{f['psnr_mean']:.1f}, {f['psnr_best']:.1f}, {f['psnr_of_mean']:.1f}"
        print(f"| {form} | {f['flicker']:.3f} | {psnr} | {f['steps']} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
