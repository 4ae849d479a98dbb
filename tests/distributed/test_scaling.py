"""The benchmark of several processes: its arithmetic, and a run of it on the tiny prior."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import PROJECT

sys.path.insert(0, str(PROJECT / "benchmarks"))
from scaling import throughput


def test_throughput_counts_only_what_all_do_at_once() -> None:
    steady = {"times": [float(second) for second in range(11)], "particles": 4}
    assert throughput([steady], warm_up=1) == pytest.approx(4)
    late = {"times": [5 + second / 2 for second in range(21)], "particles": 4}  # twice as fast, from 5 to 15
    assert throughput([steady, late], warm_up=1) == pytest.approx(4 + 8)
    slow_start = {"times": [0.0, 5.0, 6.0, 7.0, 8.0], "particles": 1}
    assert throughput([slow_start], warm_up=2) == pytest.approx(1)


@pytest.mark.slow
def test_it_runs(small: list[str], tmp_path: Path) -> None:
    script = PROJECT / "benchmarks" / "scaling.py"
    command = [sys.executable, script, "--steps", "12", "--warm-up", "2", "--rounds", "1"]
    settings = [setting for setting in small if not setting.startswith("num_particles")]
    done = subprocess.run(
        [*command, "--json", tmp_path / "scaling.json", *settings], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "scaling.json").read_text())
    least = figures["particles"]["least_bytes_per_step"]
    assert least == 4 * (4 * 8 * 8) * 4  # float32 gradients of half the particles
    # clean latents or gradients in every step, thumbnails (as large as these images) and features of 16 in half of them;
    # images and noisy latents of two checkpoints, and a picture of x and D(z)
    image, latent = 3 * 32 * 32, 4 * 8 * 8
    numbers = latent + (image + 16) / 2 + (2 * (image + latent) + 2 * image) / 12
    assert figures["particles"]["bytes_per_step"] == pytest.approx(4 * numbers * 4, rel=0.02)
    assert figures["measurements"]["bytes_per_step"] == 0
    assert all(0 < figures[mode]["checkpoint_share"] < 1 and figures[mode]["ratio"] > 0 for mode in figures)
