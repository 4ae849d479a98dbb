"""Draws from posteriors that are known exactly: Gaussian-mixture priors and linear measurements.

python benchmarks/gmm.py --json docs/gmm.json

Prints tables in Markdown. --only PROBLEMS names those to run: grid (25 modes in 8 dimensions, the public benchmark of
MCG-Diff), sizes (the same in up to 800, the protocol of its paper with fewer repetitions), bipsda (three modes in 10), plane (two dimensions).
"""

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning as L
import torch
from distances import projected_wasserstein, random_directions, within_mode_spread
from mixtures import MixtureProblem, grid_problem, linear_levels, three_modes, two_dimensions
from torch import Tensor

from rlsd_lightning import (
    DWGF,
    RLSD,
    Distilled,
    LatentDAPS,
    LatentDPS,
    Measurement,
    PixelFeatures,
    RLSDPaper,
    TwistedFilter,
)
from rlsd_lightning.functional.metrics import mode_total_variation
from rlsd_lightning.methods.base import ParticleModule

STEPS = 200
STORED = {  # median max-sliced distance of the public benchmark's own stored run
    "DDRM (stored)": {(1, 8): 29.72, (2, 8): 13.42, (4, 8): 0.45},
    "DPS (stored)": {(1, 8): 27.82, (2, 8): 19.32, (4, 8): 12.43},
    "MCG-Diff-32 (stored)": {(1, 8): 18.94, (2, 8): 10.78, (4, 8): 1.01},
    "MCG-Diff-128 (stored)": {(1, 8): 5.66, (2, 8): 4.60, (4, 8): 0.19},
}


SLOW = ("distilled, gamma 0", "distilled", "dwgf", "rlsd_paper")
SHOWN = ("max_sw", "mean_sw", "mode_tv", "within_mode_spread", "residual_ratio", "log_prior_gap", "seconds")


def exact(problem: MixtureProblem, count: int, seed: int) -> Tensor:
    """What the figures are when nothing is wrong: other exact draws."""
    return problem.posterior.sample(count, torch.Generator().manual_seed(1000 + seed))


def fitted(module: ParticleModule) -> Tensor:
    """The particles of all of a module's measurements."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    L.Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, **quiet).fit(module)
    return module.reconstructions()[0]


def side_by_side(problem: MixtureProblem, groups: int) -> list[Measurement]:
    """The same measurement many times, each with particles of its own."""
    return [Measurement(f"{index}", problem.y, problem.physics) for index in range(groups)]


def dps(problem: MixtureProblem, count: int, seed: int) -> Tensor:
    """Diffusion posterior sampling with the step size of the public benchmark's."""
    numbers = {"num_particles": count, "num_steps": STEPS, "seed": seed, "decoder_std": 0.0}
    return fitted(LatentDPS(problem.prior, side_by_side(problem, 1), PixelFeatures(), guidance_scale=1.0, **numbers))


def daps(problem: MixtureProblem, count: int, seed: int) -> Tensor:
    """Decoupled annealing with the same calls of the denoiser, told the noise, the operator's norm and the prior's scale."""
    scales = {
        "gain": torch.linalg.matrix_norm(problem.physics.matrix, ord=2).item() ** 2,
        "latent_std": problem.latent_std,
        "likelihood_std": 0.0,
    }
    numbers = {"num_particles": count, "num_steps": STEPS // 5, "seed": seed, "decoder_std": 0.0}
    return fitted(LatentDAPS(problem.prior, side_by_side(problem, 1), PixelFeatures(), **numbers, **scales))


def solved(
    problem: MixtureProblem, count: int, seed: int, method: type[ParticleModule] = RLSD, **settings: float
) -> Tensor:
    """The particles of a method with its own settings, one set of them."""
    numbers = {"num_particles": count, "num_steps": STEPS, "seed": seed}
    return fitted(method(problem.prior, side_by_side(problem, 1), PixelFeatures(), **numbers, **settings))


def rlsd_paper(problem: MixtureProblem, count: int, seed: int) -> Tensor:
    """The published method on sets of four, the number its step sizes belong to, with a kernel on points."""
    groups = side_by_side(problem, count // 4)
    return fitted(RLSDPaper(problem.prior, groups, PixelFeatures(), num_particles=4, num_steps=STEPS, seed=seed))


def twisted(problem: MixtureProblem, count: int, seed: int, steps: int = STEPS) -> Tensor:
    """The particle filter on one set of particles, with the prior's own scales."""
    return fitted(
        TwistedFilter(
            problem.prior,
            side_by_side(problem, 1),
            PixelFeatures(),
            num_particles=count,
            num_steps=steps,
            seed=seed,
            latent_std=problem.latent_std,
            image_std=problem.latent_std,
            decoder_std=0.0,
            evidence_values=problem.y.numel(),  # all count
            min_mu=1e-12,
        )
    )


METHODS: dict[str, Callable[[MixtureProblem, int, int], Tensor]] = {
    "exact draws": exact,
    "DPS": dps,
    "DAPS": daps,
    "rlsd, gamma 0": partial(solved, gamma=0.0, antithetic=False),
    "rlsd": solved,
    "rlsd, loop only": partial(solved, refine_share=0.0),
    "distilled, gamma 0": partial(solved, method=Distilled, gamma=0.0),
    "distilled": partial(solved, method=Distilled),
    "dwgf": partial(solved, method=DWGF),
    "rlsd_paper": rlsd_paper,
    "twisted": twisted,
    "twisted, 400 steps": lambda problem, count, seed: twisted(problem, count, seed, 400),
}


def figures(problem: MixtureProblem, samples: Tensor, order: float) -> dict[str, float]:
    """How far samples are from the posterior."""
    directions = random_directions(samples.shape[1], 100, torch.Generator().manual_seed(0))
    distances = projected_wasserstein(samples, problem.reference, directions, order)
    posterior, physics = problem.posterior, problem.physics
    modes = posterior.assign(samples)
    misfits = [(problem.y - physics.A(points)).square().mean().sqrt() for points in (samples, problem.reference)]
    prior = problem.prior.mixture
    return {
        "max_sw": distances.max().item(),
        "mean_sw": distances.mean().item(),
        "mode_tv": mode_total_variation(modes, posterior.weights).item(),
        "within_mode_spread": within_mode_spread(samples, modes, posterior.covariances).item(),
        "residual_ratio": (misfits[0] / misfits[1]).item(),
        "log_prior_gap": (prior.log_prob(samples).mean() - prior.log_prob(problem.reference).mean()).item(),
    }


def row(name: str, method: str, problems: list[MixtureProblem], count: int, seeds: int, order: float) -> dict:
    """The medians over seeds, and over problems, of one method's figures."""
    runs = []
    for index, problem in enumerate(problems):
        for seed in range(seeds):
            start = time.perf_counter()
            samples = METHODS[method](problem, count, seed + 100 * index)
            runs.append({"seconds": time.perf_counter() - start, **figures(problem, samples, order)})
    medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    spread = {f"max_sw_{end.__name__}": end(run["max_sw"] for run in runs) for end in (min, max)}
    d_y, d_x = problems[0].physics.matrix.shape
    of = {
        "problem": name,
        "d_y": d_y,
        "d_x": d_x,
        "method": method,
        "samples": count,
        "runs": len(runs),
        "order": order,
    }
    result = of | medians | spread
    print(json.dumps(result), flush=True)
    return result


def compared(name: str, problem: MixtureProblem, methods: list[str], seeds: int) -> list[dict]:
    """Methods on one problem, order 2; the slow ones once."""
    return [row(name, method, [problem], 1000, 1 if method in SLOW else seeds, order=2) for method in methods]


def grid_rows(methods: list[str], seeds: int) -> list[dict]:
    """The public benchmark: three problems of seed 27, of whose figures the maximum counts."""
    return [line for d_y in (1, 2, 4) for line in compared("grid", grid_problem(d_y, 8, 27, 10_000), methods, seeds)]


def sizes_rows(methods: list[str], seeds: int) -> list[dict]:
    """The paper's protocol, with fewer repetitions: order 1, the mean over directions counts.

    The noise levels go further up than the published ones, at whose end 800 dimensions are not yet all noise.
    """
    rows = []
    for d_x in (8, 80, 800):
        for d_y in (1, 2, 4):
            numbers = range(min(seeds, 3))
            problems = [grid_problem(d_y, d_x, 100 * d_y + n, 2000, linear_levels(last=0.03)) for n in numbers]
            chosen = [
                method
                for method in methods
                if method in ("exact draws", "DPS", "rlsd, gamma 0", "distilled, gamma 0", "twisted")
            ]
            rows += [row("sizes", method, problems, 2000, 1, order=1) for method in chosen]
    return rows


def bipsda_rows(methods: list[str], seeds: int) -> list[dict]:
    """Three modes in ten dimensions, at both noise levels."""
    problems = {f"bipsda {noise:g}": three_modes(noise, 10_000) for noise in (5.0, 0.1)}
    return [line for name, problem in problems.items() for line in compared(name, problem, methods, seeds)]


def plane_rows(methods: list[str], seeds: int) -> list[dict]:
    """Two dimensions."""
    return compared("plane", two_dimensions(10_000), methods, seeds)


GROUPS = {"grid": grid_rows, "sizes": sizes_rows, "bipsda": bipsda_rows, "plane": plane_rows}


def tables(rows: list[dict]) -> str:
    """All rows in Markdown, a table a group; the public benchmark's stored values under those of the same problem."""
    parts = []
    for group in GROUPS:
        own = [line for line in rows if line["group"] == group]
        if not own:
            continue
        lines = [f"| problem | d_y, d_x | method | runs | {' | '.join(SHOWN)} |", "|" + "---|" * (4 + len(SHOWN))]
        for line in own:
            cells = [line["problem"], f"{line['d_y']}, {line['d_x']}", line["method"], f"{line['runs']}"]
            lines.append(f"| {' | '.join([*cells, *(f'{line[key]:.3g}' for key in SHOWN)])} |")
        parts.append("\n".join(lines))
        if group == "grid":
            cells = [f"| {method} | {' | '.join(map(str, values.values()))} |" for method, values in STORED.items()]
            heads = "| method | 1, 8 | 2, 8 | 4, 8 |\n|---|---|---|---|"
            parts.append("\n".join([heads, *cells]))
    return "\n\n".join(parts)


def place(line: dict) -> tuple:
    """Where a row belongs; there is one for each problem and method."""
    return (
        list(GROUPS).index(line["group"]),
        line["problem"],
        line["d_x"],
        line["d_y"],
        list(METHODS).index(line["method"]),
    )


def main() -> None:
    """Runs what is asked for and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="rows that are not made again stay in it")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each method; three at most of each size")
    parser.add_argument("--only", nargs="*", choices=GROUPS, default=list(GROUPS), metavar="PROBLEMS")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows = json.loads(args.json.read_text())["rows"] if args.json and args.json.is_file() else []
    for group in args.only:
        made = [{"group": group, **line} for line in GROUPS[group](args.methods, args.seeds)]
        rows = sorted({place(line): line for line in [*rows, *made]}.values(), key=place)
        if args.json:
            stored = {method: {str(size): value for size, value in row.items()} for method, row in STORED.items()}
            args.json.write_text(json.dumps({"stored": stored, "rows": rows}, indent=1) + "\n")
    print(tables(rows))


if __name__ == "__main__":
    main()
