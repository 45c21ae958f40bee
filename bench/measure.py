"""What the benchmarks share: processes that are timed, and how numbers are told."""

import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median and, in brackets, the smallest and the largest value."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are numbers."""
    rules = ["---"] + ["---:"] * (len(heads) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rules, *rows))


def tell(text: str) -> None:
    """Say how far a benchmark is; what it found goes to standard output."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def this_command() -> str:
    """Return how this benchmark was started, as one would type it in the project's folder."""
    return shlex.join(["python", f"bench/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def on_ranks(ranks: int, *words: str) -> list[str]:
    """Return the command that starts Python with these words on so many ranks."""
    return ["mpiexec", "-n", str(ranks), sys.executable, *words]


def seconds_of(
    *commands: Sequence[str], environment: Mapping[str, str] = {}, folder: str | None = None
) -> float:
    """Start the commands together and return the seconds until the last one has ended.

    Each process has one thread, and may keep the modules that it compiles. Ends the program with
    what a command said, if one fails.
    """
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    started = time.perf_counter()
    processes = [
        subprocess.Popen(
            command,
            env=variables,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in commands
    ]
    for process in processes:
        output, _ = process.communicate()
        if process.returncode != 0:
            command = " ".join(map(str, process.args))  # type: ignore[arg-type]
            raise SystemExit(f"{output[-4000:]}\n{command} ended with status {process.returncode}")
    return time.perf_counter() - started
