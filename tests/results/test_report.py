"""report.html as a browser sees it, and summary.csv."""

import base64
import csv
import errno
import io
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.command import train
from support.page import Page

from rlsd_lightning.results.report import write_report
from rlsd_lightning.results.store import mean_figures, read_metrics, write_atomically, write_metrics, write_summary

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def opened(page: Path, scratch: Path) -> str:
    """The document after a headless browser has loaded it."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--dump-dom",
        "--virtual-time-budget=2000",
        "--window-size=1300,900",
    ]
    finished = subprocess.run(
        [*command, f"--user-data-dir={scratch / 'profile'}", page.resolve().as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return finished.stdout


def test_means_are_of_the_figures_that_are_known() -> None:
    rows = [{"name": "a", "vendi": 0.2, "energy": None}, {"name": "b", "vendi": 0.4, "energy": 0.5}]
    assert mean_figures(rows) == {"vendi": pytest.approx(0.3), "energy": 0.5}


@pytest.fixture(scope="module")
def run(tiny_prior_folder: Path, tiny_features_folder: Path, tmp_path_factory) -> tuple[Path, list[str]]:
    """A run over two measurements, one with a name that means something in HTML, and its command line."""
    base = tmp_path_factory.mktemp("report")
    photos = base / "photos"
    photos.mkdir()
    for name, colour in (("a", "red"), ("<b>bold & 'odd'", "blue")):
        Image.new("RGB", (32, 32), colour).save(photos / f"{name}.png")
    command = [
        f"prior.pretrained={tiny_prior_folder}",
        "num_steps=3",
        "num_particles=2",
        f"data.images={photos}",
        "data.limit=null",
        f"output_dir={base / 'run'}",
    ]
    code, printed = train(*command)
    assert code == 0, printed
    return base / "run", command


NAMES = ["<b>bold & 'odd'", "a"]


@pytest.fixture(scope="module")
def dom(run: tuple[Path, list[str]], tmp_path_factory) -> str:
    return opened(run[0] / "report.html", tmp_path_factory.mktemp("browser"))


@pytest.fixture(params=["file", "browser"])
def page(request: pytest.FixtureRequest, run: tuple[Path, list[str]]) -> Page:
    """The page as written, which every machine can read, and as a browser shows it."""
    if request.param == "file":
        return Page((run[0] / "report.html").read_text())
    return Page(request.getfixturevalue("dom"))


def test_the_table_has_every_measurement_and_the_mean(run: tuple[Path, list[str]], page: Page) -> None:
    header, *rows, mean = page.table
    assert header[0] == "measurement"
    assert {"psnr mean", "psnr best", "vendi", "residual", "seconds"} <= set(header)
    assert [row[0] for row in rows] == NAMES
    assert mean[0] == "mean"
    column = header.index("psnr mean")
    values = [read_metrics(run[0] / name)["psnr_mean"] for name in NAMES]
    assert [row[column] for row in (*rows, mean)] == [f"{value:.4g}" for value in (*values, sum(values) / 2)]


def test_figures_that_are_not_known_of_any_measurement_have_no_column(page: Page) -> None:
    assert "lpips mean" not in page.table[0]
    assert "vendi" in page.table[0]


def test_checks_have_a_line_each_with_range_and_verdict(run: tuple[Path, list[str]], page: Page) -> None:
    header, *lines = page.tables["checks"]
    every = [{check["name"]: check for check in read_metrics(run[0] / name)["checks"]} for name in NAMES]
    assert len(lines) == len(set(every[0]) | set(every[1]))
    assert {"residual_size", "latent_residual", "stein_discrepancy"} <= every[0].keys()
    stein = next(line for line in lines if line[0] == every[0]["stein_discrepancy"]["statistic"])
    found = dict(zip(header, stein, strict=True))
    values = [checks["stein_discrepancy"] for checks in every]
    assert found["number"] == f"{(values[0]['value'] + values[1]['value']) / 2:.4g}"
    assert found["range of a right run"] == "up to 10"
    failed = [name for name, value in zip(NAMES, values, strict=True) if not value["passed"]]
    assert found["verdict"] == (f"failed {len(failed)} of 2: {', '.join(failed)}" if failed else "passed")


def test_pictures_are_embedded_and_decode(run: tuple[Path, list[str]], page: Page) -> None:
    files = [run[0] / name / file for name in NAMES for file in ("grid.png", "directions.png", "filmstrip.png")]
    for file, source in zip(files, page.having("img", "src"), strict=True):
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        embedded = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        embedded.load()
        with Image.open(file) as picture:
            assert embedded.tobytes() == picture.tobytes()


def test_the_command_and_the_settings_are_there(run: tuple[Path, list[str]], page: Page) -> None:
    command = page.texts["command"]
    assert command.startswith("python train.py ")
    for argument in run[1]:
        assert argument in command
    assert "num_particles: 2" in page.texts["settings"]
    assert "_target_: rlsd_lightning.methods.rlsd.RLSD" in page.texts["settings"]


def test_nothing_comes_from_the_network(page: Page) -> None:
    referenced = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster")
    ]
    assert all(value.startswith(("data:", "#")) for value in referenced)
    assert not page.having("script", "src")


def test_styles_reference_nothing(run: tuple[Path, list[str]]) -> None:
    styles = re.findall(r"<style>(.*?)</style>", (run[0] / "report.html").read_text(), re.DOTALL)
    assert styles
    assert not re.search(r"url\(|@import", "".join(styles))


def test_a_name_is_text_and_never_markup(page: Page) -> None:
    assert not [tag for tag, _ in page.tags if tag == "b"]
    assert any(NAMES[0] in text for text in page.having("img", "alt"))


def test_a_finished_measurement_is_in_the_report_of_a_run_that_was_resumed(run: tuple[Path, list[str]]) -> None:
    before = Page((run[0] / "report.html").read_text())
    code, printed = train(f"resume={run[0]}")
    assert code == 0, printed
    after = Page((run[0] / "report.html").read_text())
    assert after.table == before.table
    assert after.texts["command"] == before.texts["command"]


def test_the_summary_has_a_row_per_measurement_and_the_mean(run: tuple[Path, list[str]]) -> None:
    rows = list(csv.DictReader((run[0] / "summary.csv").open(newline="")))
    assert [row["name"] for row in rows] == [*NAMES, "mean"]
    for key in ("psnr_mean", "psnr_best", "psnr_of_mean", "vendi", "residual", "num_particles", "seconds"):
        *each, mean = (float(row[key]) for row in rows)
        assert mean == pytest.approx(sum(each) / len(each))
        assert each == pytest.approx([read_metrics(run[0] / name)[key] for name in NAMES])
    assert {row["lpips_mean"] for row in rows} == {""}


def test_a_figure_that_some_measurements_lack_is_averaged_over_the_rest(tmp_path: Path) -> None:
    rows = [{"name": "a", "psnr_mean": 20.0}, {"name": "b", "psnr_mean": None}, {"name": "c", "psnr_mean": 30.0}]
    write_summary(tmp_path, rows)
    *_, mean = csv.DictReader((tmp_path / "summary.csv").open(newline=""))
    assert float(mean["psnr_mean"]) == 25
    page = Page(write_report(tmp_path, rows).read_text())
    assert [row[1] for row in page.table] == ["psnr mean", "20", "\N{EN DASH}", "30", "25"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_figure_that_json_has_not_is_null(tmp_path: Path, value: float) -> None:
    save_file({"z": torch.zeros(1)}, tmp_path / "particles.safetensors")
    write_metrics(tmp_path, {"name": "a", "psnr_mean": value, "num_steps": 3, "checks": [{"value": value}]})
    expected = {"name": "a", "psnr_mean": None, "num_steps": 3, "checks": [{"value": None}]}
    assert read_metrics(tmp_path) == expected


def test_two_processes_may_write_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, flush = tmp_path / "chosen.json", os.fsync

    def write_another(number: int) -> None:
        flush(number)
        monkeypatch.setattr(os, "fsync", flush)
        write_atomically(file, "another")

    monkeypatch.setattr(os, "fsync", write_another)
    write_atomically(file, "own")
    assert file.read_text() == "own"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_failed_write_leaves_the_file_as_it_was(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_atomically(tmp_path / "summary.csv", "old")
    monkeypatch.setattr(os, name, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "summary.csv", "new")
    assert [file.name for file in tmp_path.iterdir()] == ["summary.csv"]
    assert (tmp_path / "summary.csv").read_text() == "old"


def test_without_rows_no_old_summary_stays(tmp_path: Path) -> None:
    write_summary(tmp_path, [{"name": "a", "psnr_mean": 20.0}])
    write_summary(tmp_path, [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [None, "", '{"name": "a", "psn'])
def test_a_measurement_without_whole_metrics_is_not_finished(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    assert read_metrics(tmp_path) is None


def test_a_report_without_pictures_or_settings_is_still_one(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path, [{"name": "a", "residual": 0.25}]).read_text())
    assert page.table[1] == ["a", "0.25"]
    assert not page.having("img", "src")
    assert "command" not in page.texts


def test_warnings_are_in_the_log_and_the_report_but_not_in_the_summary(small: list[str], tmp_path: Path) -> None:
    code, printed = train(*small, "num_steps=5", "method.gamma=3", "data.limit=1", f"output_dir={tmp_path / 'run'}")
    assert code == 0, printed
    said = "000: the repulsion is 3 times as strong as the data gradient or score"
    assert said in printed
    assert said in (tmp_path / "run" / "train.log").read_text()
    assert "the repulsion is 3 times as strong" in (tmp_path / "run" / "report.html").read_text()
    (row, _) = csv.DictReader((tmp_path / "run" / "summary.csv").open(newline=""))
    assert "warnings" not in row


def test_a_sentence_is_text_and_a_healthy_report_has_none(tmp_path: Path) -> None:
    rows = [{"name": "<i>a", "residual": 1.0, "warnings": ["<i>too</i> far"]}]
    document = write_report(tmp_path, rows).read_text()
    assert "&lt;i&gt;too" in document
    assert not [tag for tag, _ in Page(document).tags if tag == "i"]
    assert Page(document).table[0] == ["measurement", "residual"]
    rows[0]["warnings"] = []
    assert "Warnings" not in write_report(tmp_path, rows).read_text()


def test_the_table_breaks_between_words_and_fits_a_screen(run: tuple[Path, list[str]], tmp_path: Path) -> None:
    document = (run[0] / "report.html").read_text()
    assert "<wbr>" not in document
    page = tmp_path / "measured.html"
    script = """<script>
    const words = [...document.querySelectorAll("th")].flatMap(cell => {
      const text = cell.firstChild, range = document.createRange();
      return [...text.data.matchAll(/\\S+/g)].map(word => {
        range.setStart(text, word.index); range.setEnd(text, word.index + word[0].length);
        return range.getClientRects().length;
      });
    });
    document.body.insertAdjacentHTML("beforeend", `<pre id="lines">${Math.max(...words)}</pre>` +
      `<pre id="width">${document.documentElement.scrollWidth - innerWidth}</pre>`);
    </script>"""
    page.write_text(document.replace("</body>", script + "</body>"))
    texts = Page(opened(page, tmp_path)).texts
    assert texts["lines"] == "1"  # of one word
    assert int(texts["width"]) <= 0  # the page itself needs no scrolling sideways
