"""The numbers behind the paper's Table 1, Figures 1 and 2 and Table 6, from what runs recorded.

Runs are sorted by task, and there into series: runs of one recipe that differ in their seeds
alone. Every number of a series is the median over its seeds.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, zip_longest
from statistics import median
from typing import Any, NamedTuple

from esgd_hpc.checkpoint.reader import Checkpoint
from esgd_hpc.config import differences
from esgd_hpc.history import GenerationRow, SgdStep
from esgd_hpc.population import Individual
from esgd_hpc.report.recipe import has_evolution, last_generation, setting
from esgd_hpc.report.texts import METHOD_NAMES

TOP = 15
"""Individuals that Table 1 and Figure 1 give the range of; all where there are fewer."""

LOSS = "loss"
"""The quantity of Table 1 that is the fitness itself; the others are metrics by name."""

ANCHORED = "esgd-anchor"
"""What the method esgd goes by here where an anchor joins the parents."""


class Series(NamedTuple):
    """A row of Table 1 and a curve of the figures."""

    method: str
    """Of the recipe, or `ANCHORED`."""
    label: str
    runs: dict[str, Checkpoint]
    """By name; their recipes differ in the seed alone, and they got equally far."""

    @property
    def first(self) -> Checkpoint:
        """One of the runs, for what is the same in all."""
        return next(iter(self.runs.values()))

    @property
    def seeds(self) -> list[Any]:
        """The seed of each run."""
        return [setting(run.recipe, "seed") for run in self.runs.values()]


class TaskRuns(NamedTuple):
    """The series that can be compared: of one task, with the same kind of fitness."""

    task: str
    data: str
    """What the fitness is measured on: "validation", "training", or empty if that is not known."""
    series: list[Series]


# Sorting runs -------------------------------------------------------------------------------------


def by_task(runs: Mapping[str, Checkpoint]) -> list[TaskRuns]:
    """Return the runs, by their names, sorted by task and then by method as in Table 1."""
    groups: dict[tuple[str, str], dict[str, Checkpoint]] = {}
    for name, run in runs.items():
        data = setting(run.recipe, "fitness.data")
        key = str(setting(run.recipe, "task")), data if data in ("validation", "training") else ""
        groups.setdefault(key, {})[name] = run
    return [TaskRuns(task, data, _series(group)) for (task, data), group in groups.items()]


def method_of(run: Checkpoint) -> str:
    """Return the method of a run, `ANCHORED` where an anchor is among the parents."""
    method = str(setting(run.recipe, "method"))
    return ANCHORED if method == "esgd" and setting(run.recipe, "anchor.weights") else method


def _series(runs: Mapping[str, Checkpoint]) -> list[Series]:
    pools: list[dict[str, Checkpoint]] = []
    for name, run in runs.items():
        fitting = (pool for pool in pools if all(_only_seeds_differ(run, r) for r in pool.values()))
        pool = next(fitting, None)
        if pool is None:
            pools.append({name: run})
        else:
            pool[name] = run
    methods = [method_of(next(iter(pool.values()))) for pool in pools]
    known = list(METHOD_NAMES)
    ranks = [known.index(method) if method in known else len(known) for method in methods]
    return [
        Series(methods[n], _label(methods[n], pools[n], methods.count(methods[n]) > 1), pools[n])
        for n in sorted(range(len(pools)), key=lambda n: ranks[n])
    ]


def _only_seeds_differ(one: Checkpoint, other: Checkpoint) -> bool:
    keys = {difference.key for difference in differences(one.recipe, other.recipe)}
    return (
        # Each seed may have an anchor and a start of its own.
        keys - {"anchor.weights", "population.initial_weights"} == {"seed"}
        and method_of(one) == method_of(other)
        and one.generation == other.generation
        and one.history.changes == other.history.changes
    )


def _label(method: str, runs: Mapping[str, Checkpoint], is_one_of_several: bool) -> str:
    name = METHOD_NAMES.get(method, method)
    if not is_one_of_several:
        return name
    more = f" and {len(runs) - 3} more" if len(runs) > 3 else ""
    return f"{name}: {', '.join(list(runs)[:3])}{more}"


def is_finished(run: Checkpoint) -> bool:
    """Tell whether a run is at its end, where individuals are scored on test data."""
    last = last_generation(run.recipe)
    return last is None or run.generation >= last


# Table 1 ------------------------------------------------------------------------------------------


class Spread(NamedTuple):
    """A quantity of the fittest individual, and its range over the top `TOP`."""

    best: float
    low: float
    high: float


def top(run: Checkpoint) -> list[Individual]:
    """Return the fittest individuals, at most `TOP` or as many as there are.

    The best ever is first; where the population lost it, its least fit makes room. Those that
    failed are left out.
    """
    ranked = sorted(run.individuals, key=lambda i: (i.fitness, i.uid))
    if run.champion is not None:
        ranked.insert(0, run.champion)
    most = min(TOP, len(run.individuals))
    return [i for i in ranked[:most] if math.isfinite(i.fitness)]


def quantities(task: TaskRuns) -> list[str]:
    """Return what Table 1 has of a task: loss and metrics, then those on test data.

    Runs that are not finished may still get a test loss, so there is a place for it.
    """
    runs = [run for series in task.series for run in series.runs.values()]
    names = {name for run in runs for individual in top(run) for name in individual.metrics}
    if not all(map(is_finished, runs)):
        names.add("test_loss")
    ranked = sorted(names, key=lambda name: (is_of_test(name), name != "test_loss", name))
    return [LOSS, *ranked]


def is_of_test(quantity: str) -> bool:
    """Tell whether a quantity is measured on test data."""
    return quantity.startswith("test_")


def spread(series: Series, quantity: str) -> Spread | None:
    """Return the medians over the seeds; None where a run has not got the quantity."""
    found = [_spread(run, quantity) for run in series.runs.values()]
    known = [spread for spread in found if spread is not None]
    if len(known) < len(found):
        return None
    return Spread(*(median(values) for values in zip(*known, strict=True)))


def _spread(run: Checkpoint, quantity: str) -> Spread | None:
    individuals = top(run)
    values = [i.fitness if quantity == LOSS else i.metrics.get(quantity) for i in individuals]
    known = [value for value in values if value is not None and math.isfinite(value)]
    best = values[0] if values else None
    if best is None or not math.isfinite(best):
        return None
    return Spread(best, min(known), max(known))


# Figures 1 and 2 ----------------------------------------------------------------------------------


class Curve(NamedTuple):
    """One value a generation: a line, and a band from `low` to `high`; NaN where unknown."""

    generation: list[int]
    line: list[float]
    low: list[float]
    high: list[float]


def fitness_curve(series: Series) -> Curve:
    """Return best and `TOP`-th (or last) fitness of each generation, the numbers of Figure 1."""
    best = _median_by_generation(series, lambda run: [edges[0] for edges in _edges(run)])
    last = _median_by_generation(series, lambda run: [edges[1] for edges in _edges(run)])
    generations = [row.generation for row in series.first.history.rows][: len(best)]
    return Curve(generations, best, best, last)


def _edges(run: Checkpoint) -> Iterator[tuple[float, float]]:
    """Yield the fitness of the best and of the `TOP`-th that did not fail, for each generation."""
    history = run.history
    for row, members in zip_longest(history.rows, history.survivors[: len(history.rows)]):
        ranked = sorted(member.fitness for member in members or ())[:TOP]
        if ranked:
            yield ranked[0], max(filter(math.isfinite, ranked), default=math.inf)
        else:  # a run in format 1 recorded no individuals
            yield row.best, row.worst if len(run.individuals) <= TOP else math.nan


def children_curve(series: Series) -> Curve:
    """Return the share of children in the m-elite, the numbers of Figure 2: median and range."""
    shares = [
        [row.elite_offspring_fraction for row in evolved_rows(r)] for r in series.runs.values()
    ]
    by_generation = list(zip(*shares, strict=False))
    return Curve(
        [row.generation for row in evolved_rows(series.first)][: len(by_generation)],
        [median(values) for values in by_generation],
        [min(values) for values in by_generation],
        [max(values) for values in by_generation],
    )


def evolved_rows(run: Checkpoint) -> list[GenerationRow]:
    """Return the generations that had an evolution step: fine-tuning has none."""
    last = setting(run.recipe, "generations")
    until = last if isinstance(last, int) else math.inf
    return [row for row in run.history.rows[1:] if row.generation <= until]


def _median_by_generation(
    series: Series, values_of: Callable[[Checkpoint], Sequence[float]]
) -> list[float]:
    rows = zip(*map(values_of, series.runs.values()), strict=False)
    return [math.nan if any(map(math.isnan, values)) else median(values) for values in rows]


def epochs_so_far(run: Checkpoint) -> list[int]:
    """Return how many SGD epochs each individual had been through at the end of each generation."""
    taken: dict[int, int] = {}
    for step in run.history.steps:  # an individual that failed has fewer
        taken[step.generation] = max(step.epochs, taken.get(step.generation, 0))
    rows = run.history.rows
    later = [taken.get(row.generation, _planned_epochs(run, row.generation)) for row in rows[1:]]
    return list(accumulate(later, initial=0))[: len(rows)]


def _planned_epochs(run: Checkpoint, generation: int) -> int:
    generations = setting(run.recipe, "generations")
    is_fine_tuning = isinstance(generations, int) and generation > generations
    epochs = setting(run.recipe, "fine_tuning.epochs" if is_fine_tuning else "sgd.epochs")
    return epochs if isinstance(epochs, int) else 1


# Table 6 ------------------------------------------------------------------------------------------


class Winner(NamedTuple):
    """The fittest individual at the end of a generation's SGD step, and of the generation."""

    step: SgdStep
    row: GenerationRow


def winners(run: Checkpoint) -> list[Winner]:
    """Return which optimizer served the best individual in each generation, as in Table 6.

    It is the best at the end of the SGD step: after the evolution step the best is mostly a child,
    which no optimizer has touched yet.
    """
    best: dict[int, SgdStep] = {}
    for step in run.history.steps:
        known = best.setdefault(step.generation, step)
        if (step.fitness, step.uid) < (known.fitness, known.uid):
            best[step.generation] = step
    rows = run.history.rows
    return [Winner(best[row.generation], row) for row in rows if row.generation in best]


def has_children(series: Series) -> bool:
    """Tell whether Figure 2 and Table 6 are about a series."""
    return has_evolution(series.first.recipe)
