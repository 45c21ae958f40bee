"""Time a run against a bare PyTorch loop that does the same epochs and evaluations.

Whole processes, in turn (esgd, bare, esgd, bare, ...), on this machine; prints Markdown. Needs
`esgd data prepare fashion`.

    python bench/end_to_end.py [--runs 5] [--ranks 2]
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from esgd_hpc.checkpoint.reader import find_generation, open_checkpoint

BARE_LOOP = Path(__file__).with_name("bare_loop.py")
SETTINGS = {
    "generations": "6",
    "population.parents": "8",
    "population.offspring": "16",
    "sgd.epochs": "1",
    "task_options.training_images": "10000",
    "task_options.validation_images": "5000",
}


def seconds_of(commands: Sequence[Sequence[str]]) -> float:
    """Start the commands together and return the seconds until the last one has ended."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    processes = [subprocess.Popen(c, env=environment, stdout=subprocess.DEVNULL) for c in commands]
    for process in processes:
        if process.wait() != 0:
            raise SystemExit(f"{process.args!r} ended with status {process.returncode}")
    return time.perf_counter() - started


def spread(values: Sequence[float]) -> str:
    """Return the median and, in brackets, the smallest and the largest value."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2)
    arguments = parser.parse_args()
    ranks = arguments.ranks
    sets = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    bare = [
        [sys.executable, str(BARE_LOOP), "fashion-small", "--share", f"{part}/{ranks}", *sets]
        for part in range(ranks)
    ]
    ours, theirs = [], []
    phases: dict[str, list[float]] = {}
    for _ in range(arguments.runs):
        with tempfile.TemporaryDirectory() as folder:
            esgd = [sys.executable, "-m", "esgd_hpc"]
            command = ["mpiexec", "-n", str(ranks), *esgd, "run", "fashion-small", *sets]
            ours.append(seconds_of([[*command, "--output", folder]]))
            history = open_checkpoint(find_generation(Path(folder))).history.rows
            for phase in ("sgd", "evolution", "checkpoint"):
                total = sum(row.seconds.get(phase, 0.0) for row in history)
                phases.setdefault(phase, []).append(total)
        theirs.append(seconds_of(bare))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    print(f"`{' '.join(command)}` against {ranks} processes of `{' '.join(bare[0][1:])}`")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, n = {len(ours)},")
    print("whole processes in turn, seconds: median [smallest, largest]\n")
    print("| what | seconds |\n| --- | --- |")
    print(f"| esgd run | {spread(ours)} |\n| bare loop | {spread(theirs)} |")
    print(f"| ratio of each pair | {spread(ratios)} |")
    for phase, seconds in phases.items():
        print(f"| esgd, all generations, {phase} | {spread(seconds)} |")
    rest = [a - sum(p[n] for p in phases.values()) for n, a in enumerate(ours)]
    print(f"| esgd, start and end | {spread(rest)} |")


if __name__ == "__main__":
    main()
