"""Time the same run on one rank and on two, as two groups and as one.

    python bench/scaling.py [--runs 3] [--generations 3] [--set KEY=VALUE]...

Two runs of one rank each, at the same time, show what two cores of this machine lose to one another
whatever they do. Whole processes in turn, prints Markdown. Needs `esgd data prepare fashion`.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from measure import on_ranks, seconds_of, spread, table, tell, this_command

from esgd_hpc.checkpoint.reader import find_generation, open_checkpoint
from esgd_hpc.history import EVOLUTION

RECIPE = "fashion-small"
BUSY = ("sgd", "idle", *EVOLUTION)
"""Phases in which individuals and children are trained, made and scored, or waited for."""


class Kind(NamedTuple):
    """How a run is started."""

    ranks: int
    ranks_per_group: int = 1
    jobs: int = 1
    """Of that many ranks each, at the same time."""


ONE, TWICE = "1 rank", "1 rank, two such runs at once"
KINDS = {
    ONE: Kind(ranks=1),
    "2 ranks in 2 groups": Kind(ranks=2),
    "2 ranks in 1 group, data-parallel": Kind(ranks=2, ranks_per_group=2),
    TWICE: Kind(ranks=1, jobs=2),
}


class Seconds(NamedTuple):
    """What a run took."""

    whole: float
    busy: float
    """SGD and evolution steps alone; of the slower of two runs."""
    idle: float
    """What of it a group waited for the slowest in SGD steps, on average."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--generations", type=int, default=3)
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    sets = [f"generations={arguments.generations}", *arguments.sets]
    found: dict[str, list[Seconds]] = {name: [] for name in KINDS}
    for run in range(arguments.runs):
        for name, kind in KINDS.items():
            tell(f"{name}, run {run + 1} of {arguments.runs}")
            found[name].append(seconds_of_runs(kind, sets))

    print("## One rank to two\n")
    print(
        f"`esgd run {RECIPE}`, {arguments.generations} generations, the same work on one rank and"
        f" on two; whole processes in turn, n = {arguments.runs}. A speed-up is that of each"
        " turn, efficiency half of the second; idle is what a group waits for the slower one in"
        f" SGD steps, on average. By `{this_command()}`.\n"
    )
    heads = ["", "whole run, s", "speed-up", "SGD and evolution, s", "idle, s"]
    heads += ["speed-up", "efficiency"]
    print(table(heads, [row(name, found) for name in KINDS]) + "\n")
    twice = speed_ups(TWICE, found, "busy")
    print(
        "Two runs at once do twice the work of one: their speed-up is what two cores of this"
        f" machine are worth together, {spread(twice)}."
    )


def seconds_of_runs(kind: Kind, sets: Sequence[str]) -> Seconds:
    """Start the runs of a kind together and return what they took."""
    words = [word for each in sets for word in ("--set", each)]
    words += ["--set", f"topology.ranks_per_group={kind.ranks_per_group}"]
    with tempfile.TemporaryDirectory() as home:
        folders = [Path(home) / str(job) for job in range(kind.jobs)]
        run = ("-m", "esgd_hpc", "run", RECIPE, *words, "--output")
        whole = seconds_of(*(on_ranks(kind.ranks, *run, str(folder)) for folder in folders))
        busy, idle = max(busy_seconds(folder) for folder in folders)
    return Seconds(whole, busy, idle)


def busy_seconds(folder: Path) -> tuple[float, float]:
    """Return the seconds of all SGD and evolution steps of a run, and those that were idle."""
    rows = open_checkpoint(find_generation(folder)).history.rows
    busy = sum(row.seconds.get(phase, 0.0) for row in rows for phase in BUSY)
    return busy, sum(row.seconds.get("idle", 0.0) for row in rows)


def speed_ups(name: str, found: dict[str, list[Seconds]], what: str) -> list[float]:
    """Return how many times the work of one rank was done in its time, in each turn."""
    jobs = KINDS[name].jobs
    return [
        jobs * getattr(one, what) / getattr(other, what)
        for one, other in zip(found[ONE], found[name], strict=True)
    ]


def row(name: str, found: dict[str, list[Seconds]]) -> list[str]:
    """Return a row of the table."""
    whole, busy, idle = (
        spread([getattr(seconds, what) for seconds in found[name]]) for what in Seconds._fields
    )
    if name == ONE:
        return [name, whole, "", busy, idle, "", ""]
    ratios = speed_ups(name, found, "busy")
    efficiency = spread([50 * ratio for ratio in ratios], 0) + " %"
    speed_up = spread(speed_ups(name, found, "whole"))
    return [name, whole, speed_up, busy, idle, spread(ratios), efficiency]


if __name__ == "__main__":
    main()
