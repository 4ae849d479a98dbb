"""How a step's time grows with the particles, the measurements and the image, and what the repulsion is of it.

python benchmarks/cost.py --json build/cost.json --plot build/cost.png

Steps of the embedded prior without repulsion and with it (in latents, the default), in turn, medians over rounds. The
embedded prior's own images have 64 pixels a side; it runs convolutionally on larger ones, whose time does not depend on
what is in them.
"""

import argparse
import json
from pathlib import Path

import torch
from matplotlib.figure import Figure
from problems import make_problem
from step import our_step, time_steps

from rlsd_lightning import LatentFeatures

PARTICLES = (1, 2, 4, 8, 16, 32, 64)
MEASUREMENTS = (1, 4, 16, 64)
SIZES = (64, 128, 192, 256)


def measure(particles: int, measurements: int, size: int, device: torch.device, rounds: int) -> dict[str, float]:
    """Seconds of a step without and with repulsion, and the repulsion's share."""
    problem = make_problem("faces", particles, device, size)
    steps = {
        name: our_step(problem, gamma, features=LatentFeatures(), num_measurements=measurements)
        for name, gamma in (("without", 0.0), ("with", 0.5))
    }
    seconds = time_steps(steps, rounds, device)
    return {**seconds, "share": 1 - seconds["without"] / seconds["with"]}


def plot(results: dict[str, dict[int, dict[str, float]]], path: Path) -> None:
    """Three panels of seconds, with lines in proportion from the first point."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axis, (what, rows) in zip(figure.subplots(1, len(results)), results.items(), strict=True):
        counts = list(rows)
        for name in ("without", "with"):
            axis.loglog(counts, [rows[count][name] for count in counts], "o-", label=f"{name} repulsion")
        power = 2 if what == "pixels a side" else 1
        line = [rows[counts[0]]["without"] * (count / counts[0]) ** power for count in counts]
        axis.loglog(counts, line, ":", color="grey", label="in proportion")
        axis.set(xlabel=what, ylabel="seconds a step", xticks=counts, xticklabels=counts)
        axis.minorticks_off()
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measures all and prints the tables."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--json", type=Path, help="also write the figures to this file")
    options.add_argument("--plot", type=Path, help="also draw them")
    args = options.parse_args()
    device = torch.device(args.device)
    series = {
        "particles": {n: (n, 1, 64) for n in PARTICLES},
        "measurements of one particle": {m: (1, m, 64) for m in MEASUREMENTS},
        "pixels a side": {size: (4, 1, size) for size in SIZES},
    }
    results: dict[str, dict[int, dict[str, float]]] = {}
    for what, points in series.items():
        print(f"| {what} | seconds without repulsion | with | share of the repulsion |\n|---|---|---|---|")
        results[what] = {}
        for count, sizes in points.items():
            results[what][count] = row = measure(*sizes, device, args.rounds)
            print(f"| {count} | {row['without']:.3f} | {row['with']:.3f} | {row['share']:.1%} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"device": args.device, **results}, indent=2) + "\n")
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
