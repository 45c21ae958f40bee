"""Time a run against a bare loop that does the same, and other systems on its epochs.

    python bench/end_to_end.py [--runs 7] [--peer-runs 2] [--set KEY=VALUE]...

Whole programs in turn, prints Markdown. Needs `esgd data prepare fashion`. The other systems have
an environment of their own, which bench/peers.py makes.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from measure import on_ranks, seconds_of, spread, table, tell, this_command
from peers import PROCESSES, Peer, make_environment, peers, seconds_of_peer

from esgd_hpc.checkpoint.reader import find_generation, open_checkpoint
from esgd_hpc.config import Recipe
from esgd_hpc.heap import SETTINGS
from esgd_hpc.recipe_file import load_recipe

RECIPE = "fashion-small"
BOUND = 1.10
BARE_LOOP = str(Path(__file__).with_name("bare_loop.py"))
KEPT_HEAP = {name: str(value) for name, (_, value) in SETTINGS.items()}
"""Lets the C library keep what is freed, as runs do by themselves."""

RUN = "esgd run"
BARE, BARE_DEFAULT = "bare loop", "bare loop, heap by default"
BARE_EPOCHS = "bare loop, epochs alone"
BUSY, REST = "training and scoring", "all else"


class Found(NamedTuple):
    """What one run of a program took and found."""

    seconds: float
    num_epochs: int
    best: float
    """Smallest validation loss."""
    parts: dict[str, float]
    """Seconds by what they went into."""


class Program(NamedTuple):
    """Something that is run in turn with the others, in a folder of its own."""

    run: Callable[[Path], Found]
    yardstick: str
    """The bare loop that does the same work."""
    is_rare: bool = False
    """Whether it runs in the first rounds alone."""


def run_esgd(folder: Path, words: Sequence[str]) -> Found:
    """Run as users do."""
    run = ["-m", "esgd_hpc", "run", *words, "--output", str(folder / "run")]
    seconds = seconds_of(on_ranks(PROCESSES, *run))
    history = open_checkpoint(find_generation(folder / "run")).history
    phases: dict[str, float] = {}
    for row in history.rows:
        for phase, value in row.seconds.items():
            phases[phase] = phases.get(phase, 0.0) + value
    phases["start and end"] = seconds - sum(phases.values())
    num_epochs = sum(step.epochs for step in history.steps)
    return Found(seconds, num_epochs, history.rows[-1].best_ever, phases)


def run_bare(folder: Path, words: Sequence[str], heap: Mapping[str, str]) -> Found:
    """Run a bare loop in each process."""
    paths = [folder / f"report-{part}" for part in range(PROCESSES)]
    commands = [
        [sys.executable, BARE_LOOP, *words, "--share", f"{part}/{PROCESSES}", "--report", str(path)]
        for part, path in enumerate(paths)
    ]
    return found_by(seconds_of(*commands, environment=heap), paths)


def run_peer(folder: Path, words: Sequence[str], peer: Peer) -> Found:
    """Run another system. Raises RuntimeError where it cannot do the work."""
    path = folder / "report"
    seconds = seconds_of_peer(peer, [*words, "--report", str(path)], KEPT_HEAP)
    return found_by(seconds, [path])


def found_by(seconds: float, paths: Sequence[Path]) -> Found:
    """Return what programs wrote down, with the mean of the processes' seconds of work."""
    reports = [json.loads(path.read_text()) for path in paths]
    busy = sum(report["seconds"] for report in reports) / PROCESSES
    return Found(
        seconds,
        sum(report["epochs"] for report in reports),
        min(report["best"] for report in reports),
        {BUSY: busy, REST: seconds - busy},
    )


def programs(words: Sequence[str]) -> dict[str, Program]:
    """Return all programs by name, in the order of a round; `words` name the recipe."""
    epochs = partial(run_bare, words=[*words, "--epochs-only"], heap=KEPT_HEAP)
    return {
        RUN: Program(partial(run_esgd, words=words), BARE),
        BARE: Program(partial(run_bare, words=words, heap=KEPT_HEAP), BARE),
        BARE_DEFAULT: Program(partial(run_bare, words=words, heap={}), BARE, is_rare=True),
        BARE_EPOCHS: Program(epochs, BARE_EPOCHS, is_rare=True),
        **{
            peer.name: Program(partial(run_peer, words=words, peer=peer), BARE_EPOCHS, is_rare=True)
            for peer in peers()
        },
    }


class Series:
    """All runs of one program."""

    def __init__(self) -> None:
        self.rounds: dict[int, Found] = {}
        self.kernel_seconds: list[float] = []
        """Processor seconds in the kernel, of all processes that the program waited for."""
        self.failures: list[str] = []

    def add(self, number: int, program: Program) -> None:
        """Run once more, in the round of that number."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_stime
        with tempfile.TemporaryDirectory() as folder:
            try:
                self.rounds[number] = program.run(Path(folder))
            except RuntimeError as error:
                self.failures.append(str(error))
                return
        self.kernel_seconds.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_stime - before)

    def all_of(self, value: Callable[[Found], float]) -> list[float]:
        """Return a number of each run."""
        return [value(found) for found in self.rounds.values()]

    def ratios(self, yardstick: "Series") -> list[float]:
        """Return the seconds in units of those of the yardstick, of each round."""
        shared = [number for number in self.rounds if number in yardstick.rounds]
        return [self.rounds[n].seconds / yardstick.rounds[n].seconds for n in shared]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument(
        "--peer-runs",
        type=int,
        default=2,
        help="rounds, the first, with other systems and other bare loops",
    )
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    arguments = parser.parse_args()
    recipe = load_recipe(RECIPE, arguments.overrides)
    words = [RECIPE, *(word for key in arguments.overrides for word in ("--set", key))]
    if arguments.peer_runs:
        make_environment()
    found = programs(words)
    series = {
        name: Series()
        for name, program in found.items()
        if arguments.peer_runs or not program.is_rare
    }
    num_epochs = recipe.population.parents * recipe.generations * recipe.sgd.epochs
    for number in range(arguments.runs):
        for name, each in series.items():
            if found[name].is_rare and number >= arguments.peer_runs:
                continue
            tell(f"round {number + 1} of {arguments.runs}: {name}")
            each.add(number, found[name])
            if number in each.rounds and each.rounds[number].num_epochs != num_epochs:
                done = each.rounds[number].num_epochs
                raise SystemExit(f"{name} trained {done} epochs, not {num_epochs}")
    print_section(recipe, found, series)


def print_section(
    recipe: Recipe, found: Mapping[str, Program], series: Mapping[str, Series]
) -> None:
    """Print what was measured."""
    mu, children = recipe.population.parents, recipe.population.offspring * recipe.evolution.steps
    print("## End to end\n")
    print(
        f"`mpiexec -n {PROCESSES} esgd run {RECIPE}` in {PROCESSES} groups ({mu} individuals,"
        f" {recipe.generations} generations of {recipe.sgd.epochs} epoch, {children} children"
        f" each, checkpoints) in turn with a bare PyTorch loop in {PROCESSES} processes that does"
        " the same epochs and scores (first, after each epoch, of as many children, on test data),"
        " on fixed halves, and nothing else. Ray Tune (synchronous population based training,"
        " perturbation and checkpoint each generation, actors reused,"
        f" {PROCESSES} trials at a time) and Propulate ({PROCESSES} ranks; selection and mutation"
        " are its own, weights are handed on by an operator of ours) train the same network for"
        " as many epochs, without children: their yardstick is the bare loop of the epochs alone."
        " Whole programs; ratios are of the same round. By"
        f" `{this_command()}`.\n"
    )
    rows, parts = [], []
    for name, each in series.items():
        yardstick = found[name].yardstick
        if each.failures:
            why = f"{name} cannot: {each.failures[0]}"
            rows.append([why, str(len(each.failures)), "", "", "", ""])
        if not each.rounds:
            continue
        ratio = each.ratios(series[yardstick])
        rows.append(
            [
                name,
                str(len(each.rounds)),
                spread(each.all_of(lambda run: run.seconds), 1),
                "1.00" if name == yardstick else spread(ratio) if ratio else "",
                yardstick,
                spread(each.all_of(lambda run: run.best), 3),
            ]
        )
        for part in next(iter(each.rounds.values())).parts:
            seconds = each.all_of(lambda run, part=part: run.parts.get(part, 0.0))  # type: ignore[misc]
            parts.append([f"{name}: {part}", spread(seconds)])
    print(table(["what", "n", "seconds", "ratio", "to", "best loss"], rows) + "\n")
    print(
        f"Where the seconds go; {BUSY} is the mean of the {PROCESSES} processes, {REST} has start,"
        " end, waiting and bookkeeping:\n"
    )
    print(table(["what", "seconds"], parts) + "\n")
    print(what_it_shows(series[RUN], series[BARE], series.get(BARE_DEFAULT)))


def what_it_shows(run: Series, bare: Series, default: Series | None) -> str:
    """Return sentences about the tables."""
    ratio = statistics.median(run.ratios(bare))
    verdict = "within" if ratio <= BOUND else "above"
    told = f"The run takes {ratio:.2f} x the bare loop; {verdict} the bound of {BOUND:.2f}. "
    if default is not None:
        heap = " ".join(f"{key}={value}" for key, value in KEPT_HEAP.items())
        kernel = [f"{statistics.median(each.kernel_seconds):.1f}" for each in (default, bare, run)]
        told += (
            "Runs have the C library keep freed memory; so have all other programs here but one"
            f" bare loop, by {heap}. Without, the bare loop takes"
            f" {statistics.median(default.ratios(bare)):.2f} x as long, with {kernel[0]} s of"
            f" processor time in the kernel in place of {kernel[1]} s; the run has {kernel[2]} s. "
        )
    return f"{told}A best loss says that a system trained; methods are not compared here."


if __name__ == "__main__":
    main()
