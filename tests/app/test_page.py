"""The page without a browser: its pictures, its tabs and its start."""

import errno
import json
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.app import Scripted, choice_of, picture_file, run_of

from rlsd_lightning.app import pictures, view
from rlsd_lightning.app.examples import EXAMPLES
from rlsd_lightning.app.runs import Queue, State
from rlsd_lightning.app.tabs import Tabs
from rlsd_lightning.cli.subcommands import app
from rlsd_lightning.errors import InputError


@pytest.mark.parametrize("size", [(64, 64), (30, 200), (4000, 3000)])
def test_a_mask_has_the_pictures_own_size(tmp_path: Path, size: tuple[int, int]):
    shown, own = pictures.preview(picture_file(tmp_path, size=size))
    assert own == size and max(shown.size) == pictures.CANVAS
    layer = Image.new("RGBA", shown.size)
    layer.paste((255, 0, 0, 255), (0, 0, shown.width // 2, shown.height))
    pictures.write_mask(tmp_path / "mask.png", [layer], own)
    mask = np.asarray(Image.open(tmp_path / "mask.png"))
    assert mask.shape == size[::-1] and set(np.unique(mask)) == {0, 255}
    assert not mask[:, : size[0] // 2].any() and mask[:, size[0] // 2 + 1 :].all()


@pytest.mark.parametrize("box", [None, (0, 0, 20, 20)])
def test_a_mask_of_nothing_or_of_everything_is_refused(tmp_path: Path, box: tuple[int, ...] | None):
    layer = Image.new("RGBA", (20, 20))
    if box:
        layer.paste("red", box)
    with pytest.raises(InputError, match=f"got {'all' if box else 'none'} of it"):
        pictures.write_mask(tmp_path / "mask.png", [layer], (10, 10))


def test_a_picture_with_transparency_is_painted_on_white(tmp_path: Path):
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    shown, _ = pictures.preview(tmp_path / "clear.png")
    assert np.asarray(shown).min() == 255


def test_uncertain_places_are_coloured_and_the_others_grey():
    std = Image.new("L", (4, 2))
    std.paste(255, (0, 0, 2, 2))
    over = np.asarray(pictures.uncertainty_over(Image.new("RGB", (4, 2), "red"), std)).astype(int)
    grey = np.ptp(over, axis=-1) == 0
    assert grey[:, 2:].all() and not grey[:, :2].any()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.label)
def test_examples_paint_what_they_hide(example):
    alpha = np.asarray(example.layer((100, 100)))[..., 3] > 0
    assert (0.02 < alpha.mean() < 0.6) == (example.task == "inpaint")


@pytest.mark.parametrize("said", ["'<img src=x>.png' is <b>bad</b>", "a & b", '"quoted"'])
def test_no_text_becomes_a_part_of_the_page(tmp_path: Path, said: str):
    run = run_of("a", tmp_path)
    run.enter(State.FAILED, said)
    shown = view.status(run, 0)
    assert said not in shown and shown.count("<") == 2


def test_representatives_come_first_and_checks_are_said(tmp_path: Path):
    run = run_of("tab", tmp_path)
    run.choice, run.state = choice_of(particles=3), State.DONE
    results = run.folder / "picture"
    for name in ("truth", "measurement", "mean", "std", "particles/00", "particles/01", "particles/02"):
        picture_file((results / name).parent, f"{Path(name).name}.png")
    stands_for = [{"particle": 2, "share": 2 / 3}, {"particle": 0, "share": 1 / 3}]
    checks = [{"statistic": statistic, "passed": passed} for statistic, passed in (("<size>", True), ("spread", False))]
    (results / "metrics.json").write_text(json.dumps({"representatives": stands_for, "checks": checks}))
    save_file({"x": torch.zeros(1)}, results / "particles.safetensors")
    titles = re.findall("<figcaption>(.*?)</figcaption>", view.gallery(run))
    assert titles[2:5] == ["Particle 2, for 67% of them", "Particle 0, for 33% of them", "Particle 1"]
    shown = view.figures(run)
    assert "<td>Check: &lt;size&gt;</td><td>passed</td>" in shown
    assert "<td>Check: spread</td><td>failed</td>" in shown


def test_a_line_says_how_many_runs_are_before(tmp_path: Path):
    run = run_of("a", tmp_path)
    assert "Waiting for 1 run before" in view.status(run, 1)
    assert "Waiting for 3 runs before" in view.status(run, 3)
    run.show(3, 12, [Image.new("RGB", (8, 8))] * 2)
    run.enter(State.RUNNING)
    assert "Step 3 of 12" in view.status(run, 0) and "width:25%" in view.status(run, 0)
    assert view.gallery(run).count("<img") == 2


def test_a_tab_has_copies_and_leaves_nothing(tmp_path: Path):
    root, cache = tmp_path / "root", tmp_path / "cache"
    solve = Scripted()
    queue = Queue(solve)
    root.mkdir()
    own = picture_file(cache, "of_the_page.png")
    tabs = Tabs(root, cache, queue)
    tabs.keep_cached()
    first = tabs["first"]
    uploaded = picture_file(cache, "first.png")
    first.take(uploaded)
    run = first.ask(queue, choice_of(), None)
    assert run.choice.picture.read_bytes() == uploaded.read_bytes()
    time.sleep(0.02)
    second = tabs["second"]
    time.sleep(0.02)
    other = picture_file(cache, "second.png")
    second.take(other)
    tabs.close("first")
    queue.close()
    assert run.state is State.CANCELLED
    assert not first.folder.exists() and not uploaded.exists()
    assert second.folder.exists() and other.exists()
    tabs.close("second")
    assert list(cache.iterdir()) == [own] and not list(root.iterdir())


def test_a_refused_run_can_be_asked_for_again(tmp_path: Path):
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.png")
    tab, queue = Tabs(tmp_path, tmp_path / "cache", Queue(Scripted()))["a"], Queue(Scripted())
    tab.take(tmp_path / "photo.png")
    unpainted, painted = (Image.new("RGBA", (40, 30), (255, 0, 0, opacity)) for opacity in (0, 255))
    painted.paste((0, 0, 0, 0), (0, 0, 20, 30))
    choice = choice_of(tmp_path / "photo.png", task="inpaint", strength=None, is_damaged=False)
    with pytest.raises(InputError):
        tab.ask(queue, choice, [unpainted])
    assert tab.ask(queue, choice, [painted]).folder.is_dir()


@pytest.mark.parametrize(("task", "strength"), [("denoise", 0.2), ("super_resolution", 4)])
def test_a_large_damaged_picture_is_refused(tmp_path: Path, task: str, strength: float):
    Image.new("RGB", (600, 8) if task == "denoise" else (150, 8)).save(tmp_path / "photo.png")
    tab = Tabs(tmp_path, tmp_path / "cache", Queue(Scripted()))["a"]
    tab.take(tmp_path / "photo.png")
    choice = choice_of(tmp_path / "photo.png", task=task, strength=strength, is_damaged=True)
    with pytest.raises(InputError, match="at most 512 pixels a side are made here, got 600; reduce or crop it"):
        tab.ask(Queue(Scripted()), choice, None)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_a_bad_upload_is_named_without_its_folder(tmp_path: Path, content: bytes):
    (tmp_path / "bad.png").write_bytes(content)
    tab = Tabs(tmp_path, tmp_path / "cache", Queue(Scripted()))["a"]
    with pytest.raises(InputError, match=r"'bad\.png'") as caught:
        tab.take(tmp_path / "bad.png")
    assert str(tab.folder) not in str(caught.value) and tab.picture is None


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the command sets for its whole process."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    loggers = [logging.getLogger(name) for name in ("", "rlsd_lightning", "train")]
    levels, handlers = [each.level for each in loggers], [(each, each.level) for each in loggers[0].handlers]
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    for each, level in handlers:
        each.setLevel(level)


@pytest.mark.usefixtures("restored")
def test_without_gradio_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in ("page", "layout"):
        monkeypatch.delitem(sys.modules, f"rlsd_lightning.app.{name}", raising=False)
    assert app.main([]) == 1
    assert capsys.readouterr().err == (
        "error: the page needs gradio, which is not installed: pip install 'rlsd-lightning[app]'\n"
    )


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_taken_port_is_one_line(host: str, capsys: pytest.CaptureFixture):
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert app.main(["--port", str(port), "--host", host]) == 1
    said = f"error: can't listen on {host}:{port} ({os.strerror(errno.EADDRINUSE)}); choose another --port or --host\n"
    assert capsys.readouterr().err == said


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("host", ["10.99.99.99", "no.such.host.invalid", "a..b", "x" * 70, "::2"])
def test_a_host_that_is_not_this_machine_is_one_line(host: str, capsys: pytest.CaptureFixture):
    pytest.importorskip("gradio")
    assert app.main(["--host", host]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: can't listen on {host}:7860 (") and said.count("\n") == 1
    assert said.endswith("); choose another --port or --host\n") and "in use" not in said
