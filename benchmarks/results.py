"""All figures and pictures of docs/results.md, from the present code and weights.

python -m examples.photo_prior.photographs --out build/photographs     # once: photographs for total variation's weights
python benchmarks/results.py                    # everything that is missing, then the page
python benchmarks/results.py --parts faces --faces 8
python benchmarks/results.py --parts faces --only super_resolution   # these tasks anew; the other figures stay
python benchmarks/results.py --parts photographs --only denoising --forms default
python benchmarks/results.py --parts priors --only denoise pixels --forms default independent
python benchmarks/results.py --parts sets --faces 24     # needs the draws of data/faces/generator/posterior.mjs
python benchmarks/results.py --parts priors --faces 24   # all priors, on a quarter of these faces and as many photographs
python benchmarks/results.py --parts photographs --size 128 --tasks denoising "super-resolution x4" --forms default tv
python benchmarks/results.py --tables           # only write the page again, from docs/results.json
python benchmarks/results.py --check            # whether the page, its figures, pictures and the weights belong together

Each run is a command of train.py in its own folder below --out, on a GPU if there is one. A finished run is not made again,
so the command resumes after an interruption; runs of another version are refused. docs/results.json keeps the figures of
each image, docs/results.md gets the tables between its markers.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import faces
import photographs
import priors
import sets
import torch
from runs import PROJECT, checksum, code_digest, hold_one_version
from tables import page_with_tables

PAGE, FIGURES = PROJECT / "docs" / "results.md", PROJECT / "docs" / "results.json"
PARTS: dict[str, ModuleType] = {"faces": faces, "sets": sets, "priors": priors, "photographs": photographs}


def made_by(part: str) -> dict[str, str]:
    """What the figures of a part depend on."""
    return {"version": version("rlsd-lightning"), "code": code_digest(), "weights": checksum(*PARTS[part].WEIGHTS)}


def make(part: str, args: argparse.Namespace) -> dict:
    """Makes what is missing of a part; returns its figures and what they were made by."""
    folder = args.out.resolve() / (f"{part}-{args.size}" if part == "photographs" else part)
    folder.mkdir(parents=True, exist_ok=True)
    here = argparse.Namespace(**{**vars(args), "out": folder, "tasks": args.only or args.tasks})
    hold_one_version(folder, made_by(part))
    found = PARTS[part].make(here)
    if args.only:
        forms = "" if list(args.forms) == list(photographs.FORMS) else f" ({', '.join(args.forms)})"
        return remade(json.loads(FIGURES.read_text())[part], found, args.only, forms)
    PARTS[part].draw(here)
    pictures = {path.name: checksum(path) for path in PARTS[part].PICTURES}
    return {"command": command_of(part, args), **made_by(part), "pictures": pictures, **found}


def remade(before: dict, found: dict, tasks: Sequence[str], forms: str = "") -> dict:
    """Earlier figures of a part, with those of some tasks made anew, by other code that left the others as they were.

    Raises:
        SystemExit: If the earlier ones are of another number of images, another size, or another distance.
    """
    merged = {}
    for name, new in found.items():
        if not isinstance(new, dict) and new != before[name]:
            raise SystemExit(f"{name} must be {before[name]} as in the figures that stay, got {new}")
        merged[name] = {**before[name], **new} if isinstance(new, dict) else new
    return {**before, **merged, "remade": {**before.get("remade", {}), **dict.fromkeys(tasks, code_digest() + forms)}}


def command_of(part: str, args: argparse.Namespace) -> str:
    """The command that makes a part again."""
    command = f"python benchmarks/results.py --parts {part}"
    if part != "photographs":
        return f"{command} --faces {args.faces}"
    command += f" --size {args.size}"
    tasks, forms = photographs.TASK_NAMES, photographs.FORMS
    for name, known in (("tasks", tasks), ("forms", forms), ("baseline-tasks", tasks)):
        chosen = getattr(args, name.replace("-", "_"))
        if list(chosen) != list(known):
            command += f" --{name} " + " ".join(f'"{each}"' if " " in each else each for each in chosen)
    return command


def faults() -> list[str]:
    """What does not belong together, a sentence each."""
    made = json.loads(FIGURES.read_text())
    found = [
        f"{part}: no figures; python benchmarks/results.py --parts {part} makes them"
        for part in PARTS
        if part not in made
    ]
    if PAGE.read_text() != page_with_tables(PAGE.read_text(), made):
        found.append(f"{PAGE.name} has other tables than {FIGURES.name}; --tables writes them again")
    for part, figures in made.items():
        now = {"version": version("rlsd-lightning"), "weights": checksum(*PARTS[part].WEIGHTS)}
        found += [
            f"{part}: {what} was {figures[what]} and is {now[what]}; {figures['command']} makes the figures anew"
            for what in now
            if figures[what] != now[what]
        ]
        for path in PARTS[part].PICTURES:
            if figures["pictures"].get(path.name) != checksum(path):
                found.append(f"{part}: {path.name} is not the picture of these figures")
    return found


def parsed() -> argparse.Namespace:
    """The command line."""
    known = dict.fromkeys((*faces.EVERY, *priors.TASKS, *priors.PRIORS, *photographs.TASK_NAMES))
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="which figures are made")
    options.add_argument("--faces", type=int, default=64, help="number of held-out faces of the default's runs")
    options.add_argument(
        "--only", nargs="+", choices=known, default=[], help="tasks, or priors, made anew; other figures stay"
    )
    options.add_argument("--draws", type=Path, default=Path("build/faces/posterior"), help="exact draws, for sets")
    options.add_argument("--size", type=int, default=256, help="side in pixels of the photographs")
    tasks, forms = photographs.TASK_NAMES, photographs.FORMS
    options.add_argument("--tasks", nargs="+", choices=tasks, default=tasks, help="tasks of the photographs")
    options.add_argument("--forms", nargs="+", choices=forms, default=forms, help="methods on photographs and priors")
    options.add_argument("--baseline-tasks", nargs="+", choices=tasks, default=tasks, help="tasks of the baselines")
    options.add_argument("--validation", type=Path, default=Path("build/photographs/validation"), help="others, for tv")
    options.add_argument("--jobs", type=int, default=1 if torch.cuda.is_available() else 2, help="runs side by side")
    options.add_argument("--out", type=Path, default=Path("outputs/results"), help="folder of the runs")
    options.add_argument("--tables", action="store_true", help="only write the page, from docs/results.json")
    options.add_argument("--check", action="store_true", help="only say whether everything belongs together")
    args = options.parse_args()
    if args.faces < 2:
        options.error(f"--faces must be at least 2 for standard errors, got {args.faces}")
    wants_others = "photographs" in args.parts and "tv" in args.forms and not (args.tables or args.check)
    if wants_others and not args.validation.is_dir():
        options.error(
            f"tv needs photographs in '{args.validation}'; the first command of this file's text fetches them"
        )
    if "sets" in args.parts and not (args.tables or args.check or args.draws.is_dir()):
        options.error(f"sets need exact draws in '{args.draws}'; docs/evaluation.md has the command that makes them")
    return args


def main() -> int:
    """Makes what is missing and writes the page; returns 1 if a check fails."""
    args = parsed()
    if args.check:
        found = faults()
        print("\n".join(found) or f"{PAGE.name}, {FIGURES.name}, the pictures and the weights belong together.")
        return int(bool(found))
    if not args.tables:
        for part in args.parts:
            figures = make(part, args)
            made = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {}
            FIGURES.write_text(json.dumps({**made, part: figures}, indent=1) + "\n")
    PAGE.write_text(page_with_tables(PAGE.read_text(), json.loads(FIGURES.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
