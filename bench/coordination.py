"""Time the generations of the null task by number of ranks: what coordination costs by itself.

    python bench/coordination.py [--ranks 2,4,8,16,32,64,128] [--parameters 10000]
                                 [--large-ranks 2,4,8,16] [--large 1000000] [--generations 9]
                                 [--json FILE]

One job a number of ranks, one rank a group, 4 parents and 16 children a group; more ranks than
cores share the cores. Prints Markdown, and writes what each generation took to a file, by default
bench/coordination.json, which bench/cost_model.py reads.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import msgspec
from measure import on_ranks, seconds_of, spread, table, tell, this_command

from esgd_hpc.checkpoint.reader import find_generation, open_checkpoint

FILE = Path(__file__).with_suffix(".json")
PARENTS, CHILDREN = 4, 4
"""Parents a group, children a parent."""
PHASES = {
    "sgd": "SGD step: nothing trains; records to all ranks",
    "idle": "a group waits for the slowest in it, on average",
    "planning": "**rank 0 decides**, and tells the others",
    "exchange": "waiting for weights",
    "making": "making children",
    "scoring": "scoring children",
    "evolution_rest": "the rest of the evolution step: waiting for other groups, records to rank 0",
    "diversity": "diversity",
}
"""Phases of rank 0. That of the checkpoint is left out."""


class Generation(msgspec.Struct, frozen=True):
    """What one generation took."""

    seconds: dict[str, float]
    """Of rank 0, by phase, without that of the checkpoint."""
    traffic: dict[str, int]
    """Bytes of weights between groups, moved and least."""
    chosen: int
    """Children that survived, and so were made again."""

    def total(self) -> float:
        """Return the seconds of all phases."""
        return sum(self.seconds.values())

    def share(self) -> float:
        """Return rank 0's share: how much of the generation the others wait for what it decides."""
        return self.seconds["planning"] / self.total()


class Job(msgspec.Struct, frozen=True):
    """The generations of one job, without the first."""

    ranks: int
    parameters: int
    parents: int
    offspring: int
    generations: list[Generation]

    def seconds(self) -> float:
        """Return what a generation took, the median."""
        return median(generation.total() for generation in self.generations)

    def vectors(self, which: str) -> list[float]:
        """Return the vectors that came to groups in each generation: moved, or least."""
        return [g.traffic[which] / (4 * self.parameters) for g in self.generations]


class Measured(msgspec.Struct, frozen=True):
    """What bench/coordination.json holds."""

    cores: int
    jobs: list[Job]


def main() -> None:
    """Run the jobs, write what they took, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", default="2,4,8,16,32,64,128")
    parser.add_argument("--parameters", type=int, default=10_000)
    parser.add_argument("--large-ranks", default="2,4,8,16")
    parser.add_argument("--large", type=int, default=1_000_000)
    parser.add_argument("--generations", type=int, default=9, help="the first is not counted")
    parser.add_argument("--json", type=Path, default=FILE, metavar="FILE")
    arguments = parser.parse_args()
    sizes = {
        arguments.parameters: numbers(arguments.ranks),
        arguments.large: numbers(arguments.large_ranks),
    }
    jobs = []
    for parameters, several in sizes.items():
        for ranks in several:
            tell(f"{ranks} ranks, {parameters:,} parameters")
            jobs.append(run(ranks, parameters, arguments.generations))
            keep(Measured(cores=cores(), jobs=jobs), arguments.json)

    print("## Coordination alone\n")
    print(
        f"The null task, one rank a group, {PARENTS} parents and {PARENTS * CHILDREN} children a"
        f" group, on {cores()} cores that all ranks share: one job a column,"
        f" n = {arguments.generations - 1} generations of each after the first, which is dropped."
        " Seconds are rank 0's; those of phases are medians, and a group that computes while rank 0"
        " waits is in what rank 0 waits for. Without checkpoints (`checkpoint.every` larger than"
        " the run) and without the watchdog (`run.watchdog = 0`), whose threads would share the"
        f" cores. By `{this_command()}`.\n"
    )
    for parameters in sizes:
        some = [job for job in jobs if job.parameters == parameters]
        print(table([f"P = {parameters:,}; ranks:", *(str(job.ranks) for job in some)], rows(some)))
        print()
    print(shown(jobs))


def keep(found: Measured, file: Path) -> None:
    """Write what was measured so far, a generation a line."""
    text = json.dumps(msgspec.to_builtins(found))
    file.write_text(text.replace('{"', '\n{"') + "\n")


def numbers(text: str) -> list[int]:
    """Return the whole numbers of a list like 2,4,8."""
    return [int(word) for word in text.split(",") if word]


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def run(ranks: int, parameters: int, generations: int) -> Job:
    """Run one job and return its generations but the first."""
    parents, offspring = PARENTS * ranks, CHILDREN * PARENTS * ranks
    settings = {
        "generations": generations,
        "population.parents": parents,
        "population.offspring": offspring,
        "task_options.parameters": parameters,
        "checkpoint.every": generations,
        "run.watchdog": 0,
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "esgd_hpc", "run", "null", *words, "--output", folder]
        seconds_of(on_ranks(ranks, *command))
        history = open_checkpoint(find_generation(Path(folder))).history
    found = [
        Generation(
            seconds={phase: row.seconds.get(phase, 0.0) for phase in PHASES},
            traffic={**row.traffic},
            chosen=sum(child.selected for child in children),
        )
        for row, children in zip(history.rows[2:], history.offspring[2:], strict=True)
    ]
    return Job(ranks, parameters, parents, offspring, found)


def rows(jobs: Sequence[Job]) -> list[list[str]]:
    """Return the rows of the table of one number of parameters."""
    return [
        *(
            [words, *(f"{median(g.seconds[phase] for g in j.generations):.3f}" for j in jobs)]
            for phase, words in PHASES.items()
        ),
        ["**a generation, s**", *(spread([g.total() for g in j.generations]) for j in jobs)],
        ["rank 0's share, %", *(f"{100 * share(job):.0f}" for job in jobs)],
        ["MB between groups", *(f"{1e-6 * median(bytes_of(j, 'moved')):.4g}" for j in jobs)],
        ["the least, MB", *(f"{1e-6 * median(bytes_of(j, 'least')):.4g}" for j in jobs)],
        ["vectors that come to a group", *(f"{vectors(job):.1f}" for job in jobs)],
    ]


def share(job: Job) -> float:
    """Return rank 0's share, the median of the generations."""
    return median(generation.share() for generation in job.generations)


def bytes_of(job: Job, which: str) -> list[int]:
    """Return the bytes of weights between groups in each generation: moved, or least."""
    return [generation.traffic[which] for generation in job.generations]


def vectors(job: Job) -> float:
    """Return how many vectors come to one group in a generation, mean of the groups."""
    return median(job.vectors("moved")) / job.ranks


def shown(jobs: Sequence[Job]) -> str:
    """Return what the tables show, in a sentence or two."""
    smallest, largest = jobs[0], max(jobs, key=lambda job: job.ranks)
    growth = largest.seconds() / smallest.seconds()
    more = largest.ranks / smallest.ranks
    over = [
        median(bytes_of(job, "moved")) / median(bytes_of(job, "least"))
        for job in jobs
        if median(bytes_of(job, "least"))
    ]
    return (
        f"From {smallest.ranks} to {largest.ranks} ranks, {more:.0f} times as many on the same"
        f" cores, a generation takes {growth:.0f} times as long, and rank 0's share goes from"
        f" {100 * share(smallest):.0f} % to {100 * share(largest):.0f} %. Bytes moved are at most"
        f" {max(over):.3f} times the least."
    )


if __name__ == "__main__":
    main()
