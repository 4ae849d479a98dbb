"""The table of priors of docs/results.md: the default beside other methods on priors of which it was tuned on one."""

from argparse import Namespace
from pathlib import Path

from runs import PROJECT, Run, kept_figures

__all__ = ["PICTURES", "WEIGHTS", "draw", "make"]

EMBEDDED, SMALL = PROJECT / "data" / "priors", PROJECT / "tests" / "priors"
WEIGHTS = (EMBEDDED, SMALL)
PICTURES: tuple[Path, ...] = ()
PRIORS = {
    "faces": [],
    "photos": ["prior=photos", "prior.image_size=64", f"data.images={PROJECT / 'data' / 'photos'}"],
    "flow": ["prior=sana", f"prior.pretrained={SMALL / 'flow'}"],
    "pixels": ["prior=pixel", f"prior.pretrained={SMALL / 'pixels'}"],
}
TASKS = ("inpaint", "super_resolution", "inpaint_random", "colorize", "denoise")
METHODS = {
    "default": [],
    "independent": ["method=independent"],
    "distilled": ["method=distilled", "num_steps=100"],
    "dps": ["method=dps", "num_steps=100"],
}


def all_runs(faces: int) -> list[Run]:
    """The runs of the table, on a quarter of the images; no run sets anything but its prior, images, task and method."""
    limit = f"data.limit={max(2, faces // 4)}"
    return [
        Run(name, task, form, (*prior, *options, limit))
        for name, prior in PRIORS.items()
        for task in TASKS
        for form, options in METHODS.items()
    ]


def make(args: Namespace) -> dict[str, object]:
    """Figures of all runs, or of those of ``args.only``'s priors and tasks, which are made if they are not there."""
    chosen = set(args.only or PRIORS)
    runs = [run for run in all_runs(args.faces) if run.form in args.forms and chosen & {run.table, run.task}]
    return {"runs": kept_figures(runs, args)}


def draw(args: Namespace) -> None:
    """There are no pictures."""
