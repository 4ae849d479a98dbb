"""One self-contained HTML page for a run."""

import base64
from datetime import datetime
from importlib.resources import files
from pathlib import Path

import jinja2

from rlsd_lightning.results.writer import means_where_known, write_atomically

__all__ = ["write_report"]

MOST_PICTURES = 200
"""Measurements whose pictures are embedded; the table always has all of them."""


def _picture(path: Path) -> str | None:
    if not path.is_file():
        return None
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def write_report(folder: Path, rows: list[dict]) -> Path:
    """Writes report.html: pictures, table, settings, and the command that made them.

    Args:
        folder: The run's folder, with .hydra/ and the measurements' folders.
        rows: The metrics of the finished measurements.

    Returns:
        The page's path.
    """
    known = dict.fromkeys(key for row in rows for key, value in row.items() if value is not None)
    columns = [key for key in known if key not in ("name", "warnings")]
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files("rlsd_lightning.results").joinpath("report.html.jinja").read_text()
    )
    page = template.render(
        title=folder.resolve().name,
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        command=_text(folder / ".hydra" / "command.txt").strip(),
        settings=_text(folder / ".hydra" / "config.yaml"),
        columns=columns,
        rows=rows,
        means=means_where_known(rows),
        warnings=[(row["name"], sentence) for row in rows for sentence in row.get("warnings") or ()],
        pictures=[(row["name"], _picture(folder / row["name"] / "grid.png")) for row in rows[:MOST_PICTURES]],
        left_out=max(0, len(rows) - MOST_PICTURES),
    )
    path = folder / "report.html"
    write_atomically(path, page)
    return path
