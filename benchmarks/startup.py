"""How long the program takes beside its measurements, as ratios to the time of ``import lightning``.

python benchmarks/startup.py --json startup.json

All commands run in turn, a few times; a ratio is to ``import lightning`` of the same round, and the median is printed. Wall
times need an idle machine. Processor times (user and system) bear other work better.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
TRAIN = str(PROJECT / "train.py")
REFERENCE = "import lightning"
TOTAL, OUTSIDE = "default run", "default run outside its measurement"
COMMANDS = {
    REFERENCE: ["-c", "import lightning"],
    "import torch": ["-c", "import torch"],
    "import rlsd_lightning": ["-c", "import rlsd_lightning"],
    "--help": [TRAIN, "--help"],
    "wrong choice": [TRAIN, "task=paint"],
    "wrong setting": [TRAIN, "method.gama=1"],
    "wrong type": [TRAIN, "num_particles=two"],
}
LIMITS = {
    "import rlsd_lightning": 0.25,
    "--help": 0.25,
    "wrong choice": 0.25,
    "wrong setting": 0.25,
    "wrong type": 0.25,
    OUTSIDE: 1.2,
}


def timed(arguments: list[str]) -> tuple[float, float]:
    """Wall and processor seconds of a process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=PROJECT, capture_output=True, check=False)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def one_round(overrides: list[str]) -> dict[str, tuple[float, float | None]]:
    """Wall and processor seconds of every command, and of the default run without its measurement."""
    times: dict[str, tuple[float, float | None]] = {name: timed(command) for name, command in COMMANDS.items()}
    with tempfile.TemporaryDirectory() as folder:
        times[TOTAL] = timed([TRAIN, f"output_dir={folder}/run", *overrides])
        (metrics,) = Path(folder).glob("run/*/metrics.json")
        times[OUTSIDE] = (times[TOTAL][0] - json.loads(metrics.read_text())["seconds"], None)
    return times


def summary(rounds: list[dict[str, tuple[float, float | None]]]) -> dict[str, dict[str, float | None]]:
    """Medians of the seconds, and of their ratios to the reference."""
    figures = {}
    for name in rounds[0]:
        figures[name] = {"limit": LIMITS.get(name)}
        for index, kind in enumerate(("wall", "processor")):
            pairs = [(one[name][index], one[REFERENCE][index]) for one in rounds]
            known = None not in pairs[0]
            figures[name][kind] = statistics.median(seconds for seconds, _ in pairs) if known else None
            figures[name][f"{kind}_ratio"] = statistics.median(a / b for a, b in pairs) if known else None
    return figures


def table(figures: dict[str, dict[str, float | None]]) -> str:
    """Markdown table."""
    lines = ["| | wall s | ratio | processor s | ratio | at most |", "|---|---|---|---|---|---|"]
    for name, row in figures.items():
        cells = [row[key] for key in ("wall", "wall_ratio", "processor", "processor_ratio", "limit")]
        shown = " | ".join("" if value is None else f"{value:.2f}" for value in cells)
        lines.append(f"| {name} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("overrides", nargs="*", help="further settings of the default run")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--json", type=Path, help="also write the figures to this file")
    args = options.parse_args()
    figures = summary([one_round(args.overrides) for _ in range(args.rounds)])
    print(table(figures))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
