"""The page in a real browser; skipped where there is no Chromium."""

import contextlib
import io
import os
import re
import socket
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from support.app import browser_path, picture_file

from rlsd_lightning.cli.subcommands.app import Solver

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
pytest.importorskip("gradio", reason="pip install 'rlsd-lightning[app]'")
pytestmark = [
    pytest.mark.skipif(browser_path() is None, reason="no Chromium on this machine: apt install chromium"),
    pytest.mark.xdist_group("browser"),
]
SECONDS = 120
"""Longest wait for anything."""
LOCAL = ("127.0.0.1", "localhost", "::1", "0.0.0.0")


class Server:
    """A page that is served, and what it has been asked and has asked."""

    def __init__(self, page, address: str, root: Path) -> None:
        self.page, self.address, self.root = page, address, root
        self.asked: list[str] = []
        self.reached: list[str] = []

    @property
    def tabs(self) -> list:
        return list(self.page.tabs._tabs.values())


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_prior_folder: Path) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("app")
    connect = socket.socket.connect
    made = Server(None, "", root)

    def connecting(self: socket.socket, address: object) -> None:
        made.reached.append(address[0] if isinstance(address, tuple) else str(address))
        connect(self, address)

    environment = {"GRADIO_TEMP_DIR": str(root / "cache"), "GRADIO_ANALYTICS_ENABLED": "False"}
    with mock.patch.dict(os.environ, environment), mock.patch.object(socket.socket, "connect", connecting):
        from rlsd_lightning.app.page import Page

        made.page = Page(Solver(["prior=photos", f"prior.pretrained={tiny_prior_folder}", "prior.image_size=32"]), root)
        made.address = made.page.launch("127.0.0.1", free_port())
        yield made
        made.page.queue.close()
        made.page.blocks.close()


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(server: Server, browser: "playwright.Browser") -> Iterator[Callable[[], "playwright.Page"]]:
    with contextlib.ExitStack() as opened:

        def opening() -> "playwright.Page":
            context = opened.enter_context(
                contextlib.closing(browser.new_context(viewport={"width": 1280, "height": 1400}))
            )
            context.set_default_timeout(1000 * SECONDS)
            context.on("request", lambda request: server.asked.append(request.url))
            page = context.new_page()
            page.goto(server.address)
            page.locator("#editor canvas").last.wait_for()
            return page

        yield opening


@pytest.fixture
def page(open_page: Callable[[], "playwright.Page"]) -> "playwright.Page":
    return open_page()


def upload(page: "playwright.Page", file: Path) -> None:
    remove = page.locator("#upload").get_by_label("Clear")
    if remove.count():
        remove.click()
    page.locator("#upload input[type=file]").set_input_files(file)


def paint(page: "playwright.Page") -> None:
    """One stroke from left to right through the middle."""
    box = page.locator("#editor canvas").last.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.35 * box["width"], middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.65 * box["width"], middle, steps=8)
    page.mouse.up()


def choose(page: "playwright.Page", task: str) -> None:
    page.get_by_role("radio", name=task).check()


def say(page: "playwright.Page", text: str) -> None:
    playwright.expect(page.locator("#status .said")).to_have_text(re.compile(text), timeout=1000 * SECONDS)


def set_number(page: "playwright.Page", name: str, value: int) -> None:
    page.locator(f"#{name} input[type=number]").fill(str(value))
    page.locator(f"#{name} input[type=number]").blur()


def more_choices(page: "playwright.Page") -> None:
    page.get_by_text("More choices").click()
    page.locator("#seed input").wait_for()


def unpacked(page: "playwright.Page") -> zipfile.ZipFile:
    with page.expect_download() as coming:
        page.locator("#download").click()
    return zipfile.ZipFile(io.BytesIO(coming.value.path().read_bytes()))


def picture_in(packed: zipfile.ZipFile, name: str) -> np.ndarray:
    (found,) = [each for each in packed.namelist() if each.endswith(name)]
    return np.asarray(Image.open(io.BytesIO(packed.read(found))))


def test_a_painted_mask_becomes_four_completions(page: "playwright.Page", tmp_path: Path):
    # a phone's picture: lying on its side, with a note that says so
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(picture_file(tmp_path, size=(400, 300))).save(tmp_path / "phone.jpg", exif=exif)
    upload(page, tmp_path / "phone.jpg")
    page.wait_for_timeout(1500)  # the editor draws it
    paint(page)
    page.locator("#run").click()
    say(page, "Done")
    titles = page.locator("#gallery figcaption").all_inner_texts()
    assert titles[:6] == ["Original", "Measured", *(f"Particle {index}" for index in range(4))]
    assert titles[6] == "Mean" and len(titles) == 8
    assert "inputs/phone.jpg" in page.locator("#command textarea").input_value()
    packed = unpacked(page)
    hidden = picture_in(packed, "inputs/mask_of_phone.png") == 0
    assert hidden.shape == (400, 300)
    rows, columns = np.nonzero(hidden)
    assert 0.01 < hidden.mean() < 0.5
    assert abs(rows.mean() / 400 - 0.5) < 0.1 and abs(columns.mean() / 300 - 0.5) < 0.1
    truth, particle = (picture_in(packed, name).astype(int) for name in ("truth.png", "particles/03.png"))
    assert truth.shape == particle.shape and truth.shape[0] > truth.shape[1]
    solved = np.asarray(Image.fromarray(hidden).resize(truth.shape[1::-1], Image.Resampling.BOX)) > 0
    assert np.abs(truth - particle)[~solved].mean() < 3 < np.abs(truth - particle)[solved].mean()


def test_a_cancelled_run_leaves_the_page_usable(page: "playwright.Page", tmp_path: Path):
    upload(page, picture_file(tmp_path))
    choose(page, "Remove noise")
    more_choices(page)
    set_number(page, "steps", 200)
    page.locator("#run").click()
    say(page, "Step")
    page.locator("#cancel").click()
    say(page, "Cancelled")
    set_number(page, "steps", 20)
    page.locator("#run").click()
    say(page, "Done")
    playwright.expect(page.locator("#runs label")).to_have_count(2)


@pytest.mark.slow
def test_a_stopped_run_is_kept(page: "playwright.Page", tmp_path: Path):
    upload(page, picture_file(tmp_path))
    choose(page, "Remove noise")
    more_choices(page)
    set_number(page, "steps", 200)
    page.locator("#run").click()
    page.locator("#stop:not([disabled])").click()
    say(page, r"Stopped after \d+ of 200 steps, and kept")
    assert page.locator("#gallery figure").count() == 8
    assert any(name.endswith("metrics.json") for name in unpacked(page).namelist())


def test_a_bad_file_gets_one_line(page: "playwright.Page", tmp_path: Path):
    for name, content in {"note.jpg": b"this is no picture", "none.png": b"", "paper.pdf": b"%PDF-1.4"}.items():
        (tmp_path / name).write_bytes(content)
        upload(page, tmp_path / name)
        say(page, rf"error: .*'{name}'.*")
        assert "\n" not in page.locator("#status .said").inner_text()
    page.locator("#run").click()
    say(page, "error: a picture is expected, got none")
    page.locator("#examples button.thumbnail-item, #examples .thumbnail-lg").nth(1).click()
    playwright.expect(page.get_by_role("radio", name="Enlarge")).to_be_checked()
    say(page, "Particles appear here")


def submitted(page: "playwright.Page", seeds: range) -> None:
    for seed in seeds:
        set_number(page, "seed", seed)
        page.wait_for_timeout(50)
        page.locator("#run").click()


@pytest.mark.slow
def test_twenty_quick_runs_from_two_browsers(
    open_page: Callable[[], "playwright.Page"], server: Server, tmp_path: Path
):
    pages = [open_page(), open_page()]
    for number, page in enumerate(pages):
        upload(page, picture_file(tmp_path, f"browser{number}.png", seed=number))
        choose(page, "Remove noise")
        set_number(page, "particles", 2)
        more_choices(page)
        set_number(page, "steps", 20)
    for number, page in enumerate(pages):
        submitted(page, range(100 * number, 100 * number + 10))
    for number, page in enumerate(pages):
        playwright.expect(page.locator("#runs label")).to_have_count(10, timeout=1000 * SECONDS)
        playwright.expect(page.locator("#runs label", has_text=re.compile("waiting|running"))).to_have_count(
            0, timeout=1000 * SECONDS
        )
        for index in (0, 4, 9):
            page.locator("#runs label").nth(index).click()
            command = re.compile(rf"inputs/browser{number}\.png .* seed={100 * number + index}$")
            playwright.expect(page.locator("#command textarea")).to_have_value(command)
        packed = unpacked(page)
        expected = np.asarray(Image.open(tmp_path / f"browser{number}.png"))
        assert np.abs(picture_in(packed, "truth.png").astype(int) - expected).max() <= 1
    tabs = [tab for tab in server.tabs if len(tab.runs) == 10]
    assert len(tabs) == 2
    for tab in tabs:
        assert {run.state.value for run in tab.runs} == {"done"}
        seeds = [run.choice.seed for run in tab.runs]
        assert seeds == list(range(seeds[0], seeds[0] + 10))
        for run in tab.runs:
            assert re.search(
                f"^seed: {run.choice.seed}$", (run.folder / ".hydra/config.yaml").read_text(), re.MULTILINE
            )


def test_what_a_closed_tab_had_is_removed(open_page: Callable[[], "playwright.Page"], server: Server, tmp_path: Path):
    page = open_page()
    upload(page, picture_file(tmp_path, "secret.png"))
    choose(page, "Colour")
    page.locator("#run").click()
    say(page, "Done")
    assert list(server.root.rglob("secret.png"))
    page.context.close()
    deadline = time.monotonic() + SECONDS
    while server.tabs or list(server.root.rglob("secret*")) or list(server.root.glob("tab*")):
        assert time.monotonic() < deadline, list(server.root.rglob("*"))
        time.sleep(0.2)


def test_no_request_leaves_this_machine(page: "playwright.Page", server: Server):
    page.wait_for_timeout(500)
    fetched = [url.removeprefix("blob:") for url in server.asked if not url.startswith("data:")]
    hosts = {re.match(r"\w+://([^/:]+)", url)[1] for url in fetched}
    assert hosts == {"127.0.0.1"}
    assert set(server.reached) <= {*LOCAL}, server.reached
