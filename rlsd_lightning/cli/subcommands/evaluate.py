"""Evaluates finished runs side by side, without changing them.

rlsd evaluate outputs/inpaint/2026-11-24_12-00-00
rlsd evaluate outputs/half/none outputs/half/repulsion --json half.json --csv half.csv
rlsd evaluate outputs/photos --protocol paper --features facebook/dino-vits16

Prints a table in Markdown, a column per run. docs/evaluation.md defines every figure.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from rlsd_lightning.cli.subcommands.parser import Parser, in_one_line
from rlsd_lightning.errors import InputError
from rlsd_lightning.evaluation.distances import load_inception, vit_network
from rlsd_lightning.evaluation.figures import (
    Networks,
    attribute_figures,
    image_figures,
    paper_image_figures,
    paper_set_figures,
    set_figures,
)
from rlsd_lightning.evaluation.judge import load_judge
from rlsd_lightning.features import ViTFeatures, load_lpips
from rlsd_lightning.images import find_images, load_image
from rlsd_lightning.measurement import SavedMeasurement
from rlsd_lightning.resources import embedded
from rlsd_lightning.results.store import finished, load_run, write_json

__all__ = ["evaluate_run", "load_networks", "main", "table"]

EMBEDDED = embedded("features/faces")
PROTOCOLS = ("default", "paper")


def load_networks(features: str, protocol: str) -> tuple[Networks, list[str]]:
    """The available networks, and a note on each that is missing.

    ``features`` is a vision transformer's folder or its name on the hub; the protocol ``paper`` does not resize for it.

    Raises:
        InputError: If the vision transformer can't be loaded.
    """
    notes = []
    name = f"vit_{Path(features).name}"
    # a local folder must not be looked up on the hub
    vit = ViTFeatures(features, 0 if protocol == "paper" else None, local_files_only=Path(features).is_dir())
    lpips = load_lpips()
    if lpips is None:
        notes.append("no LPIPS: AlexNet's weights (alexnet-owt-*.pth) are not in torch's cache")
    sets = load_inception()
    if sets is None:
        notes.append(
            f"FID and KID are in the features of {name}: Inception needs torch-fidelity and its weights in torch's cache"
        )
        own = vit if vit.image_size else ViTFeatures(features, local_files_only=Path(features).is_dir())
        sets = vit_network(name, lambda images: own(None, images), own.vit.config.hidden_size)
    judge = load_judge(embedded("features/judge")) if Path(features) == EMBEDDED else None
    return Networks(name, vit, sets, lpips, judge), notes


def evaluate_run(
    saved: list[SavedMeasurement], networks: Networks, protocol: str = "default", reference: Tensor | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures of one run, means over the measurements where they are known, and each measurement's.

    The distances of sets are to ``reference``, with shape :math:`(M, 3, H, W)`, or to the truths; they and the attributes
    are left out where images have several sizes.

    Raises:
        InputError: If the protocol needs a truth that is unknown.
    """
    unknown = [one.name for one in saved if one.truth is None]
    if protocol == "paper" and unknown:
        raise InputError(f"--protocol paper needs the truth of every measurement, but '{unknown[0]}' has none")
    figures_of_one = paper_image_figures if protocol == "paper" else image_figures
    rows = [{"name": one.name, **figures_of_one(one, networks)} for one in saved]
    figures: dict[str, Any] = {"measurements": len(rows)}
    for key in dict.fromkeys(key for row in rows for key in row if key != "name"):
        values = [row[key] for row in rows if row.get(key) is not None]
        if values and isinstance(values[0], str):
            figures[key] = ", ".join(dict.fromkeys(values))
        else:
            figures[key] = sum(values) / len(values) if values else None
    if len(image_sizes(saved)) > 1:  # figures of the whole set need one size
        return figures, rows
    truth = None if unknown else torch.cat([one.truth for one in saved])
    compared = truth if reference is None else reference
    if protocol == "paper":
        return figures | paper_set_figures(saved, compared, networks), rows
    images = torch.cat([one.images for one in saved]).clamp(-1, 1)
    figures |= set_figures(images, compared, networks)
    if networks.judges(images):
        figures |= attribute_figures(images, truth, networks.judge)
    return figures, rows


def image_sizes(saved: list[SavedMeasurement]) -> set[tuple[int, ...]]:
    """Shapes of a run's images."""
    return {tuple(one.images.shape[1:]) for one in saved}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown table of the figures, a column per run; unknown figures are dashes."""
    lines = ["| | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    for key in dict.fromkeys(key for figures in results.values() for key in figures):
        lines.append(f"| {key} | " + " | ".join(_cell(figures.get(key)) for figures in results.values()) + " |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, list):
        return " ".join(f"{share:.2f}" for share in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write_csv(path: Path, rows: dict[str, list[dict]]) -> None:
    """Write one row for each measurement of every run."""
    flat = [{"run": run, **row} for run, measured in rows.items() for row in measured]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in flat for key in row)))
        writer.writeheader()
        writer.writerows(flat)


def _load_reference(folder: str, saved: list[SavedMeasurement]) -> Tensor:
    try:
        files = find_images(folder)
    except InputError as error:
        raise InputError(f"--reference must be a folder with images, but none were found at '{folder}'") from error
    height, width = saved[0].images.shape[-2:]
    return torch.cat([load_image(file, height, width) for file in files])


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    options = Parser("evaluate", __doc__)
    options.add_argument("runs", type=Path, nargs="+", help="folders of runs, or of single measurements")
    options.add_argument(
        "--protocol", default="default", choices=PROTOCOLS, help="figures as defined here, or the paper's"
    )
    options.add_argument("--features", default=str(EMBEDDED), help="a vision transformer's folder or name on the hub")
    options.add_argument("--reference", help="a folder of images for FID and KID; the truths if left out")
    options.add_argument("--json", type=Path, help="also write all figures to this file")
    options.add_argument("--csv", type=Path, help="also write every measurement's figures to this file")
    return options.parse_intermixed_args(arguments)


@in_one_line
def main(arguments: list[str] | None = None) -> int:
    """Print the table and return the exit code, 1 for an unusable input."""
    args = _arguments(arguments)
    disable_progress_bar()
    for file in (args.json, args.csv):  # before minutes of work
        if file and not file.parent.is_dir():
            raise InputError(
                f"a file in an existing folder is expected, but there is no '{file.parent}'; make it first"
            )
    alike = len({run.resolve().name for run in args.runs}) < len(args.runs)
    # refused and stopped runs lie beside the others in outputs/, and files in the folder of a multirun
    folders = [run for run in args.runs if not run.exists() or finished(run)] or args.runs
    runs = {str(run) if alike else run.resolve().name: load_run(run) for run in folders}
    networks, notes = load_networks(args.features, args.protocol)
    notes += [f"left out '{run}': no finished measurement is in it" for run in args.runs if run not in folders]
    notes += _differences(runs)
    results, rows = {}, {}
    for name, saved in runs.items():
        reference = _load_reference(args.reference, saved) if args.reference else None
        results[name], rows[name] = evaluate_run(saved, networks, args.protocol, reference)
    print(table(results))
    print("\n".join(["", *notes]) if notes else "")
    if args.json:
        every = {name: {"figures": results[name], "measurements": rows[name]} for name in results}
        written = {"protocol": args.protocol, "features": networks.name, "notes": notes, "runs": every}
        write_json(args.json, written)
    if args.csv:
        _write_csv(args.csv, rows)
    return 0


def _differences(runs: dict[str, list[SavedMeasurement]]) -> list[str]:
    """Notes on runs of different measurements, and on images of several sizes."""
    notes, names = [], [{one.name for one in saved} for saved in runs.values()]
    if len(shared := set.intersection(*names)) < len(set.union(*names)):
        notes.append(
            f"the runs have different measurements, {len(shared)} of them in common: their figures don't compare"
        )
    sizes = {name: len(image_sizes(saved)) for name, saved in runs.items()}
    return notes + [
        f"'{name}' has images of {count} sizes: it has no FID, KID and attributes"
        for name, count in sizes.items()
        if count > 1
    ]
