"""Picture of the page for the docs, taken in a headless browser after a run of its first example.

    pip install playwright
    python -m benchmarks.app_picture docs/app.png

The browser is the system's Chromium; playwright downloads none.
"""

import argparse
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image

from benchmarks.tensorboard_picture import free_port

WINDOW = {"width": 1100, "height": 1000}
SECONDS = 900
"""Longest wait for the run."""
START = "import sys; sys.argv[0] = 'rlsd'; from rlsd_lightning.cli.command import command; command()"


def shot(address: str) -> Image.Image:
    """The page after a run of its first example."""
    from playwright.sync_api import sync_playwright  # not needed elsewhere

    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport=WINDOW)
        page.set_default_timeout(1000 * SECONDS)
        page.goto(address)
        page.locator("#editor canvas").last.wait_for()
        page.wait_for_timeout(10_000)  # the picture is drawn after its canvas
        page.locator("#run").click()
        page.locator("#download").wait_for()
        page.locator("#slider img").last.wait_for()
        page.wait_for_timeout(5_000)
        taken = Image.open(BytesIO(page.screenshot(full_page=True)))
        browser.close()
    return taken.convert("RGB")


def main() -> None:
    """Serve the page, run its first example, and write one picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("picture", type=Path, help="PNG file to write")
    options = parser.parse_args()
    command = [sys.executable, "-c", START, "app", "--port", str(free_port())]
    served = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        taken = shot(served.stdout.readline().split()[0])
    finally:
        served.terminate()
        served.wait()
    taken.quantize(128).save(options.picture, optimize=True)


if __name__ == "__main__":
    main()
