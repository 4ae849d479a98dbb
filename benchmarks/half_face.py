"""Compares finished runs of task=inpaint on the held-out faces.

python train.py task=inpaint data.limit=null output_dir=outputs/half/repulsion
python train.py task=inpaint data.limit=null method.gamma=0 output_dir=outputs/half/none
python benchmarks/half_face.py outputs/half/none outputs/half/repulsion

Prints a table in Markdown: reconstruction, diversity, the Frechet distance of the particles to the held-out faces in
the embedded feature network, how far attribute shares are from the generator's, and the share of visible pixels within
three standard deviations of the measurement's noise. With gamma = 0 the particles do not interact, so that row is also
that of independent runs of equal cost.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from rlsd_lightning.functional.metrics import diversity
from rlsd_lightning.images import load_image
from rlsd_lightning.masks import half_mask
from rlsd_lightning.miniature.faces import ATTRIBUTES
from rlsd_lightning.miniature.features import load_classifier
from rlsd_lightning.miniature.report import frechet_distance

PROJECT = Path(__file__).resolve().parents[1]
TRUE_SHARES = {  # WORLD in data/faces/generator/generate.mjs
    "facial_hair": (0.45, 0.15, 0.15, 0.25),
    "hair": (0.12, 0.42, 0.16, 0.3),  # a cap or a santa hat, a fifth of all, turns curly hair into short
    "glasses": (0.7, 0.3),
    "smile": (0.5, 0.5),
}
NOISE_STD = 0.001
METRICS = ("psnr_mean", "psnr_best", "psnr_of_mean", "ssim_mean", "seconds")


def measure(run: Path) -> dict[str, float]:
    """The figures of one run."""
    folders = sorted(path.parent for path in run.glob("*/metrics.json"))
    if not folders:
        raise SystemExit(f"a finished run is expected, but '{run}' has no */metrics.json")
    rows = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    figures = {"faces": len(rows), **{key: sum(row[key] for row in rows) / len(rows) for key in METRICS}}
    saved = [load_file(folder / "particles.safetensors") for folder in folders]
    particles = torch.cat([tensors["x"] for tensors in saved]).clamp(-1, 1)
    height, width = particles.shape[-2:]
    truth = torch.cat([load_image(folder / "truth.png", height, width) for folder in folders])
    classifier = load_classifier(PROJECT / "data" / "features" / "faces")
    # in one network for all runs, whatever their kernel compared
    sets = [diversity(classifier.features(tensors["x"].clamp(-1, 1))).item() for tensors in saved]
    figures["diversity"] = sum(sets) / len(sets)
    figures["frechet"] = frechet_distance(classifier, particles, truth)
    predicted, heldout = classifier.predict(particles), classifier.predict(truth)
    for name, shares in TRUE_SHARES.items():
        column = list(ATTRIBUTES).index(name)
        for label, labels in (("", predicted), (" of truth", heldout)):
            got = torch.bincount(labels[:, column], minlength=len(shares)) / len(labels)
            figures[f"{name} shares{label}"] = [round(share, 3) for share in got.tolist()]
            figures[f"{name} error{label}"] = 0.5 * (got - torch.tensor(shares)).abs().sum().item()
    seen = half_mask(height, width).bool().expand(3, -1, -1)
    error = torch.cat([(tensors["x"] - tensors["y"])[:, seen] for tensors in saved])
    figures["visible within 3 sigma"] = (error.abs() <= 3 * NOISE_STD).float().mean().item()
    return figures


def main() -> None:
    """Prints the table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("runs", type=Path, nargs="+", help="run folders of task=inpaint")
    options.add_argument("--json", type=Path, help="also write the figures to this file")
    args = options.parse_args()
    results = {run.name: measure(run) for run in args.runs}
    print("| | " + " | ".join(results) + " |")
    print("|---" * (len(results) + 1) + "|")
    for key in next(iter(results.values())):
        cells = [figures[key] for figures in results.values()]
        print(f"| {key} | " + " | ".join(f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells) + " |")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
