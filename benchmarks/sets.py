"""The tables of docs/results.md on sets of particles, against the exact posterior of half-faces."""

from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from posterior import load_draws, pooled, rank_shares, row_of
from runs import PROJECT, Run, rows_of, run_folder
from torch import Tensor

from rlsd_lightning import embedded, representatives
from rlsd_lightning.evaluation.judge import Judge, load_judge
from rlsd_lightning.results.store import load_run

__all__ = ["PICTURES", "WEIGHTS", "draw", "make"]

WEIGHTS = (PROJECT / "data" / "priors" / "faces",)
PICTURES: tuple[Path, ...] = ()
MANY = 16
"""Particles of the runs whose shares and ranks are shown; for the other figures they are sets of four."""
FORMS = {
    "independent": ["method=independent", f"num_particles={MANY}"],
    "default": [],
}
Figures = dict[str, float | list[float]]


def run_of(form: str, faces: int) -> Run:
    """The run of a form on the first held-out half-faces."""
    return Run("sets", "inpaint", form, (f"data.limit={faces}", *FORMS[form]))


def figures_of(images: Sequence[Tensor], draws: Sequence[Tensor], judge: Judge) -> tuple[list[dict], Figures]:
    """Rows of the faces, and figures of all faces together; with ranks if there are enough particles.

    Args:
        images: Particles of each face, with shape (N, 3, H, W).
        draws: Draws of each face's posterior.
        judge: The network of the features and attributes.
    """
    pairs = list(zip(images, draws, strict=True))
    rows = [{"name": f"{face:03}", **row_of(own, exact, judge)} for face, (own, exact) in enumerate(pairs)]
    together: Figures = pooled(images, draws, judge)
    if len(images[0]) >= MANY:
        ranks = rank_shares(images, draws, judge)
        together |= {f"{name}_ranks": shares for name, shares in ranks.items()}
    return rows, together


def make(args: Namespace) -> dict[str, object]:
    """Figures of all runs, which are made if they are not there, and of as many exact draws."""
    judge, draws = load_judge(embedded("features/judge")), load_draws(args.draws)[: args.faces]
    runs = {form: run_of(form, len(draws)) for form in FORMS}
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda run: rows_of(run, args), runs.values()))
    exact = draws.flip(1)  # the chain's last draws, far from the first, which are the truths of the ranks
    found = {"exact draws": figures_of([each[:MANY] for each in exact], [each[MANY:].flip(0) for each in exact], judge)}
    saved = {form: load_run(run_folder(run, args.out))[: len(draws)] for form, run in runs.items()}
    images = {form: [one.images for one in each] for form, each in saved.items()}
    images["4 of 16"] = [each[[one.particle for one in representatives(each)]] for each in images["independent"]]
    found |= {form: figures_of(each, list(draws), judge) for form, each in images.items()}
    return {
        "faces": len(draws),
        "runs": {f"sets/inpaint/{form}": rows for form, (rows, _) in found.items()},
        "together": {form: together for form, (_, together) in found.items()},
    }


def draw(args: Namespace) -> None:
    """No pictures belong to these figures."""
