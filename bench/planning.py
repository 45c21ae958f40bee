"""Time what rank 0 decides alone in an evolution step, by number of groups.

    python bench/planning.py [--groups 2,4,8,16,32,64,128,256,512,1024] [--largest 10000] [--runs 3]

One process, no MPI. Four individuals a group and four children an individual, all of two parents;
a quarter of the population survives, SGD steps last from 1 to 3.5 s. Prints Markdown.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import NamedTuple, TypeVar

import numpy as np
from coordination import CHILDREN, PARENTS
from cost_parts import null_recipe
from measure import spread, table, tell, this_command

from esgd_hpc.evolution.placement import choose_makers, place_children, place_population
from esgd_hpc.evolution.plan import Child, draw_children, plan_stages
from esgd_hpc.population import Individual

T = TypeVar("T")

PARTS = ("drawing", "placing children", "ordering them", "placing the population", "all")
SHORTEST, LONGEST = 1.0, 3.5
"""Seconds of an SGD step."""
FITNESSES = {
    "of nearly equal fitness": lambda places: 1.0 + 0.05 * places,
    "of which few are wanted": lambda places: np.exp(16.0 * places),
}
"""How the selection probability 1 / fitness falls off, by places in [0, 1)."""


class Seconds(NamedTuple):
    """What the parts of one planning took, and how many vectors travel for the children."""

    parts: tuple[float, ...]
    vectors: int


def main() -> None:
    """Plan for each number of groups and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--groups", default="2,4,8,16,32,64,128,256,512,1024")
    parser.add_argument("--largest", type=int, default=10_000, help="planned once; 0: none")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    several = [int(groups) for groups in arguments.groups.split(",")]

    print("## Planning on rank 0\n")
    print(
        "While rank 0 decides, all others wait. Drawing the children, placing them on groups,"
        " putting those of each group in order, placing the population with its chosen children:"
        f" {PARENTS} individuals a group, {CHILDREN} children an individual, two parents a child,"
        f" a quarter survives, SGD steps of {SHORTEST:g} to {LONGEST:g} s. Milliseconds of one"
        " process;"
        f" n = {arguments.runs}"
        + (f", {arguments.largest:,} groups once" if arguments.largest else "")
        + f". By `{this_command()}`."
    )
    for kind in FITNESSES:
        found = {}
        for groups in several:
            tell(f"parents {kind}, {groups} groups")
            found[groups] = [plan(groups, kind, seed) for seed in range(arguments.runs)]
        if arguments.largest and kind == next(iter(FITNESSES)):
            tell(f"parents {kind}, {arguments.largest} groups")
            found[arguments.largest] = [plan(arguments.largest, kind, 0)]
        print(f"\nParents {kind}:\n")
        print(table(("groups", *PARTS, "vectors a child"), rows(found)))
        print(f"\n{growth(found)}")


def plan(groups: int, kind: str, seed: int) -> Seconds:
    """Plan one evolution step and return the seconds of each part."""
    stream = np.random.default_rng(seed)
    mu = PARENTS * groups
    recipe = null_recipe(groups, CHILDREN, 1, 5, seed)
    fitness = FITNESSES[kind](stream.permutation(mu) / mu)
    parents = [Individual(uid=uid, fitness=float(f)) for uid, f in enumerate(fitness)]
    owner = {uid: int(place) % groups for uid, place in enumerate(stream.permutation(mu))}
    paces = [1.0] * groups

    drawing, children = timed(lambda: draw_children(recipe, parents, mu, generation=1, step=1))
    parents_of = {child.uid: child.parents for child in children}
    placing, makers = timed(lambda: place_children(parents_of, owner, paces))
    ordering, _ = timed(lambda: plan_stages(children, makers, owner, groups))

    num_survivors = mu // 4
    chosen = stream.choice(list(parents_of), mu - num_survivors, replace=False)
    chosen_parents = {uid: parents_of[uid] for uid in sorted(chosen.tolist())}
    survivors = stream.choice(mu, num_survivors, replace=False)
    needs = {**{uid: (uid,) for uid in sorted(survivors.tolist())}, **chosen_parents}
    seconds = {uid: float(stream.uniform(SHORTEST, LONGEST)) for uid in needs}

    def place() -> None:
        home = place_population(needs, seconds, owner, paces)
        lender = {uid: home.get(uid, group) for uid, group in owner.items()}
        choose_makers(chosen_parents, home, lender, groups)

    population, _ = timed(place)
    parts = (drawing, placing, ordering, population)
    return Seconds((*parts, sum(parts)), vectors(children, makers, owner))


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds that a call takes, and what it returns."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def vectors(children: Sequence[Child], makers: dict[int, int], owner: dict[int, int]) -> int:
    """Return how many vectors come to groups for the children, each once."""
    needed = {(makers[child.uid], uid) for child in children for uid in child.parents}
    return sum(owner[uid] != group for group, uid in needed)


def rows(found: dict[int, list[Seconds]]) -> Iterator[list[str]]:
    """Yield the rows of the table."""
    for groups, runs in found.items():
        several = zip(*(run.parts for run in runs), strict=True)
        parts = [[1e3 * seconds for seconds in part] for part in several]
        cells = [spread(part, 1) if len(runs) > 1 else f"{part[0]:.1f}" for part in parts]
        a_child = median(run.vectors for run in runs) / (PARENTS * CHILDREN * groups)
        yield [f"{groups:,}", *cells, f"{a_child:.2f}"]


def growth(found: dict[int, list[Seconds]]) -> str:
    """Say how the seconds grow over the last of the table's rows."""
    groups = list(found)[-2:]
    before, after = (median(run.parts[-1] for run in found[number]) for number in groups)
    return (
        f"From {groups[0]:,} to {groups[1]:,} groups, {groups[1] / groups[0]:.1f} times as many, it"
        f" takes {after / before:.1f} times as long;"
        f" {1e6 * after / (PARENTS * CHILDREN * groups[1]):.0f} µs a child."
    )


if __name__ == "__main__":
    main()
