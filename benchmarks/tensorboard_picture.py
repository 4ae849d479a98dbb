"""Picture of TensorBoard for the docs, taken from a real run in a headless browser.

    rlsd task=inpaint output_dir=RUN
    pip install playwright
    python -m benchmarks.tensorboard_picture RUN docs/tensorboard.png

The browser is the system's Chromium; playwright downloads none.
"""

import argparse
import shutil
import socket
import subprocess
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image

WINDOW = {"width": 1100, "height": 900}
VIEWS = {"custom_scalars": (66, 400), "images": (122, 390)}
"""Pages of TensorBoard, and the rows of pixels to show."""
SIDEBAR = 278
"""Columns of pixels to leave out."""
SECONDS = 60
"""Longest wait for a page."""


def free_port() -> int:
    """A port that no other program uses."""
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def shots(address: str) -> list[Image.Image]:
    """The pages as a browser shows them."""
    from playwright.sync_api import sync_playwright  # not needed elsewhere

    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    taken = []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for view, (top, bottom) in VIEWS.items():
            page = browser.new_page(viewport=WINDOW)
            page.goto(f"{address}/#{view}", timeout=1000 * SECONDS)
            page.get_by_text("PSNR" if view == "custom_scalars" else "pictures/decoded").first.wait_for(
                timeout=1000 * SECONDS
            )
            page.wait_for_timeout(10_000)  # curves and pictures come after their titles
            whole = Image.open(BytesIO(page.screenshot()))
            taken.append(whole.crop((SIDEBAR, top, whole.width, bottom)))
        browser.close()
    return taken


def main() -> None:
    """Start TensorBoard on a run, and write one picture of its pages, one below the other."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("picture", type=Path, help="PNG file to write")
    options = parser.parse_args()
    port = free_port()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", ".", "--port", str(port)]
    board = subprocess.Popen(
        [*command, "--samples_per_plugin", "images=1000"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=options.run,
    )
    try:
        for line in board.stderr:
            if "Press CTRL+C" in line:
                break
        taken = shots(f"http://localhost:{port}")
    finally:
        board.terminate()
    whole = Image.new("RGB", (taken[0].width, sum(each.height for each in taken)))
    top = 0
    for each in taken:
        whole.paste(each, (0, top))
        top += each.height
    whole.quantize(128).save(options.picture, optimize=True)


if __name__ == "__main__":
    main()
