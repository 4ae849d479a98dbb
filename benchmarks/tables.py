"""The tables of docs/results.md, from docs/results.json."""

import re
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

NAMES = {
    "inpaint": "lower half missing",
    "super_resolution": "super-resolution x4",
    "inpaint_random": "80 % missing",
    "colorize": "colourisation",
    "motion_deblur": "motion deblurring",
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
    """Mean and its standard error."""
    error = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else float("nan")
    return f"{statistics.fmean(found):{sign}.2f} ± {error:.2f}"


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
    header = ("task", "pseudo-inverse", "mean", "best of four", "mean image", "SSIM", "diversity", "residual / noise")
    rows = [
        (
            NAMES[task],
            mean(rows, "psnr_pseudo_inverse", 1),
            mean_and_error(values(rows, "psnr_mean")),
            mean_and_error(values(rows, "psnr_best")),
            mean(rows, "psnr_of_mean"),
            mean(rows, "ssim_mean", 3),
            mean(rows, "diversity", 3),
            mean(rows, "residual_sigmas"),
        )
        for task, rows in defaults(made).items()
    ]
    return markdown(header, rows)


def compared(made: dict, table: str, figures: tuple[str, ...]) -> str:
    """Differences to the default by form and task."""
    default, runs = defaults(made), runs_of(made, table)
    names = list(dict.fromkeys(task for task, _ in runs))
    forms = list(dict.fromkeys(form for _, form in runs))
    rows = []
    for form in forms:
        for figure in figures:
            cells = [
                difference(runs[task, form], default[task], figure) if (task, form) in runs else "" for task in names
            ]
            rows.append((f"`{form}`", figure.removeprefix("psnr_").replace("best", "best of four"), *cells))
    return markdown(("form", "PSNR", *(NAMES[task] for task in names)), rows)


def methods(made: dict) -> str:
    """Other methods against the default."""
    return compared(made, "methods", ("psnr_mean", "psnr_best"))


def steps(made: dict) -> str:
    """Other numbers of steps against the default's 100."""
    return compared(made, "steps", ("psnr_mean", "psnr_best"))


def repulsion(made: dict) -> str:
    """Diversity and quality by the strength of the repulsion."""
    runs = {form: rows for (_, form), rows in runs_of(made, "repulsion").items()}
    faces = {row["name"] for rows in runs.values() for row in rows}
    runs["gamma 0.2 (default)"] = [row for row in defaults(made)["inpaint"] if row["name"] in faces]
    header = ("repulsion", "diversity", "mean", "best of four", "mean image")
    figures = ("psnr_mean", "psnr_best", "psnr_of_mean")
    ordered = sorted(runs.items(), key=lambda item: float(item[0].split()[1]))
    rows = [(f"`{form}`", mean(r, "diversity", 3), *(mean(r, figure) for figure in figures)) for form, r in ordered]
    return markdown(header, rows)


def coverage(made: dict) -> str:
    """Coverage of the uncertainty map's intervals."""
    header = ("task", "in 50 % intervals", "in 90 % intervals", "deviation / error")
    rows = [
        (
            NAMES[task],
            *("-" if figures[key] is None else f"{100 * figures[key]:.0f} %" for key in list(figures)[:2]),
            "-" if figures["total_spread_to_error"] is None else f"{figures['total_spread_to_error']:.2f}",
        )
        for task, figures in made["coverage"].items()
    ]
    return markdown(header, rows)


def points(made: dict) -> str:
    """Distance of the modes' shares from the exact posterior's."""
    rows = [(f"`{form}`", mean(rows, "mode_total_variation", 3)) for (_, form), rows in runs_of(made, "points").items()]
    return markdown(("method", "total variation"), rows)


def photos(made: dict) -> str:
    """Photographs with ``prior=photos``."""
    header = ("task", "photograph", "pseudo-inverse", "mean", "best of four", "mean image")
    figures = ("psnr_pseudo_inverse", "psnr_mean", "psnr_best", "psnr_of_mean")
    rows = [
        (NAMES[task], row["name"], *(f"{row[figure]:.1f}" if figure in row else "-" for figure in figures))
        for (task, _), found in runs_of(made, "photos").items()
        for row in found
    ]
    return markdown(header, rows)


def made_by(made: dict) -> str:
    """The version, weights and command of the figures."""
    weights = ", ".join(f"{name} {digest}" for name, digest in made["weights"].items())
    return f"```bash\n{made['command']}\n```\n\nVersion {made['version']}; SHA-256 of the weights: {weights}."


def photographs_made_by(made: dict) -> str:
    """The size, version, weights and command of the photographs' figures."""
    return (
        f"```bash\n{made['command']}\n```\n\n{made['size']}x{made['size']} pixels; version {made['version']}; SHA-256 of the "
        f"weights: photos {made['weights']}. The perceptual distance is {made['perceptual']}."
    )


def photographs(made: dict) -> str:
    """Every form on each task, means over photographs."""
    header = (
        "task",
        "form",
        "mean",
        "best",
        "mean image",
        "SSIM",
        "perceptual",
        "diversity",
        "in 90 % intervals",
        "seconds",
    )
    figures = {"psnr_mean": 2, "psnr_best": 2, "psnr_of_mean": 2, "ssim": 3, "perceptual": 3, "diversity": 3}
    figures |= {"coverage_90": 2, "seconds": 0}
    split = [(*key.split("/"), rows) for key, rows in made["runs"].items()]
    order = list(dict.fromkeys(task for task, _, _ in split))
    return markdown(
        header,
        [
            (task, f"`{form}`", *(mean(rows, figure, digits) for figure, digits in figures.items()))
            for task, form, rows in sorted(split, key=lambda each: order.index(each[0]))
        ],
    )


TABLES: dict[str, Callable[[dict], str]] = {
    function.__name__: function for function in (made_by, tasks, methods, steps, repulsion, coverage, points, photos)
}


PHOTOGRAPHS = {function.__name__: function for function in (photographs_made_by, photographs)}
"""Tables from docs/photographs.json."""


def write_tables(page: Path, made: dict, tables: dict[str, Callable[[dict], str]] = TABLES) -> None:
    """Replaces what is between ``<!-- NAME -->`` and ``<!-- end -->`` by the table of that name.

    Raises:
        SystemExit: If the page has a marker of an unknown table, or lacks one of ``tables``.
    """
    text = page.read_text()
    names = set(re.findall(r"<!-- (?!end)(\w+) -->\n", text))
    if not set(tables) <= names <= {*TABLES, *PHOTOGRAPHS}:
        raise SystemExit(f"{page} must have the markers {', '.join(tables)}, got {', '.join(sorted(names))}")
    for name, table in tables.items():
        block = rf"<!-- {name} -->\n.*?<!-- end -->"
        new = f"<!-- {name} -->\n\n{table(made)}\n\n<!-- end -->"
        text = re.sub(block, lambda _, new=new: new, text, flags=re.DOTALL)
    page.write_text(text)
