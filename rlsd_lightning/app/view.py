"""What the page shows of a run, as HTML and pictures."""

from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path

from PIL import Image

from rlsd_lightning.app.pictures import as_url, enlarged, uncertainty_over
from rlsd_lightning.app.runs import Run, State
from rlsd_lightning.results.store import read_metrics

__all__ = ["compared", "error_line", "figures", "gallery", "pair", "status"]

FIGURES = (
    ("psnr_best", "PSNR of the best particle", "{:.1f} dB"),
    ("psnr_mean", "PSNR of a particle, on average", "{:.1f} dB"),
    ("psnr_of_mean", "PSNR of the mean picture", "{:.1f} dB"),
    ("psnr_pseudo_inverse", "PSNR without a prior", "{:.1f} dB"),
    ("ssim_mean", "SSIM of a particle, on average", "{:.3f}"),
    ("lpips_mean", "LPIPS of a particle, on average (0: same picture)", "{:.3f}"),
    ("residual_sigmas", "Misfit to the measurement (at most about 1: within its noise)", "{:.2f}"),
    ("vendi", "Effective number of different particles (1: all the same)", "{:.2f}"),
    ("seconds", "Time", "{:.1f} s"),
)
"""Figures of metrics.json that are shown, with their names and formats."""
MEAN = "mean"
"""What is compared beside the particles."""


def error_line(text: str) -> str:
    """A line as the command prints it."""
    return f'<div class="said failed">error: {escape(text)}</div>'


def status(run: Run, ahead: int) -> str:
    """Where a run is; ``ahead`` runs come before a waiting one."""
    if run.state is State.FAILED:
        return error_line(run.said)
    share = run.step / run.steps if run.steps else 0.0
    if run.state is State.WAITING and ahead:
        text = f"Waiting for {ahead} run{'s' if ahead != 1 else ''} before this one"
    elif not run.has_ended:
        text = f"Step {run.step} of {run.steps}" if run.steps else "Getting ready"
    elif run.state is State.CANCELLED:
        text = "Cancelled"
    else:
        asked = run.choice.steps
        text = f"Stopped after {run.step} of {asked} steps, and kept" if run.step < asked else "Done"
    bar = f'<div class="bar"><div style="width:{100 * share:.0f}%"></div></div>' if not run.has_ended else ""
    return f'<div class="said">{text}{bar}</div>'


def gallery(run: Run) -> str:
    """The particles, and of a finished run what was measured, the mean and the uncertainty."""
    if run.state is not State.DONE:
        return _figures_of((f"Particle {index}", picture) for index, picture in enumerate(run.pictures))
    return _figures_of(_results(run))


def _results(run: Run) -> Iterator[tuple[str, Image.Image]]:
    folder = _results_folder(run)
    for name, title in (("truth", "Original"), ("measurement", "Measured"), ("pseudo_inverse", "Measured")):
        if (folder / f"{name}.png").is_file():
            yield title, _open(run, name)
    shares = {one["particle"]: one["share"] for one in _known(run).get("representatives", ())}
    others = (index for index in range(run.choice.particles) if index not in shares)
    for index in (*shares, *others):
        stands_for = f", for {shares[index]:.0%} of them" if index in shares else ""
        yield f"Particle {index}{stands_for}", _open(run, f"particles/{index:02d}")
    yield "Mean", _open(run, "mean")
    yield "Uncertainty: bright where particles disagree", uncertainty_over(_open(run, "mean"), _open(run, "std"))


def _figures_of(pictures: Iterable[tuple[str, Image.Image]]) -> str:
    each = (
        f'<figure><img src="{as_url(picture)}" alt="{escape(title)}"><figcaption>{escape(title)}</figcaption></figure>'
        for title, picture in pictures
    )
    return f'<div class="particles">{"".join(each)}</div>'


def figures(run: Run) -> str:
    """The figures of a finished run, its checks, and its warnings."""
    known = _known(run)
    rows = [
        f"<tr><td>{escape(title)}</td><td>{form.format(known[name])}</td></tr>"
        for name, title, form in FIGURES
        if known.get(name) is not None
    ]
    rows += [
        f"<tr><td>Check: {escape(check['statistic'])}</td><td>{'passed' if check['passed'] else 'failed'}</td></tr>"
        for check in known.get("checks", ())
    ]
    warnings = "".join(f"<li>{escape(text)}</li>" for text in dict.fromkeys(run.warnings))
    return f"<table>{''.join(rows)}</table>" + (f"<ul>{warnings}</ul>" if warnings else "")


def compared(run: Run) -> list[str]:
    """Names of what can be compared with the measurement."""
    return [*map(str, range(run.choice.particles)), MEAN]


def pair(run: Run, which: str) -> tuple[Image.Image, Image.Image]:
    """The measurement and a particle, or the mean, at the same size."""
    particle = enlarged(_open(run, MEAN if which == MEAN else f"particles/{int(which):02d}"))
    name = "measurement" if (_results_folder(run) / "measurement.png").is_file() else "pseudo_inverse"
    return enlarged(_open(run, name), particle.size), particle


def _results_folder(run: Run) -> Path:
    """The folder of the only measurement."""
    return next(run.folder.glob("*/metrics.json")).parent


def _known(run: Run) -> dict:
    """What metrics.json says."""
    return read_metrics(_results_folder(run)) or {}


def _open(run: Run, name: str) -> Image.Image:
    with Image.open(_results_folder(run) / f"{name}.png") as picture:
        return picture.convert("RGB")
