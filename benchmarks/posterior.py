"""Sets of particles against the exact posterior of half-faces.

    npm install --prefix data/faces/generator --no-package-lock
    node data/faces/generator/posterior.mjs --faces 32 --draws 256 --seeds data/faces/posterior.json --out build/faces/posterior
    rlsd task=inpaint data.limit=32 output_dir=RUN
    python -m benchmarks.posterior RUN OTHER_RUN

The generator's law is known, so faces with the same upper half can be drawn (data/faces/generator/posterior.mjs). What a set
is worth is then a mean over 256 truths for each half-face, not over one. All features are the judge's. The first run is the
one that others are compared with, by paired differences of the faces that both have.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rlsd_lightning import embedded
from rlsd_lightning.evaluation.attributes import ATTRIBUTES
from rlsd_lightning.evaluation.distances import frechet_distance, vit_network
from rlsd_lightning.evaluation.judge import WIDTHS, Judge, load_judge
from rlsd_lightning.functional.metrics import mode_total_variation
from rlsd_lightning.functional.sets.coverage import cell_coverage, coverage, precision, vendi_score
from rlsd_lightning.functional.sets.proper_scores import energy_score, rank_band, ranks
from rlsd_lightning.results.store import load_run

DRAWS = 256
OPEN = ("facial_hair", "hair", "smile")
"""Attributes that half a face leaves open."""
SIZE = 4
"""Particles of a set; runs with more are several sets."""
Row = dict[str, float]


def load_draws(folder: Path) -> Tensor:
    """Draws of all faces, in [-1, 1], with shape (faces, draws, 3, H, W)."""
    pixels = torch.from_numpy(np.load(folder / "images.npy"))
    return pixels.unflatten(0, (-1, DRAWS)).movedim(-1, -3).float() / 127.5 - 1


def psnr_of_pairs(images: Tensor, truths: Tensor) -> Tensor:
    """PSNR of every image against every truth, with shape (N, M)."""
    squares = torch.cdist(images.flatten(1).double(), truths.flatten(1).double()).square()
    return 10 * torch.log10(4 * truths[0].numel() / squares.clamp(min=1e-9))


def labels_of(judge: Judge, images: Tensor) -> Tensor:
    """Open attributes, with shape (n, 3)."""
    return judge.predict(images)[:, [list(ATTRIBUTES).index(name) for name in OPEN]]


@torch.no_grad()
def row_of(images: Tensor, draws: Tensor, judge: Judge) -> Row:
    """Figures of the sets of a face's particles, means over sets."""
    known, cells = judge.features(draws), labels_of(judge, draws)
    rows = []
    for each in images.clamp(-1, 1).split(SIZE):
        features, pairs = judge.features(each), psnr_of_pairs(each, draws)
        rows.append(
            {
                "psnr_mean": pairs.mean(),
                "psnr_best": pairs.amax(dim=0).mean(),
                "vendi": vendi_score(features),
                "coverage": coverage(features, known),
                "precision": precision(features, known),
                "cells": cell_coverage(labels_of(judge, each), cells),
                "energy_score": torch.stack([energy_score(each, u[None]) for u in draws[::16]]).mean()
                / draws[0].numel() ** 0.5,
            }
        )
    return {name: statistics.mean(float(row[name]) for row in rows) for name in rows[0]}


@torch.no_grad()
def pooled(images: Sequence[Tensor], draws: Sequence[Tensor], judge: Judge) -> Row:
    """Figures of all faces together: Frechet distance to the posteriors, and total variation of attributes' shares."""
    sets = vit_network("judge", judge.features, WIDTHS[-1])
    shown, known = torch.cat([each.clamp(-1, 1) for each in images]), torch.cat([each[::4] for each in draws])
    figures = {"frechet": frechet_distance(sets, known, shown)}
    labels, exact = labels_of(judge, shown), labels_of(judge, known)
    for i, name in enumerate(OPEN):
        shares = exact[:, i].bincount(minlength=len(ATTRIBUTES[name])) / len(exact)
        figures[f"{name}_error"] = mode_total_variation(labels[:, i], shares).item()
    return figures


@torch.no_grad()
def rank_shares(images: Sequence[Tensor], draws: Sequence[Tensor], judge: Judge) -> dict[str, list[float]]:
    """Shares of the ranks of a posterior draw's attributes among a face's particles, and the 95 % band of flat ones.

    An attribute is the indicator of its most frequent value; equal ones are ordered by lot. A face counts once: its first
    draw is the truth.
    """
    found: dict[str, list[float]] = {}
    count = len(images[0])
    for i, name in enumerate(OPEN):
        labels = [labels_of(judge, each.clamp(-1, 1))[:, i] for each in images]
        truths = [labels_of(judge, each[:1])[:, i] for each in draws]
        most = int(torch.cat([labels_of(judge, each)[:, i] for each in draws]).mode().values)
        indicators = [torch.stack([each == most for each in one], dim=1).long() for one in (labels, truths)]
        drawn = ranks(*indicators).bincount(minlength=count + 1) / len(images)
        found[name] = [round(share, 3) for share in drawn.tolist()]
    return found | {"band": list(rank_band(len(images), count))}


def paired(rows: dict[str, Row], first: dict[str, Row], name: str) -> str:
    """Mean difference to the first run with its standard error."""
    gains = [rows[face][name] - first[face][name] for face in rows if face in first]
    error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
    return f"{statistics.mean(gains):+.3f} ± {error:.3f}"


def main() -> None:
    """Print a table of the runs and their differences to the first."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "runs", nargs="+", type=Path, help="folders of finished runs with task=inpaint, on held-out faces"
    )
    parser.add_argument("--draws", type=Path, default=Path("build/faces/posterior"), help="folder of posterior.mjs")
    parser.add_argument("--out", type=Path, help="JSON file of all figures")
    options = parser.parse_args()
    judge, draws = load_judge(embedded("features/judge")), load_draws(options.draws)
    found, first = {}, {}
    for folder in options.runs:
        saved = {one.name: one.images for one in load_run(folder) if int(one.name) < len(draws)}
        exact = [draws[int(name)] for name in saved]
        rows = {name: row_of(images, each, judge) for (name, images), each in zip(saved.items(), exact, strict=True)}
        first = first or rows
        both = pooled(list(saved.values()), exact, judge)
        found[str(folder)] = {"faces": rows, **both, "ranks": rank_shares(list(saved.values()), exact, judge)}
        print(f"\n{folder}: {len(rows)} faces\n\n| figure | mean | difference to the first run |\n|---|---|---|")
        for name in next(iter(rows.values())):
            mean = statistics.mean(row[name] for row in rows.values())
            print(f"| {name} | {mean:.3f} | {paired(rows, first, name)} |")
        for name, value in both.items():
            print(f"| {name} | {value:.3f} | |")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
