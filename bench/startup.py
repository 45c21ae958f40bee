"""Time the start of `esgd run` by number of ranks, from its launch to its first SGD step.

Whole jobs, as mpiexec starts them, of a small network and of the null task, which needs no torch.
Prints Markdown. Needs `esgd data prepare fashion`.

    python bench/startup.py [--ranks 1,2,4] [--null-ranks 1,2,4,8,16,32] [--runs 3]
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from measure import on_ranks, seconds_of, spread, table, tell, this_command

RANK = str(Path(__file__).with_name("startup_rank.py"))
NETWORK, NULL = "fashion-small", "null"
SETTINGS = {
    NETWORK: ("task_options.training_images=1000", "task_options.validation_images=500"),
    NULL: ("task_options.parameters=1000",),
}
READING, READ = "reading the data", "reading the data, done, and the others are not"
STAGES = {
    "the last process has started": "process",
    "Python runs": "Python",
    "mpi4py is imported": "mpi4py",
    "MPI_Init is done": "MPI_Init",
    "**the first collective is done**: the recipe, read by one rank": "after reading the recipe",
    "what all runs need is imported": "locking",
    "torch is imported": "looking for GPUs",
    "data is read, once a node": READ,
    "the network is built": "making the initial population",
    "the population is scored, **the first SGD step begins**": "training individual",
}
"""What is told of, and how the moment's name begins that bench/startup_rank.py noted."""
OF_NETWORKS = ("looking for GPUs", READ)
COUNTED = {
    "first collective": "after reading the recipe",
    "first SGD step": "training individual",
}

Rank = Mapping[str, Any]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=numbers, default=[1, 2, 4], help=f"of {NETWORK}")
    parser.add_argument("--null-ranks", type=numbers, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    sizes = {NETWORK: arguments.ranks, NULL: arguments.null_ranks}
    for recipe in sizes:
        tell(f"{recipe}, to have all files in memory")
        launch(recipe, 1)
    runs: dict[tuple[str, int], list[list[Rank]]] = {}
    for turn in range(arguments.runs):
        for recipe, ranks in [(r, n) for r, several in sizes.items() for n in several]:
            tell(f"{recipe}, {ranks} ranks, run {turn + 1} of {arguments.runs}")
            runs.setdefault((recipe, ranks), []).append(launch(recipe, ranks))

    print("## Start-up\n")
    print(
        f"Whole jobs of `esgd run` on {os.cpu_count()} cores, in turn, n = {arguments.runs}:"
        " seconds from the start of mpiexec until the last rank has got so far, by number of ranks;"
        " median [smallest, largest]. Files are in the page cache. By"
        f" `{this_command()}`.\n"
    )
    for recipe, several in sizes.items():
        rows = []
        for words, moment in STAGES.items():
            if recipe == NULL and moment in OF_NETWORKS:
                continue
            cells = [spread([last(run, moment) for run in runs[recipe, n]]) for n in several]
            rows.append([words, *cells])
        print(table([f"`{recipe}`, ranks:", *map(str, several)], rows) + "\n")
    tell("counting files")
    print_counts({recipe: runs[recipe, several[0]] for recipe, several in sizes.items()})
    print(who_reads(runs[NETWORK, sizes[NETWORK][-1]][-1]))


def numbers(text: str) -> list[int]:
    """Return the whole numbers of a list like 1,2,4."""
    return [int(word) for word in text.split(",")]


def launch(recipe: str, ranks: int, *options: str) -> list[Rank]:
    """Run one job to its end; return what its ranks noted, in seconds since the launch."""
    with tempfile.TemporaryDirectory() as folder:
        words = [RANK, folder, *options, *command(recipe, ranks, folder)]
        launched = time.clock_gettime(time.CLOCK_BOOTTIME)
        seconds_of(on_ranks(ranks, *words))
        found = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    assert len(found) == ranks
    for rank in found:
        for moment in rank["moments"].values():
            moment["seconds"] -= launched
    return sorted(found, key=lambda rank: rank["rank"])


def command(recipe: str, ranks: int, folder: str) -> list[str]:
    """Return the words of a short run, with an individual for each rank."""
    sets = ("generations=1", f"population.parents={max(2, ranks)}", "population.offspring=2")
    words = [word for key in (*sets, *SETTINGS[recipe]) for word in ("--set", key)]
    return ["run", recipe, *words, "--output", f"{folder}/run"]


def at(rank: Rank, moment: str) -> Mapping[str, float]:
    """Return what a rank noted at the moment whose name begins so."""
    return next(noted for name, noted in rank["moments"].items() if name.startswith(moment))


def last(ranks: Sequence[Rank], moment: str) -> float:
    """Return when the last rank got so far."""
    return max(at(rank, moment)["seconds"] for rank in ranks)


def print_counts(runs: Mapping[str, Sequence[Sequence[Rank]]]) -> None:
    """Print what one rank does to start: processor time, and what it asks of the file system."""
    rows, asked = [], []
    for recipe, timed in runs.items():
        counted = launch(recipe, 2, "--files")[1]
        for words, moment in COUNTED.items():
            found = at(counted, moment)
            processor = spread([at(ranks[-1], moment)["processor"] for ranks in timed])
            counts = [f"{found['modules']:,}", f"{found['files']:,}", f"{found['size'] / 1e6:.0f}"]
            rows.append([f"`{recipe}`, {words}", processor, *counts])
        if shutil.which("strace"):
            calls = file_calls(recipe)
            asked.append(f"`{recipe}` {calls:,}, by 1,000 ranks {calls / 1000:.1f} million")
    print(
        "What one rank has done until then (processor time: the last rank of the smallest jobs;"
        " counts: rank 1 of 2). Files are those that Python opened, or tried to, and the libraries"
        " that are mapped.\n"
    )
    print(table(["until", "processor seconds", "modules", "files", "their MB"], rows) + "\n")
    if asked:
        told = "; ".join(asked)
        print(
            f"System calls about files, as strace counts them in a whole run of one rank: {told}.\n"
        )


def file_calls(recipe: str) -> int:
    """Return how often a run on one rank asks the file system something, as strace counts."""
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "counts"
        tracing = ["strace", "-f", "-c", "-e", "trace=%file", "-o", str(counts)]
        words = [*tracing, sys.executable, "-m", "esgd_hpc", *command(recipe, 1, folder)]
        seconds_of(words)
        total = next(line for line in counts.read_text().splitlines() if line.endswith("total"))
    return int(total.split()[3])


def who_reads(ranks: Sequence[Rank]) -> str:
    """Return a sentence on who reads how much of the prepared data."""
    read = [(at(rank, READ)["read"] - at(rank, READING)["read"]) / 1e6 for rank in ranks]
    others = f", each other rank {median(read[1:]):.2f} MB" if read[1:] else ""
    return f"While data is read, rank 0 of {len(ranks)} reads {read[0]:.1f} MB{others}."


if __name__ == "__main__":
    main()
