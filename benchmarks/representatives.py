"""Best of four: the representatives of many particles against four random ones of the same run.

    rlsd task=inpaint num_particles=16 data.limit=16 output_dir=RUN
    python -m benchmarks.representatives RUN

The best PSNR of four random particles is its mean over all choices of four.
"""

import argparse
import itertools
import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rlsd_lightning import VAEFeatures, ViTFeatures, embedded
from rlsd_lightning.functional.metrics import psnr
from rlsd_lightning.functional.sets.clustering import k_medoids
from rlsd_lightning.results.store import load_run

CHOSEN = 4
"""Number of representatives."""


def distances(points: Tensor) -> Tensor:
    """Squared distances of every two points of shape (N, D)."""
    return torch.cdist(points.double(), points.double()).square()


@torch.no_grad()
def rows(folder: Path) -> list[dict[str, float]]:
    """PSNR of the best particle by the way of choosing, one row a measurement of a run."""
    vit, vae = ViTFeatures(embedded("features/faces")), VAEFeatures(embedded("priors/faces"))
    found = []
    for saved in load_run(folder):
        images = saved.images.clamp(-1, 1)
        each = psnr(images, saved.truth)
        every_choice = torch.tensor(list(itertools.combinations(range(len(images)), CHOSEN)))
        points = {
            "pixels": images.flatten(1),
            "features of the vit": normalize(vit(images, images), dim=1),
            "features of the vae": vae(images, images),
        }
        best = {name: each[k_medoids(distances(value), CHOSEN)[0]].max() for name, value in points.items()}
        best |= {"random": each[every_choice].amax(dim=1).mean(), "all": each.max(), "one": each.mean()}
        found.append({"name": saved.name, **{name: value.item() for name, value in best.items()}})
    return found


def main() -> None:
    """Print a table of the means and their standard errors."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs with many particles")
    parser.add_argument("--out", type=Path, help="JSON file of the rows")
    options = parser.parse_args()
    found = [row for folder in options.runs for row in rows(folder)]
    print(
        f"PSNR of the best of {CHOSEN} particles, {len(found)} measurements\n\n| particles | PSNR | above random |\n|---|---|---|"
    )
    for name in (name for name in found[0] if name != "name"):
        gain = torch.tensor([row[name] - row["random"] for row in found])
        mean = sum(row[name] for row in found) / len(found)
        print(f"| {name} | {mean:.2f} | {gain.mean():+.2f} ± {gain.std() / len(found) ** 0.5:.2f} |")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
