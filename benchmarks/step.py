"""Seconds and operations of one step, beside a plain transcription of the published loop.

python benchmarks/step.py --json build/step_cpu.json --plot build/step_cpu.png

In one process, on the same prior, noise, features and settings, with rounds of all forms in turn: the published loop of
published.py; the loop of ours; ours that distils its particles in every step; each with the kernel in a vision transformer
and in latents, without repulsion and with it.
Operations are those of torch.utils.flop_counter on tensors without memory, so they are counted for Stable Diffusion at
512x512 on any machine. Time is measured for the embedded prior, and for others with --time. The rate of a large matrix
product on the same device says how near to the arithmetic the steps are.

The overhead is the share of a distilled step in the Trainer, in 32 bits, logging and checkpoints included, that its networks
alone don't take.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import lightning as L
import torch
from alone import Alone
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from matplotlib.figure import Figure
from problems import PRIORS, Problem, make_problem, stable_diffusion_levels
from published import published_step
from torch.utils.flop_counter import FlopCounterMode

from rlsd_lightning import RLSD, Distilled, LatentFeatures, Measurement
from rlsd_lightning.engine.checkpoints import AtomicCheckpointIO
from rlsd_lightning.methods.base import ParticleModule
from rlsd_lightning.operators import inpainting

GAMMAS = {"": 0.0, "_repulsion": 0.1}
OURS = {
    "ours": {},
    "ours in latents": {"features": LatentFeatures()},
    "ours distilled": {"method": Distilled},
    "ours distilled in latents": {"method": Distilled, "features": LatentFeatures()},
}
AT = 500
"""The timestep of every step: they all cost the same."""

Step = Callable[[int], None]


def make_module(
    problem: Problem,
    gamma: float,
    num_steps: int = 200,
    num_measurements: int = 1,
    method: type[ParticleModule] = RLSD,
    **settings,
) -> ParticleModule:
    """Our module on the problem's device, with the particles of one or several measurements."""
    prior, features, _, y, count = problem
    features = settings.pop("features", features)
    # operator, measurement and noise levels are looked at on the CPU, where they have values
    if y.device.type == "meta":
        prior.alphas, prior.sigmas = stable_diffusion_levels()
    cpu = inpainting(prior.image_shape, mask="half")
    settings = {"gamma": gamma, "repulsion_until": 0.999, "num_steps": num_steps, **settings}
    measurements = [Measurement(f"{index}", torch.zeros(y.shape), cpu) for index in range(num_measurements)]
    module = method(prior, measurements, features, num_particles=count, **settings)
    return module.to(y.device)


def our_step(problem: Problem, gamma: float, **settings) -> Step:
    """A function that takes our step, without the Trainer around it."""
    return Alone(make_module(problem, gamma, **settings)).step


def networks_alone(problem: Problem) -> Step:
    """A function that calls the networks as a distilled step without repulsion does, and does nothing else."""
    prior = problem.prior
    z = torch.randn(problem.num_particles, *prior.latent_shape, device=problem.y.device).requires_grad_()

    def step(t: int) -> None:
        with torch.no_grad():
            prior.denoise(z, t)
        decoded = prior.decode(z)
        torch.autograd.grad(decoded, z, torch.ones_like(decoded))

    return step


def forms(problem: Problem, gamma: float) -> dict[str, Step]:
    """The step of every form."""
    # without repulsion the kernel does not matter
    ours = {name: settings for name, settings in OURS.items() if gamma or "features" not in settings}
    steps = {name: our_step(problem, gamma, **settings) for name, settings in ours.items()}
    return {"published": published_step(problem, gamma), **steps}


class _NoModules(nullcontext):
    """In place of the counter's tracker of modules, which does not bear a gradient in a leaf."""

    parents = frozenset({"Global"})


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Counts operations, also of tensors without memory."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()
    # autocast, which is off here anyway, does not know of tensors without memory
    with counter, mock.patch("torch.autocast", lambda *_, **__: nullcontext()):
        yield counter


def count_operations(step: Step, rounds: int = 20) -> float:
    """Mean operations of a step (two for a multiplication with its addition), over rounds with all that comes seldom."""
    with counting() as counter:
        for _ in range(rounds):
            step(AT)
    return counter.get_total_flops() / rounds


def time_steps(
    steps: dict[str, Step], rounds: int, device: torch.device, precision: str = "32-true"
) -> dict[str, float]:
    """Median seconds of every step over rounds of all forms in turn, four steps of each."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
        for turn in range(rounds + 1):
            for name, step in steps.items():
                start = now(device)
                for _ in range(4):
                    step(AT)
                if turn:  # the first fills caches
                    seconds[name].append((now(device) - start) / 4)
    return {name: statistics.median(values) for name, values in seconds.items()}


def now(device: torch.device) -> float:
    """Seconds of a clock, once the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def matmul_rate(device: torch.device, precision: str = "32-true") -> float:
    """Operations a second of a large matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    rates = []
    for _ in range(5):
        start = now(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            torch.mm(a, b)
        rates.append(2 * size**3 / (now(device) - start))
    return max(rates)


class _Alternating(Callback):
    """Calls the networks alone after every step, and keeps the seconds of both."""

    def __init__(self, alone: Step) -> None:
        self.alone = alone
        self.seconds_alone: list[float] = []
        self.seconds: list[float] = []
        self._since: float | None = None

    def on_train_batch_end(self, trainer: L.Trainer, *_) -> None:
        device = trainer.strategy.root_device
        end = now(device)
        if self._since is not None:
            self.seconds.append(end - self._since)
        self.alone(AT)
        self._since = now(device)
        self.seconds_alone.append(self._since - end)


def overhead(problem: Problem, blocks: int, every: int = 25) -> float:
    """The share of a step in the Trainer that is not its networks', a median over blocks of steps.

    Steps are without repulsion, with curves every 10 and a checkpoint every 25 steps, and the networks alone in turn
    with them.
    """
    times = _Alternating(networks_alone(problem))
    with tempfile.TemporaryDirectory() as folder:
        saver = ModelCheckpoint(f"{folder}/checkpoints", save_last=True, save_top_k=0, every_n_train_steps=every)
        trainer = L.Trainer(
            accelerator=problem.y.device.type,
            devices=1,
            max_epochs=1,
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            log_every_n_steps=10,
            callbacks=[times, saver],
            plugins=[AtomicCheckpointIO()],
        )
        trainer.fit(make_module(problem, 0.0, num_steps=(blocks + 1) * every, method=Distilled))
    starts = range(every, len(times.seconds) - every + 2, every)  # the first block fills caches
    return statistics.median(
        # the first step is not timed, so the others' times are one place further to the front
        1 - sum(times.seconds_alone[start : start + every]) / sum(times.seconds[start - 1 : start - 1 + every])
        for start in starts
    )


def measure(name: str, args: argparse.Namespace) -> dict[str, float]:
    """All figures of one prior."""
    nothing = make_problem(name, args.num_particles, "meta", args.image_size)
    figures: dict[str, float] = {"num_particles": args.num_particles, "image_size": nothing.prior.image_shape[-1]}
    counted = {}
    if name in args.count:
        counted = {
            label: {form: count_operations(s) for form, s in forms(nothing, g).items()} for label, g in GAMMAS.items()
        }
    for label, each in counted.items():
        figures |= {f"tflop{label} {form}": value / 1e12 for form, value in each.items()}
        figures |= {_key(f"counted_ratio{label}", form): each[form] / each["published"] for form in list(each)[1:]}
    if name in args.time:
        device = torch.device(args.device)
        problem = make_problem(name, args.num_particles, device, args.image_size)
        rate = matmul_rate(device, args.precision)
        named = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        figures |= {"device": named, "precision": args.precision, "matmul_tflops": rate / 1e12}
        for label, gamma in GAMMAS.items():
            each = time_steps(forms(problem, gamma), args.rounds, device, args.precision)
            figures |= {f"seconds{label} {form}": value for form, value in each.items()}
            figures |= {_key(f"speedup{label}", form): each["published"] / each[form] for form in list(each)[1:]}
            if counted:
                figures[f"share_of_matmul_rate{label}"] = counted[label]["ours"] / each["ours"] / rate
        if name in args.overhead:
            figures["overhead_share"] = overhead(problem, args.rounds)
    return figures


def plot(results: dict[str, dict[str, float]], path: Path) -> None:
    """A panel a prior: every form's share of the published loop's operations, and of its seconds where they were taken."""
    figure = Figure(figsize=(4.5 * len(results), 3.4), layout="constrained")
    for axis, (name, figures) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True):
        kinds = {"operations": "tflop", "seconds": "seconds"}
        kinds = {kind: key for kind, key in kinds.items() if f"{key} published" in figures}
        shown = next(iter(kinds.values()))
        forms = [(label, form) for label in GAMMAS for form in OURS if f"{shown}{label} {form}" in figures]
        for offset, (kind, key) in enumerate(kinds.items()):
            shares = [figures[f"{key}{label} {form}"] / figures[f"{key}{label} published"] for label, form in forms]
            places = [index + (offset - (len(kinds) - 1) / 2) * 0.4 for index in range(len(forms))]
            axis.barh(places, shares, height=0.4 if len(kinds) > 1 else 0.6, label=kind)
        axis.axvline(1, color="black", linewidth=0.8)
        names = [form + (", repulsion" if label else "") for label, form in forms]
        axis.set(yticks=range(len(forms)), yticklabels=names, title=name, xlabel="share of the published loop's")
        axis.invert_yaxis()
        axis.legend(fontsize="small", loc="lower right")
    figure.savefig(path, dpi=110)


def _key(figure: str, form: str) -> str:
    return figure + form.removeprefix("ours")


def main() -> None:
    """Measures every prior and prints the figures."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--priors", nargs="+", choices=PRIORS, default=list(PRIORS))
    options.add_argument(
        "--count", nargs="*", choices=PRIORS, default=list(PRIORS), help="those whose operations are counted"
    )
    options.add_argument("--time", nargs="*", choices=PRIORS, default=["faces"], help="those whose steps are timed too")
    options.add_argument(
        "--overhead", nargs="*", choices=PRIORS, default=["faces"], help="those of which the Trainer's share is timed"
    )
    options.add_argument("--num-particles", type=int, default=4)
    options.add_argument("--image-size", type=int, help="the priors' own if left out")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true", help="of timed steps")
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--json", type=Path, help="also write the figures to this file")
    options.add_argument("--plot", type=Path, help="also draw them")
    args = options.parse_args()
    if args.plot and not set(args.priors) <= {*args.count, *args.time}:
        options.error("a plot needs --count or --time of every prior")
    results = {}
    for name in args.priors:
        results[name] = measure(name, args)
        print(f"{name}")
        for key, value in results[name].items():
            print(f"  {key:40} {value if isinstance(value, str) else f'{value:.4g}'}", flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=2) + "\n")
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
