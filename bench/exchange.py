"""Time the evolution step against the least that it needs: bytes between ranks, and noise.

    python bench/exchange.py [--runs 5] [--generations 3] [--parents 16] [--offspring 64]
                             [--parameters 10000000] [--large 550000000]

Runs of the null task on two ranks, in turn with bench/exchange_rank.py, which measures the two by
themselves. Prints Markdown. The large vector takes 4.4 GB of memory.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from measure import on_ranks, seconds_of, spread, table, tell, this_command

from esgd_hpc.checkpoint.reader import find_generation, open_checkpoint

RANK = str(Path(__file__).with_name("exchange_rank.py"))
RANKS, MANY_RANKS = 2, 4
BOUND = 2.0
PHASES = {
    "making": "making children: recombination and noise",
    "exchange": "waiting for weights",
    "planning": "planning and selection",
    "evolution_rest": "the rest, above all waiting for the other rank to be done",
}


class Step(NamedTuple):
    """The evolution step of one run, mean of its generations but the first, and its minimum."""

    seconds: dict[str, float]
    """Of rank 0, by phase, without scoring."""
    children: float
    """Made to be scored, and again because they are chosen."""
    moved: float
    """Bytes between ranks."""
    least: float
    bandwidth: float
    """Bytes per second, both ranks together."""
    noise: float
    """Seconds to generate the noise of lambda children."""

    def total(self) -> float:
        """Return the seconds without scoring."""
        return sum(self.seconds.values())

    def passing(self) -> float:
        """Return the seconds of the least bytes at the bandwidth."""
        return self.least / self.bandwidth

    def minimum(self) -> float:
        """Return the seconds that no evolution step can do without."""
        return self.passing() + self.noise


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--generations", type=int, default=3, help="the first is not counted")
    parser.add_argument("--parents", type=int, default=16)
    parser.add_argument("--offspring", type=int, default=64)
    parser.add_argument("--parameters", type=int, default=10_000_000)
    parser.add_argument("--large", type=int, default=550_000_000, help="parameters of one vector")
    arguments = parser.parse_args()
    size, children = arguments.parameters, arguments.offspring
    steps = []
    for run in range(arguments.runs):
        tell(f"run {run + 1} of {arguments.runs}")
        steps.append(step(size, arguments.parents, children, arguments.generations))
    tell(f"a vector to all of {MANY_RANKS} ranks")
    to_all = on(MANY_RANKS, "broadcast", "--parameters", str(size))
    tell("a large vector")
    large = on(RANKS, "large", "--parameters", str(arguments.large))
    if not large["same"]:
        raise SystemExit(f"{arguments.large:,} values did not arrive as they were sent")

    print("## The evolution step against its minimum\n")
    print(
        f"The null task on {RANKS} ranks in {RANKS} groups: {arguments.parents} parents,"
        f" {children} children, {size:,} parameters. An evolution step without scoring, by the"
        f" phases of rank 0, mean of {arguments.generations - 1} generations after the first;"
        " against the least bytes between the ranks at the bandwidth that both reach when they"
        f" send and receive vectors of {4e-6 * size:.3g} MB at once, and the time to generate the"
        f" noise of {children} children on both, each measured after each run,"
        f" n = {arguments.runs} in turn. By `{this_command()}`.\n"
    )
    print(table(["what", "seconds"], step_rows(steps, children)) + "\n")
    print(table(["what", "found"], found_rows(steps, to_all, large, arguments)) + "\n")
    again = median((s.children / children) * s.noise for s in steps)
    print(
        f"The bound is {BOUND:g}; {sum(ratio(s) <= BOUND for s in steps)} of {len(steps)} pairs"
        f" keep it. {100 * again / median(s.total() for s in steps):.0f} % of the step are the"
        " generation of noise, that of chosen children, which is made again, included."
    )


def step(size: int, parents: int, children: int, generations: int) -> Step:
    """Run the null task and measure, after it, what it needs at least."""
    settings = {
        "generations": generations,
        "population.parents": parents,
        "population.offspring": children,
        "task_options.parameters": size,
        "checkpoint.every": generations,
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    with tempfile.TemporaryDirectory() as folder:
        run = ["-m", "esgd_hpc", "run", "null", *words, "--output", folder]
        seconds_of(on_ranks(RANKS, *run))
        history = open_checkpoint(find_generation(Path(folder))).history
    least = on(RANKS, "minimum", "--parameters", str(size), "--children", str(children))
    rows, count = history.rows[2:], generations - 1
    made = [len(some) + sum(child.selected for child in some) for some in history.offspring[2:]]
    return Step(
        seconds={
            phase: sum(row.seconds.get(phase, 0.0) for row in rows) / count for phase in PHASES
        },
        children=sum(made) / count,
        moved=sum(row.traffic["moved"] for row in rows) / count,
        least=sum(row.traffic["least"] for row in rows) / count,
        bandwidth=least["bandwidth"],
        noise=least["noise"],
    )


def on(ranks: int, *words: str) -> dict[str, Any]:
    """Return what bench/exchange_rank.py reports."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        what, *options = words
        seconds_of(on_ranks(ranks, RANK, what, str(report), *options))
        found: dict[str, Any] = json.loads(report.read_text())
    return found


def ratio(step: Step) -> float:
    """Return how many times its minimum an evolution step takes."""
    return step.total() / step.minimum()


def step_rows(steps: Sequence[Step], children: int) -> list[list[str]]:
    """Return the rows of the first table."""
    rows = [
        [words, spread([step.seconds[phase] for step in steps], 3)]
        for phase, words in PHASES.items()
    ]
    return [
        *rows,
        ["**evolution step, scoring apart**", spread([step.total() for step in steps])],
        [f"noise of {children} children", spread([step.noise for step in steps])],
        ["least bytes at MPI bandwidth", spread([step.passing() for step in steps], 3)],
        ["**minimum**", spread([step.minimum() for step in steps])],
        ["**ratio of each pair**", spread([ratio(step) for step in steps])],
    ]


def found_rows(
    steps: Sequence[Step],
    to_all: dict[str, list[float]],
    large: dict[str, Any],
    arguments: argparse.Namespace,
) -> list[list[str]]:
    """Return the rows of the second table."""
    children, megabytes = arguments.offspring, 4e-6 * arguments.parameters
    gigabytes, seconds = 4e-9 * arguments.large, large["seconds"]
    again = [step.children - children for step in steps]
    pairs = zip(to_all["one_by_one"], to_all["broadcast"], strict=True)
    ratios = [one_by_one / broadcast for one_by_one, broadcast in pairs]
    one = f"{megabytes:.3g} MB from one to all of {MANY_RANKS} ranks"
    return [
        ["MB between the ranks", spread([1e-6 * step.moved for step in steps], 0)],
        ["bytes moved, relative to the least", spread([s.moved / s.least for s in steps], 3)],
        ["GB/s between the ranks", spread([1e-9 * step.bandwidth for step in steps])],
        [f"children made again, beside {children} that are scored", spread(again, 1)],
        [f"{one}, broadcast, ms", spread([1e3 * s for s in to_all["broadcast"]], 1)],
        [f"{one}, one by one, ms", spread([1e3 * s for s in to_all["one_by_one"]], 1)],
        [f"one by one relative to broadcast, {len(ratios)} pairs in turn", spread(ratios)],
        [
            f"one individual of {gigabytes:.3g} GB to another rank, once, all bits compared",
            f"{seconds:.2f} s, {gigabytes / seconds:.2f} GB/s",
        ],
    ]


if __name__ == "__main__":
    main()
