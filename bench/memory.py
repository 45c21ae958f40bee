"""Measure how many individuals a leader has in memory, against the bound that the plan states.

    python bench/memory.py [--parents 64] [--offspring 512] [--parameters 10000000]
                           [--generations 2]

Runs of the null task on two ranks; what the same job takes with 10 parameters is Python, MPI and
libraries. Prints Markdown.
"""

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from measure import on_ranks, table, tell, this_command

from esgd_hpc.launch import RANK_VARIABLES
from esgd_hpc.plan_text import held_individuals
from esgd_hpc.recipe_file import load_recipe

RANKS = 2
TINY = 10
KINDS = {"beside training": "true", "training waits": "false"}
"""How checkpoints are written, and `checkpoint.background`."""
SECONDS_BETWEEN_LOOKS = 0.1


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parents", type=int, default=64)
    parser.add_argument("--offspring", type=int, default=512)
    parser.add_argument("--parameters", type=int, default=10_000_000)
    parser.add_argument("--generations", type=int, default=2)
    arguments = parser.parse_args()
    parents, size = arguments.parents, arguments.parameters
    rows, kept = [], []
    for kind, background in KINDS.items():
        sets = [
            f"generations={arguments.generations}",
            f"population.parents={parents}",
            f"population.offspring={arguments.offspring}",
            f"checkpoint.background={background}",
        ]
        bound = held_individuals(load_recipe("null", sets), RANKS)
        tell(f"checkpoints: {kind}, {TINY} parameters")
        little = peaks_of_run(sets, TINY)
        tell(f"checkpoints: {kind}, {size:,} parameters")
        much = peaks_of_run(sets, size)
        for rank in range(RANKS):
            held = (much[rank] - little[rank]) / (4 * size)
            kept.append(held <= bound)
            megabytes = [f"{1e-6 * peak[rank]:,.0f}" for peak in (much, little)]
            rows.append([f"{kind}, rank {rank}", *megabytes, f"{held:.1f}", str(bound)])

    print("## Memory of a leader\n")
    print(
        f"The null task on {RANKS} ranks in {RANKS} groups: {parents} parents,"
        f" {arguments.offspring} children, {size:,} parameters ({4e-6 * size:.3g} MB an"
        f" individual), {arguments.generations} generations with a checkpoint each, n = 1. The"
        f" peak is the largest resident memory (VmHWM) of a rank; less that of the same job with"
        f" {TINY} parameters, it is given in individuals. The bound is what `esgd run --dry-run`"
        f" states. By `{this_command()}`.\n"
    )
    heads = ["checkpoints", "peak, MB", f"with {TINY} parameters, MB", "individuals", "bound"]
    print(table(heads, rows) + "\n")
    print(
        f"Half of mu are {parents // RANKS} individuals; mu + lambda are"
        f" {parents + arguments.offspring}. {sum(kept)} of {len(kept)} peaks are within the bound."
    )


def peaks_of_run(sets: Sequence[str], parameters: int) -> list[int]:
    """Return the peak memory of each rank of a run of the null task."""
    words = [word for each in sets for word in ("--set", each)]
    words += ["--set", f"task_options.parameters={parameters}"]
    with tempfile.TemporaryDirectory() as folder:
        command = on_ranks(RANKS, "-m", "esgd_hpc", "run", "null", *words, "--output", folder)
        found = peaks(command)
    return [found[rank] for rank in range(RANKS)]


def peaks(command: Sequence[str], folder: Path | None = None) -> Mapping[int, int]:
    """Run a command that starts ranks, in a folder; return the peak memory of each in bytes.

    Each rank has one thread. Ends the program with what the command said, if it fails.
    """
    found: dict[int, int] = {}
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=variables, stdout=output, stderr=subprocess.STDOUT
        )
        ranks: dict[int, int] = {}
        while process.poll() is None:
            for pid in descendants(process.pid):
                if pid not in ranks and (rank := rank_of(pid)) is not None:
                    ranks[pid] = rank
                if pid in ranks:
                    found[ranks[pid]] = max(found.get(ranks[pid], 0), peak(pid))
            time.sleep(SECONDS_BETWEEN_LOOKS)
        if process.returncode != 0:
            output.seek(0)
            said = output.read()[-4000:]
            raise SystemExit(f"{said}\n{' '.join(command)} ended with {process.returncode}")
    return found


def descendants(pid: int) -> list[int]:
    """Return the processes that another one has started, and those that they have."""
    found = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for word in (task / "children").read_text().split():
                found += [int(word), *descendants(int(word))]
    return found


def rank_of(pid: int) -> int | None:
    """Return which rank a process is by its launcher's word, None if it is none."""
    with suppress(FileNotFoundError, ProcessLookupError):
        words = Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
        variables = dict(word.split("=", 1) for word in words if "=" in word)
        for name in RANK_VARIABLES:
            if variables.get(name, "").isdecimal():
                return int(variables[name])
    return None


def peak(pid: int) -> int:
    """Return the most bytes that a process ever had in memory, 0 where it is gone."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return 1024 * int(line.split()[1])
    return 0


if __name__ == "__main__":
    main()
