"""Compares the particles of two commits, bit by bit.

python benchmarks/same_results.py 8a4993e                     # the working tree against a commit
python benchmarks/same_results.py 8a4993e --methods rlsd --tasks inpaint

Every method solves one held-out face in each task, in one process and in two that share its particles, by the code of both
commits with the same seed. A change that moves code must leave every bit; one that changes the arithmetic shows by how much.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

PROJECT = Path(__file__).resolve().parents[1]
TASKS = ("inpaint", "super_resolution", "hdr", "phase_retrieval", "poisson")
METHODS = ("sds", "dps", "distilled")


def particles(tree: Path, folder: Path, task: str, method: str, processes: int, steps: int) -> dict[str, torch.Tensor]:
    """Images and latents of one run by the code of a tree."""
    command = [sys.executable, "train.py", f"task={task}", f"method={method}", f"num_steps={steps}"]
    command += [f"trainer.devices={processes}", "parallel=particles", "trainer.accelerator=cpu"]
    command += ["method.particle_chunk=1", "num_particles=3", f"output_dir={folder}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, check=False, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{task}, {method}, {processes} processes in {tree}:\n{done.stdout}{done.stderr}")
    return load_file(next(folder.glob("*/particles.safetensors")))


def main() -> int:
    """Prints a row per run; returns 1 if one differs."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("commit", help="the commit to compare the working tree with")
    options.add_argument("--tasks", nargs="+", default=TASKS)
    options.add_argument("--methods", nargs="+", default=METHODS)
    options.add_argument("--processes", nargs="+", type=int, default=(1, 2))
    options.add_argument("--steps", type=int, default=12)
    args = options.parse_args()
    differ = 0
    print("| task | method | processes | largest difference of x |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        before = Path(scratch) / "before"
        subprocess.run(["git", "worktree", "add", "--detach", "-q", before, args.commit], cwd=PROJECT, check=True)
        try:
            for index, run in enumerate(itertools.product(args.tasks, args.methods, args.processes)):
                one, other = (
                    particles(tree, Path(scratch) / f"{index}_{tree.name}", *run, args.steps)
                    for tree in (before, PROJECT)
                )
                same = one["x"].equal(other["x"]) and one["z"].equal(other["z"])
                differ += not same
                difference = (one["x"] - other["x"]).abs().max().item()
                print("| " + " | ".join(map(str, run)) + f" | {'0' if same else f'{difference:.1e}'} |", flush=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", before], cwd=PROJECT, check=True)
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
