"""The table of small priors of docs/results.md: the default beside other methods on priors that it was not tuned on."""

from argparse import Namespace
from pathlib import Path

from runs import PROJECT, Run, kept_figures

__all__ = ["PICTURES", "PRIOR", "draw", "make"]

PRIOR = PROJECT / "tests" / "priors"
PICTURES: tuple[Path, ...] = ()
PRIORS = {
    "flow": ["prior=sana", f"prior.pretrained={PRIOR / 'flow'}"],
    "pixels": ["prior=pixel", f"prior.pretrained={PRIOR / 'pixels'}"],
}
TASKS = ("inpaint", "super_resolution", "inpaint_random")
METHODS = {
    "default": [],
    "independent": ["method=independent"],
    "dps": ["method=dps", "num_steps=100"],
}


def all_runs(faces: int) -> list[Run]:
    """The runs of the table, on a quarter of the faces; no run sets anything but its prior, task and method."""
    limit = f"data.limit={max(2, faces // 4)}"
    return [
        Run(name, task, form, (*prior, *options, limit))
        for name, prior in PRIORS.items()
        for task in TASKS
        for form, options in METHODS.items()
    ]


def make(args: Namespace) -> dict[str, object]:
    """Figures of all runs, which are made if they are not there."""
    return {"runs": kept_figures(all_runs(args.faces), args)}


def draw(args: Namespace) -> None:
    """There are no pictures."""
