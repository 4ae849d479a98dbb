"""The tables of docs/results.md, from docs/results.json."""

import re
import statistics
from collections.abc import Callable, Iterable

NAMES = {
    "inpaint": "lower half missing",
    "super_resolution": "super-resolution x4",
    "inpaint_random": "80 % missing",
    "colorize": "colourisation",
    "motion_deblur": "motion deblurring",
    "denoise": "denoising",
    "hdr": "high dynamic range",
    "phase_retrieval": "phase retrieval",
}


def values(rows: list[dict], figure: str) -> list[float]:
    """A figure of each image; images without it are left out."""
    return [row[figure] for row in rows if figure in row]


def mean(rows: list[dict], figure: str, digits: int = 2) -> str:
    """Mean over images, or a dash where the figure is not known."""
    found = values(rows, figure)
    return f"{statistics.fmean(found):.{digits}f}" if found else "-"


def mean_and_error(found: list[float], sign: str = "") -> str:
    """Mean and its standard error; a single value has none, and none at all is a dash."""
    if not found:
        return "-"
    error = f" ± {statistics.stdev(found) / len(found) ** 0.5:.2f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):{sign}.2f}{error}"


def difference(rows: list[dict], default: list[dict], figure: str) -> str:
    """Paired difference to the default's, with its standard error."""
    before = {row["name"]: row[figure] for row in default}
    return mean_and_error([row[figure] - before[row["name"]] for row in rows], "+")


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def runs_of(made: dict, table: str) -> dict[tuple[str, str], list[dict]]:
    """Figures of a table's runs by task and form."""
    split = {tuple(key.split("/")): rows for key, rows in made["runs"].items()}
    return {(task, form): rows for (name, task, form), rows in split.items() if name == table}


def defaults(made: dict) -> dict[str, list[dict]]:
    """The default's figures by task."""
    return {task: rows for (task, _), rows in runs_of(made, "tasks").items()}


def tasks(made: dict) -> str:
    """Quality of the default on each task."""
    header = ("task", "pseudo-inverse", "mean", "best of four", "mean image", "SSIM", "Vendi score", "residual / noise")
    rows = [
        (
            NAMES[task],
            mean(rows, "psnr_pseudo_inverse", 1),
            mean_and_error(values(rows, "psnr_mean")),
            mean_and_error(values(rows, "psnr_best")),
            mean(rows, "psnr_of_mean"),
            mean(rows, "ssim_mean", 3),
            mean(rows, "vendi"),
            mean(rows, "residual_sigmas"),
        )
        for task, rows in defaults(made).items()
    ]
    return markdown(header, rows)


def compared(runs: dict[tuple[str, str], list[dict]], default: dict[str, list[dict]]) -> list[tuple[str, ...]]:
    """Rows of a table of forms by tasks: the default's own figures, and paired differences to them."""
    names = list(dict.fromkeys(task for task, _ in runs))
    forms = list(dict.fromkeys(form for _, form in runs))

    def cell(task: str, form: str, figure: str) -> str:
        if form == "default":
            return mean_and_error(values(runs[task, form], figure))
        return difference(runs[task, form], default[task], figure)

    return [
        (f"`{form}`", title, *(cell(task, form, figure) if (task, form) in runs else "" for task in names))
        for form in forms
        for figure, title in (("psnr_mean", "mean"), ("psnr_best", "best of four"))
    ]


def methods(made: dict) -> str:
    """Other methods against the default."""
    runs = runs_of(made, "methods")
    names = dict.fromkeys(NAMES[task] for task, _ in runs)
    return markdown(("form", "PSNR", *names), compared(runs, defaults(made)))


def repulsion(made: dict) -> str:
    """Diversity and quality by the strength of the repulsion."""
    runs = {form: rows for (_, form), rows in runs_of(made, "repulsion").items()}
    faces = {row["name"] for rows in runs.values() for row in rows}
    runs["gamma 0.2 (default)"] = [row for row in defaults(made)["inpaint"] if row["name"] in faces]
    header = ("repulsion", "Vendi score", "mean", "best of four", "mean image")
    figures = ("psnr_mean", "psnr_best", "psnr_of_mean")
    ordered = sorted(runs.items(), key=lambda item: float(item[0].split()[1]))
    rows = [(f"`{form}`", mean(r, "vendi"), *(mean(r, figure) for figure in figures)) for form, r in ordered]
    return markdown(header, rows)


def coverage(made: dict) -> str:
    """Coverage of the uncertainty map's intervals, and of conformal ones that were calibrated on the other faces."""
    header = ("task", "in 50 % intervals", "in 90 % intervals", "deviation / error", "in conformal 90 % intervals")
    rows = [
        (
            NAMES[task],
            *("-" if figures[key] is None else f"{100 * figures[key]:.0f} %" for key in list(figures)[:2]),
            "-" if figures["total_spread_to_error"] is None else f"{figures['total_spread_to_error']:.2f}",
            mean_and_error(made["intervals"][task]),
        )
        for task, figures in made["coverage"].items()
    ]
    return markdown(header, rows)


def points(made: dict) -> str:
    """Distance of the modes' shares from the exact posterior's."""
    rows = [(f"`{form}`", mean(rows, "mode_total_variation", 3)) for (_, form), rows in runs_of(made, "points").items()]
    return markdown(("method", "total variation"), rows)


def faces_made_by(made: dict) -> str:
    """The command, version and weights of the faces' figures."""
    return f"```bash\n{made['command']}\n```\n\n{made_of(made)}."


def sets_made_by(made: dict) -> str:
    """The command, version and weights of the sets' figures."""
    return faces_made_by(made)


def sets(made: dict) -> str:
    """Sets of four against the exact posterior: means over faces, and paired differences to independent draws."""
    runs = {form: rows for (_, form), rows in runs_of(made, "sets").items()}
    names = {
        "psnr_mean": "mean",
        "psnr_best": "best of four",
        "coverage": "coverage",
        "precision": "precision",
        "vendi": "Vendi score",
        "energy_score": "energy score",
    }
    header = ("set", *names.values(), "Frechet distance")
    rows = []
    for form, found in runs.items():
        before = runs["independent"]
        cells = [
            mean_and_error(values(found, name)) if form in ABSOLUTE else difference(found, before, name)
            for name in names
        ]
        rows.append(
            (f"`{form}`" if form != "exact draws" else form, *cells, f"{made['together'][form]['frechet']:.1f}")
        )
    return markdown(header, rows)


def shares(made: dict) -> str:
    """Attributes of 16 particles a face against those of the exact posterior, and the largest bin of their ranks."""
    rows = []
    for form in ABSOLUTE:
        found = made["together"][form]
        band = found["band_ranks"][1]
        for name in ("facial_hair", "hair", "smile"):
            ranks = found[f"{name}_ranks"]
            rows.append(
                (form, name.replace("_", " "), f"{found[f'{name}_error']:.3f}", f"{max(ranks):.2f}", f"{band:.2f}")
            )
    return markdown(("particles", "attribute", "error of shares", "largest rank", "largest of flat ranks"), rows)


def priors_made_by(made: dict) -> str:
    """The command, version and weights of all priors' figures."""
    return faces_made_by(made)


def priors(made: dict) -> str:
    """Methods on each prior."""
    split = [(*key.split("/"), rows) for key, rows in made["runs"].items()]
    names = dict.fromkeys(NAMES[task] for _, task, _, _ in split)
    rows = []
    for prior in dict.fromkeys(prior for prior, *_ in split):
        runs = runs_of(made, prior)
        default = {task: found for (task, form), found in runs.items() if form == "default"}
        rows += [(f"`{prior}`", *cells) for cells in compared(runs, default)]
    return markdown(("prior", "form", "PSNR", *names), rows)


def photographs_made_by(made: dict) -> str:
    """The command, version, weights and size of the photographs' figures."""
    return (
        f"```bash\n{made['command']}\n```\n\n{made['size']}x{made['size']} pixels. {made_of(made)}. "
        f"The perceptual distance is {made['perceptual']}."
    )


def made_of(made: dict) -> str:
    """Version, code and weights."""
    codes = [made["code"], *(f"{code} for {NAMES.get(task, task)}" for task, code in made.get("remade", {}).items())]
    return f"Version {made['version']}, code {', '.join(codes)}, weights {made['weights']} (first digits of SHA-256)"


def photographs(made: dict) -> str:
    """Every form on each task, means over photographs."""
    header = ("task", "form", "mean", "best of four", "mean image", "SSIM", "perceptual", "diversity")
    digits = {"ssim": 3, "perceptual": 3, "diversity": 3, "coverage_90": 2}
    psnrs = ("psnr_mean", "psnr_best", "psnr_of_mean")
    split = [(*key.split("/"), rows) for key, rows in made["runs"].items()]
    order = list(dict.fromkeys(task for task, _, _ in split))
    return markdown(
        (*header, "in 90 % intervals"),
        [
            (
                task,
                "no prior" if form == "bicubic" else f"`{form}`",
                *(mean_and_error(values(rows, figure)) for figure in psnrs),
                *(mean(rows, figure, places) for figure, places in digits.items()),
            )
            for task, form, rows in sorted(split, key=lambda each: order.index(each[0]))
        ],
    )


ABSOLUTE = ("exact draws", "independent")
"""Sets whose own figures are shown; of others the difference to independent draws."""
TABLES: dict[str, tuple[Callable[[dict], str], ...]] = {
    "faces": (faces_made_by, tasks, methods, repulsion, coverage, points),
    "sets": (sets_made_by, sets, shares),
    "priors": (priors_made_by, priors),
    "photographs": (photographs_made_by, photographs),
}
"""Tables by the part of docs/results.json that they show."""


def page_with_tables(page: str, made: dict) -> str:
    """The page with the table of each name between ``<!-- NAME -->`` and ``<!-- end -->``.

    Raises:
        SystemExit: If the page's markers are not those of all tables.
    """
    names, known = re.findall(r"<!-- (?!end)(\w+) -->\n", page), [t.__name__ for part in TABLES.values() for t in part]
    if sorted(names) != sorted(known):
        raise SystemExit(f"the page must have the markers {', '.join(known)}, got {', '.join(names)}")
    for part, figures in made.items():
        for table in TABLES[part]:
            name = table.__name__
            new = f"<!-- {name} -->\n\n{table(figures)}\n\n<!-- end -->"
            page = re.sub(rf"<!-- {name} -->\n.*?<!-- end -->", lambda _, new=new: new, page, flags=re.DOTALL)
    return page
