"""One self-contained HTML page for a run."""

import base64
from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from statistics import median

import jinja2

from rlsd_lightning.results.store import mean_figures, write_atomically

__all__ = ["write_report"]

MAX_PICTURES = 200
"""Measurements with embedded pictures, which bounds the page's size; the table has all measurements."""


def _picture(path: Path) -> str | None:
    if not path.is_file():
        return None
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="surrogateescape") if path.is_file() else ""


def _representatives(row: dict) -> str:
    """A sentence on a measurement's representatives; empty for few particles."""
    each = [f"particle {one['particle']} ({one['share']:.0%})" for one in row.get("representatives") or ()]
    return f"Representatives and the share of all particles nearest to each: {', '.join(each)}." if each else ""


def _range(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"up to {high:g}" if low is None else f"{low:g} or more"
    return f"{low:g} to {high:g}"


def _checks(rows: Sequence[dict]) -> list[dict]:
    """A line for each check: its median over the measurements, its range, and where it failed."""
    lines = []
    every = [(row["name"], check) for row in rows for check in row.get("checks") or ()]
    for name in dict.fromkeys(check["name"] for _, check in every):
        found = [(of, check) for of, check in every if check["name"] == name]
        first = found[0][1]
        known = {
            key: [check[key] for _, check in found if check[key] is not None]
            for key in ("value", "p_value", "reference")
        }
        middle = {key: median(values) if values else None for key, values in known.items()}
        lines.append(
            {**first, **middle, "range": _range(first["low"], first["high"]), "count": len(found)}
            | {"failed": [of for of, check in found if not check["passed"]]}
        )
    return lines


def write_report(folder: Path, rows: Sequence[dict], failures: Sequence[dict[str, str]] = ()) -> Path:
    """Write report.html: failures, table, warnings, pictures, settings and command of a run.

    Args:
        folder: The run's folder, with .hydra/ and the measurements' folders.
        rows: Metrics of the finished measurements.
        failures: Names of the failed ones, and the reasons.

    Returns:
        Path of the page.
    """
    # lists and sentences, such as warnings, have their own place
    known = [
        key for row in rows for key, value in row.items() if value is not None and not isinstance(value, list | str)
    ]
    columns = [key for key in dict.fromkeys(known) if key != "name"]
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files("rlsd_lightning.results").joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    page = template.render(
        title=folder.resolve().name,
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        command=_text(folder / ".hydra" / "command.txt").strip(),
        settings=_text(folder / ".hydra" / "config.yaml"),
        columns=columns,
        rows=rows,
        failures=failures,
        means=mean_figures(rows),
        warnings=[(row["name"], sentence) for row in rows for sentence in row.get("warnings") or ()],
        checks=_checks(rows),
        guarantees=list(dict.fromkeys(row["guarantee"] for row in rows if "guarantee" in row)),
        pictures=[
            (
                row["name"],
                _representatives(row),
                *(_picture(folder / row["name"] / file) for file in ("grid.png", "directions.png", "filmstrip.png")),
            )
            for row in rows[:MAX_PICTURES]
        ],
        left_out=max(0, len(rows) - MAX_PICTURES),
    )
    path = folder / "report.html"
    write_atomically(path, page)
    return path
