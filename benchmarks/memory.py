"""Peak memory of one step with the true architecture of Stable Diffusion 1.5 (random weights).

python benchmarks/memory.py --json memory.json

For N = 1 and N = 4 particles, all at once, in chunks of one, and with a decoder that recomputes its activations, beside
the published loop, prints the peak of one training step at 512x512 above what the weights take, and the step's seconds.
On a GPU the peak is the allocator's; on a CPU each form runs in a process of its own and the peak is the process's
resident memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from alone import Alone
from problems import make_problem
from published import published_step

from rlsd_lightning import RLSD, Distilled, LatentFeatures, Measurement

FORMS = {
    "published, N = 1": {"published": True},
    "published, N = 4": {"published": True, "num_particles": 4},
    "N = 1": {},
    "N = 1, distilled": {"method": Distilled},
    "N = 1, decoder recomputed": {"decoder_checkpointing": True},
    "N = 4": {"num_particles": 4},
    "N = 4, chunks of 1": {"num_particles": 4, "particle_chunk": 1},
    "N = 4, chunks of 1, decoder recomputed": {"num_particles": 4, "particle_chunk": 1, "decoder_checkpointing": True},
}


def measure(form: str, image_size: tuple[int, int]) -> dict[str, float]:
    """Peak memory above the weights in GiB, and seconds of one step without repulsion."""
    settings = {"num_particles": 1, "decoder_checkpointing": False, "published": False, **FORMS[form]}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    published, count = settings.pop("published"), settings.pop("num_particles")
    problem = make_problem("sd15", count, device, image_size, settings.pop("decoder_checkpointing"))
    prior = problem.prior
    if published:
        step = published_step(problem, gamma=0.0)
        del problem, prior  # the published loop has a copy of its own
    else:
        measurement = Measurement("m", problem.y, problem.physics)
        method = settings.pop("method", RLSD)
        module = method(prior, measurement, LatentFeatures(), num_particles=count, gamma=0.0, **settings)
        step = Alone(module.to(device)).step

    before = _in_use(device)
    start = time.perf_counter()
    step(500)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return {"peak_gib": (_peak(device) - before) / 2**30, "weights_gib": before / 2**30, "seconds": seconds}


def _in_use(device: str) -> int:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measures every form in a process of its own and prints the table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--image-size", type=int, nargs=2, default=(512, 512), metavar=("HEIGHT", "WIDTH"))
    options.add_argument("--forms", choices=FORMS, nargs="+", default=list(FORMS), help="which of them")
    options.add_argument("--json", type=Path, help="also write the figures to this file")
    options.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.form:
        print(json.dumps(measure(args.form, tuple(args.image_size))))
        return
    results = {}
    height, width = args.image_size
    print(f"| one step at {height}x{width} | peak above weights, GiB | seconds |\n|---|---|---|")
    for form in args.forms:
        command = [sys.executable, __file__, "--form", form, "--image-size", str(height), str(width)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        results[form] = json.loads(done.stdout.splitlines()[-1])
        print(f"| {form} | {results[form]['peak_gib']:.2f} | {results[form]['seconds']:.1f} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
