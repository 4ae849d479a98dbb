"""Processes that take part in one run after another: ``python ranks.py cases.json``.

One process imports everything and forks as many as the largest run has. Each is told its rank by the environment, as
Lightning and torchrun tell it, and then calls the command line for every run that it is a part of. A case is a name,
a number of processes, and arguments; what rank r's command line returned and printed goes to ``<name>.<r>.json``.
"""

import json
import os
import socket
import sys
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only

import rlsd_lightning.cli.train  # noqa: F401  imported once, before the fork
from support.command import train


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def work(rank: int, cases: list[dict], folder: Path) -> None:
    """Take part in every case with this number of processes."""
    for case in cases:
        if rank >= case["size"]:
            continue
        place = {"LOCAL_RANK": rank, "NODE_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": case["port"]}
        os.environ.update({name: str(value) for name, value in place.items()})
        rank_zero_only.rank = rank  # as Lightning has it once it is imported in a process with this rank
        said = train(*case["arguments"], f"trainer.devices={case['size']}")
        partial = folder / f"{case['name']}.{rank}.partial"
        partial.write_text(json.dumps(said))
        partial.rename(partial.with_suffix(".json"))


def main(file: Path) -> None:
    cases = [{**case, "port": free_port()} for case in json.loads(file.read_text())]
    forked = []
    for rank in range(max(case["size"] for case in cases)):
        forked.append(os.fork())
        if forked[-1] == 0:
            work(rank, cases, file.parent)
            os._exit(0)
    sys.exit(max(os.waitpid(process, 0)[1] for process in forked) != 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
