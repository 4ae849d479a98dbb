"""benchmarks/run.py: what it counts, and its rows."""

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch
from support.command import PROJECT

sys.path.insert(0, str(PROJECT / "benchmarks"))
import run
from step import counting


def test_operations_of_a_convolution_and_its_gradient_are_counted_without_memory() -> None:
    layer = torch.nn.Conv2d(3, 8, 3, padding=1, device="meta").requires_grad_(False)
    images = torch.zeros(2, 3, 16, 16, device="meta", requires_grad=True)
    forward = 2 * 2 * 8 * 16 * 16 * 3 * 9  # a multiplication and an addition
    with counting() as counter:
        made = layer(images)
    assert counter.get_total_flops() == forward
    with counting() as counter:
        made.sum().backward()
    assert counter.get_total_flops() == forward


@pytest.fixture
def arguments() -> argparse.Namespace:
    return argparse.Namespace(
        task="inpaint",
        num_steps=None,
        num_particles=2,
        images=1,
        pictures=None,
        count=False,
        device="cpu",
        precision="32-true",
        time=[],
    )


def test_a_run_is_counted_step_by_step(
    tiny_prior_folder: Path, arguments: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted(method: str, steps: int, *settings: str) -> float:
        arguments.num_steps = steps
        monkeypatch.setitem(run.METHODS, method, [*run.METHODS[method], "features=latents", *settings])
        cfg = run.settings_of("faces", method, arguments)
        cfg.prior.pretrained = str(tiny_prior_folder)
        return run.count("faces", cfg)

    plain = ["method.gamma=0", "method.refine_share=0"]
    # every step costs the same but the last, which has no gradient; the final images are a decode more
    two, four, six = (counted("rlsd", steps, *plain) for steps in (2, 4, 6))
    assert four - two == pytest.approx(six - four)
    assert (four - two) / 2 < two < four - two
    # the refinement needs no gradient through the denoiser
    assert counted("rlsd", 4, "method.refine_share=1.0") < four


@pytest.mark.parametrize("timed", [False, True])
def test_rows_are_null_where_nothing_was_measured(
    timed: bool, arguments: argparse.Namespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured = {"seconds": 2.0, **dict.fromkeys(run.QUALITY, 20.0)}
    monkeypatch.setattr(run, "count", lambda *_: 0.5)
    monkeypatch.setattr(run, "measure", lambda *_: measured)
    monkeypatch.setattr(run, "image_size", lambda *_: 64)
    arguments.time = ["faces"] if timed else []
    row = run.row_of("faces", "rlsd", arguments)
    assert list(row) == json.loads(
        """["method", "default", "prior", "image_size", "num_particles", "num_steps", "tflop", "seconds", "device",
        "psnr_mean", "psnr_best", "psnr_of_mean", "diversity"]"""
    )
    assert (row["default"], row["num_steps"], row["tflop"]) == (True, 50, 0.5)
    assert [row[name] for name in measured] == (list(measured.values()) if timed else [None] * 5)
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n<!-- runs -->\nold\n<!-- end -->\nrest\n")
    run.write_table([row], page)
    cells = "2 | 20 | 20 | 20 | 20" if timed else " |  |  |  | "
    assert f"| faces | rlsd | 50 | 0.5 | {cells} |" in page.read_text()
    assert page.read_text().endswith("<!-- end -->\nrest\n") and "old" not in page.read_text()


def test_rows_of_other_methods_in_the_file_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def row(prior: str, method: str, tflop: float) -> dict:
        return {
            "prior": prior,
            "method": method,
            "num_steps": 1,
            "tflop": tflop,
            "seconds": None,
            **dict.fromkeys(run.QUALITY),
        }

    file = tmp_path / "runs.json"
    file.write_text(json.dumps([row("sd15", "rlsd", 1.0), row("faces", "dps", 1.0), row("faces", "latino", 1.0)]))
    monkeypatch.setattr(run, "row_of", lambda prior, method, _: row(prior, method, 2.0))
    monkeypatch.setattr(sys, "argv", ["run.py", "--json", str(file), "--priors", "faces", "--methods", "rlsd", "dps"])
    run.main()
    found = [(each["prior"], each["method"], each["tflop"]) for each in json.loads(file.read_text())]
    assert found == [("faces", "rlsd", 2.0), ("faces", "dps", 2.0), ("faces", "latino", 1.0), ("sd15", "rlsd", 1.0)]
