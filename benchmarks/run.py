"""Operations, seconds and quality of complete runs of each method, with four particles.

python benchmarks/run.py --json docs/runs.json --plot docs/runs.png --page docs/performance.md

The settings are those of the command line, so what is counted and timed is what `python train.py method=... prior=...` does.
Operations are those of torch.utils.flop_counter over every step and the final images, on tensors without memory: any machine
counts Stable Diffusion at 512x512, with the tiny decoder madebyollin/taesd. Seconds and quality are those of held-out images on the embedded priors; of Stable
Diffusion, which has random weights here, only seconds are known, where --time asks for them. The published loop is a step of
published.py, counted and timed without repulsion, times its 999.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
from alone import Alone
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from omegaconf import DictConfig
from problems import RandomStableDiffusion, make_problem, stable_diffusion_levels
from published import published_step
from step import AT, counting, now, time_steps

import rlsd_lightning.cli.command  # noqa: F401  registers what the configs interpolate
from rlsd_lightning import solve
from rlsd_lightning.engine.chosen import use_precision
from rlsd_lightning.measurement import Measurement, MeasurementList
from rlsd_lightning.priors import Prior

PROJECT = Path(__file__).resolve().parents[1]
PRIORS = {
    "faces": ["prior=faces"],
    "photos": ["prior=photos", f"data.images={PROJECT / 'data' / 'photos'}"],
    "sd15": ["prior=sd15"],
}
METHODS = {
    "published": [],
    "rlsd": [],
    "rlsd_own_decoder": ["prior.tiny_decoder=null"],
    "rlsd_no_selection": ["method.outlier_ratio=null"],
    "rlsd_100_steps": ["num_steps=100"],
    "rlsd_25_steps": ["num_steps=25"],
    "rlsd_14_steps": ["num_steps=14"],  # at about latino's operations
    "distilled": ["method=distilled", "num_steps=100"],
    "dps": ["method=dps", "num_steps=100"],
    "daps": ["method=daps", "num_steps=20"],  # five network evaluations a step
    "latino": ["method=latino", "num_steps=8"],
}
PUBLISHED_STEPS = 999
QUALITY = ("psnr_mean", "psnr_best", "psnr_of_mean", "diversity")
VENDI = "vendi"
"""Key of metrics.json that a row's diversity is: the Vendi score, the effective number of different particles."""
Row = dict[str, str | int | float | bool | None]


def settings_of(prior: str, method: str, args: argparse.Namespace) -> DictConfig:
    """The command line's settings of a run."""
    steps = [] if args.num_steps is None else [f"num_steps={args.num_steps}"]
    size = [f"prior.image_size={args.photo_size}"] if prior == "photos" else []
    pictures = [] if args.pictures is None else [f"data.images='{args.pictures}'"]
    command = [
        f"task={args.task}",
        *PRIORS[prior],
        *pictures,
        *size,
        *METHODS[method],
        *steps,
        f"num_particles={args.num_particles}",
    ]
    with initialize_config_dir(str(PROJECT / "configs"), version_base="1.3"):
        return compose("train", [*command, f"data.limit={args.images}"])


def prior_of(name: str, cfg: DictConfig, device: torch.device) -> Prior:
    """The embedded prior, or Stable Diffusion with random weights on a device."""
    if name != "sd15":
        return instantiate(cfg.prior)
    with device:
        return RandomStableDiffusion(image_size=cfg.prior.image_size, tiny=cfg.prior.tiny_decoder is not None)


def count(name: str, cfg: DictConfig) -> float:
    """Operations of all steps and the final images, in units of 10^12; two for a multiplication with its addition."""
    nothing = torch.device("meta")
    prior = prior_of(name, cfg, nothing)
    levels = stable_diffusion_levels() if name == "sd15" else (prior.alphas.clone(), prior.sigmas.clone())
    prior.alphas, prior.sigmas = levels
    physics = instantiate(cfg.physics)(prior.image_shape)
    measurement = Measurement("m", physics.A(torch.zeros(1, *prior.image_shape)), physics)
    module = instantiate(cfg.method)(prior, measurement, instantiate(cfg.features)).to(nothing)
    alone = Alone(module)
    prior.alphas, prior.sigmas = levels  # noise levels are looked at, where they have values
    with counting() as counter:
        for t in module.timesteps:
            alone.step(t)
        module.reconstructions()
    return counter.get_total_flops() / 1e12


def count_published(name: str, args: argparse.Namespace) -> float:
    """Operations of the published loop, in units of 10^12."""
    problem = make_problem(name, args.num_particles, "meta", args.photo_size if name == "photos" else None)
    if name == "sd15":
        problem.prior.alphas, problem.prior.sigmas = stable_diffusion_levels()
    step = published_step(problem, gamma=0.0)
    with counting() as counter:
        step(AT)
    return counter.get_total_flops() / 1e12 * PUBLISHED_STEPS


def time_published(name: str, args: argparse.Namespace) -> float:
    """Seconds of the published loop."""
    problem = make_problem(name, args.num_particles, args.device, args.photo_size if name == "photos" else None)
    step = published_step(problem, gamma=0.0)
    return time_steps({"published": step}, 3, torch.device(args.device), args.precision)["published"] * PUBLISHED_STEPS


def measure(name: str, cfg: DictConfig, args: argparse.Namespace) -> Row:
    """Median seconds of a measurement, and mean figures of the held-out images."""
    device = torch.device(args.device)
    prior, features = prior_of(name, cfg, device), instantiate(cfg.features)
    data: MeasurementList = instantiate(cfg.data)(prior.image_shape, instantiate(cfg.physics))
    trainer = {"accelerator": device.type, "precision": args.precision, "enable_progress_bar": False}
    options = {"num_particles": cfg.num_particles, "num_steps": cfg.num_steps, "features": features, "trainer": trainer}
    seconds, metrics = [], []
    for index in range(len(data)):
        measurement = data[index]
        start = now(device)
        made = solve(
            measurement.y,
            measurement.physics,
            prior,
            truth=measurement.truth,
            method=instantiate(cfg.method),
            **options,
        )
        seconds.append(now(device) - start)
        metrics.append(made.metrics)
    keys = dict(zip(QUALITY, (*QUALITY[:3], VENDI), strict=True))
    known = {} if name == "sd15" else {row: statistics.mean(each[key] for each in metrics) for row, key in keys.items()}
    # the first also loads kernels
    return {"seconds": statistics.median(seconds[1:] or seconds), **known}


def row_of(name: str, method: str, args: argparse.Namespace) -> Row:
    """One row of the results; null where nothing was measured."""
    cfg = settings_of(name, method, args)
    is_published, timed = method == "published", name in args.time and not args.count
    row: Row = {
        "method": method,
        "default": method == "rlsd",
        "prior": name,
        "image_size": image_size(name, cfg),
        "num_particles": args.num_particles,
        "num_steps": PUBLISHED_STEPS if is_published else cfg.num_steps,
        "tflop": count_published(name, args) if is_published else count(name, cfg),
        "seconds": None,
        "device": None,
        **dict.fromkeys(QUALITY),
    }
    if timed:
        row |= {"seconds": time_published(name, args)} if is_published else measure(name, cfg, args)
        row["device"] = (
            torch.cuda.get_device_name() if args.device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
        )
    return row


def image_size(name: str, cfg: DictConfig) -> int:
    """Height of the prior's images."""
    return prior_of(name, cfg, torch.device("meta")).image_shape[-2]


def cell(value: str | float | None) -> str:
    """A value in three digits, or whole from 1,000 on; nothing for null."""
    if not isinstance(value, float):
        return "" if value is None else f"{value}"
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def table(rows: list[Row]) -> str:
    """The rows as a table of the docs."""
    names = ("prior", "method", "num_steps", "tflop", "seconds", *QUALITY)
    heads = (
        "prior",
        "method",
        "steps",
        "TFLOP",
        "seconds",
        "PSNR, mean",
        "best",
        "of the mean",
        "Vendi score",
    )
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [cell(row[name]) for name in names]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    """Quality against operations: a panel for each prior with known figures."""
    priors = list(dict.fromkeys(row["prior"] for row in rows if row["psnr_mean"] is not None))
    figure = Figure(figsize=(5.2 * len(priors), 3.8), layout="constrained")
    for axis, prior in zip(figure.subplots(1, len(priors), squeeze=False)[0], priors, strict=True):
        known = [row for row in rows if row["prior"] == prior and row["psnr_mean"] is not None]
        shown = (("psnr_best", "^", "best"), ("psnr_of_mean", "s", "of the mean"), ("psnr_mean", "o", "mean"))
        for key, marker, label in shown:
            axis.plot([row["tflop"] for row in known], [row[key] for row in known], marker, label=label)
        # labels above the best, each higher than its left neighbour's where they would overlap
        low, high = axis.get_ylim()
        for place, row in enumerate(sorted(known, key=lambda row: row["tflop"])):
            top = high + (high - low) * (0.05 + 0.07 * (place % 4))
            axis.annotate(
                row["method"], (row["tflop"], row["psnr_best"]), (row["tflop"], top), fontsize=7, ha="center",
                arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": "grey"},
            )  # fmt: skip
        axis.margins(x=0.15)
        axis.set(xscale="log", xlabel=f"{prior}: TFLOP of a run", ylabel="PSNR, dB")
        axis.xaxis.set_minor_formatter(NullFormatter())  # its labels overlap
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def write_table(rows: list[Row], page: Path) -> None:
    """Replace the table between the markers of a page."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition("<!-- runs -->")
    _, _, after = rest.partition("<!-- end -->")
    page.write_text(f"{before}<!-- runs -->\n\n{table(rows)}\n\n<!-- end -->{after}", encoding="utf-8")


def main() -> None:
    """Measures all and prints the table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--priors", nargs="+", choices=PRIORS, default=list(PRIORS))
    options.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options.add_argument("--count", action="store_true", help="only count operations")
    options.add_argument(
        "--time", nargs="*", choices=PRIORS, default=["faces", "photos"], help="priors to run for real"
    )
    options.add_argument("--task", default="super_resolution")
    options.add_argument("--images", type=int, default=8, help="held-out images of each prior")
    options.add_argument("--pictures", help="a file, folder or glob in place of the prior's held-out images")
    options.add_argument("--photo-size", type=int, default=256, help="height and width of photographs in pixels")
    options.add_argument("--num-particles", type=int, default=4)
    options.add_argument("--num-steps", type=int, help="each method's own if left out")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--precision", default="auto", help="of timed runs")
    options.add_argument("--json", type=Path, help="also write the rows to this file, whose other rows are kept")
    options.add_argument("--plot", type=Path, help="also draw quality against operations")
    options.add_argument("--page", type=Path, help="also write the table between the markers of this page")
    args = options.parse_args()
    args.precision = use_precision(args.precision, torch.device(args.device))
    made = [(name, method) for name in args.priors for method in args.methods]
    kept = json.loads(args.json.read_text()) if args.json and args.json.is_file() else []
    rows = [row for row in kept if (row["prior"], row["method"]) not in made]
    for name, method in made:
        rows.append(row_of(name, method, args))
        print(json.dumps(rows[-1]), flush=True)
        rows.sort(key=lambda row: (list(PRIORS).index(row["prior"]), list(METHODS).index(row["method"])))
        if args.json:
            args.json.write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows))
    if args.plot:
        plot(rows, args.plot)
    if args.page:
        write_table(rows, args.page)


if __name__ == "__main__":
    main()
