"""Pictures of finished runs, for docs/results.md."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

__all__ = ["table_of_images"]

FONT = 16
"""Height in pixels of the letters."""
LINE = 24
"""Height in pixels of a line of text."""


def table_of_images(rows: Sequence[tuple[str, Path]], columns: dict[str, str], side: int) -> Image.Image:
    """A row for each measurement's folder under its label, a titled column for each file; missing files stay white.

    Columns without any file are left out.

    Args:
        rows: Label and folder.
        columns: File below the folder, by title.
        side: Side in pixels at which images are shown.
    """
    columns = {title: file for title, file in columns.items() if any((folder / file).is_file() for _, folder in rows)}
    line = LINE if any(label for label, _ in rows) else 0
    canvas = Image.new("RGB", (side * len(columns), (side + line) * len(rows) + LINE), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT)
    for column, title in enumerate(columns):
        draw.text((column * side + 4, 2), title, fill="black", font=font)
    for row, (label, folder) in enumerate(rows):
        top = LINE + row * (side + line)
        draw.text((4, top + 2), label, fill="black", font=font)
        for column, file in enumerate(columns.values()):
            if (folder / file).is_file():
                image = Image.open(folder / file).convert("RGB").resize((side, side), Image.Resampling.NEAREST)
                canvas.paste(image, (column * side, top + line))
    return canvas
