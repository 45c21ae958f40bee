"""What the page shows of a run in tables."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from esgd_hpc.checkpoint.reader import Checkpoint
from esgd_hpc.population import Individual
from esgd_hpc.report.facts import theorem_text, wall_seconds
from esgd_hpc.report.lineage import Family
from esgd_hpc.report.recipe import has_evolution, last_generation, setting
from esgd_hpc.report.texts import (
    OPTIMIZER_NAMES,
    birth_text,
    fitness_text,
    maker_text,
    seconds_text,
)

MOST_ROWS = 200
"""Of any table on the page."""


class Table(NamedTuple):
    """Texts in rows; the columns in `words` are aligned to the left."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    words: tuple[str, ...] = ()
    left_out: str = ""
    """What the rows do not have, empty if they have all."""


def population_table(checkpoint: Checkpoint) -> Table:
    """Return the individuals by fitness; the best ever comes first if it is no longer there."""
    ranked = sorted(checkpoint.individuals, key=lambda i: (i.fitness, i.uid))
    names = sorted({name for i in ranked for name in i.metrics})

    def row(rank: str, i: Individual) -> tuple[str, ...]:
        return (
            rank,
            str(i.uid),
            fitness_text(i.fitness),
            *(f"{i.metrics[name]:.4g}" if name in i.metrics else "" for name in names),
            i.origin,
            str(i.born),
            " ".join(map(str, i.parents)),
            OPTIMIZER_NAMES[i.draw.optimizer] if i.draw else "",
            f"{i.draw.learning_rate:.3g}" if i.draw else "",
            str(i.epochs),
            str(i.back_offs),
            f"{i.seconds:.2f}",
            i.failure,
        )

    rows = [row(str(place), i) for place, i in enumerate(ranked[:MOST_ROWS], 1)]
    if checkpoint.champion is not None:
        rows.insert(0, row("ever", checkpoint.champion))
    columns = (
        "rank",
        "uid",
        "fitness",
        *(name.replace("_", " ") for name in names),
        "origin",
        "born in",
        "parents",
        "optimizer",
        "learning rate",
        "epochs",
        "undone",
        "seconds",
        "failure",
    )
    return _without_empty_columns(
        Table(
            f"The population after generation {checkpoint.generation}, by fitness",
            columns,
            rows,
            words=("origin", "parents", "optimizer", "failure"),
            left_out=_left_out(len(ranked)),
        )
    )


def generations_table(checkpoint: Checkpoint) -> Table:
    """Return the numbers of each generation."""
    rows = checkpoint.history.rows

    def optional(value: float) -> str:
        return fitness_text(value) if not math.isnan(value) else ""

    return _without_empty_columns(
        Table(
            "The numbers of each generation",
            (
                "generation",
                "best",
                "elite average",
                "lower quartile",
                "median",
                "upper quartile",
                "worst",
                "children in the elite",
                "diversity",
                "seconds",
            ),
            [
                (
                    str(row.generation),
                    fitness_text(row.best),
                    fitness_text(row.elite_average),
                    optional(row.lower_quartile),
                    fitness_text(row.median),
                    optional(row.upper_quartile),
                    fitness_text(row.worst),
                    f"{row.elite_offspring_fraction:.0%}"
                    if has_evolution(checkpoint.recipe)
                    else "",
                    f"{row.diversity:.4g}" if math.isfinite(row.diversity) else "",
                    f"{wall_seconds([row]):.2f}",
                )
                for row in rows[-MOST_ROWS:]
            ],
            left_out=_left_out(len(rows)),
        )
    )


def family_table(family: Family) -> Table:
    """Return the family of the best, youngest first."""
    return Table(
        "The family of the best in words",
        ("uid", "birth", "SGD steps"),
        [
            (str(relative.uid), birth_text(relative.birth), str(len(relative.steps)))
            for relative in family.relatives
        ],
        words=("birth",),
    )


def failures_table(checkpoint: Checkpoint) -> Table | None:
    """Return the SGD steps in which something went wrong, None if nothing did."""
    failed = [step for step in checkpoint.history.steps if step.failure]
    if not failed:
        return None
    return Table(
        "What went wrong in SGD steps",
        ("generation", "uid", "optimizer", "failure"),
        [
            (
                str(step.generation),
                str(step.uid),
                OPTIMIZER_NAMES[step.draw.optimizer],
                step.failure,
            )
            for step in failed[-MOST_ROWS:]
        ],
        words=("optimizer", "failure"),
        left_out=_left_out(len(failed)),
    )


def changes_table(checkpoint: Checkpoint) -> Table | None:
    """Return the keys of the recipe that were changed on purpose, None if there are none."""
    changes = checkpoint.history.changes
    if not changes:
        return None
    return Table(
        "Changes of the recipe on the way",
        ("after generation", "key", "before", "from then on"),
        [(str(c.generation), c.key, c.old, c.new) for c in changes[-MOST_ROWS:]],
        words=("key", "before", "from then on"),
        left_out=_left_out(len(changes)),
    )


def comparison_table(runs: Mapping[str, Checkpoint]) -> Table:
    """Return one row a run; `runs` maps names to them."""
    names = sorted({name for run in runs.values() for name in run.best().metrics})

    def row(name: str, run: Checkpoint) -> tuple[str, ...]:
        best, last = run.best(), last_generation(run.recipe)
        return (
            name,
            str(setting(run.recipe, "task")),
            str(setting(run.recipe, "method")),
            f"{run.generation}" + (f" of {last}" if last is not None else ""),
            str(len(run.individuals)),
            fitness_text(best.fitness),
            *(f"{best.metrics[n]:.4g}" if n in best.metrics else "" for n in names),
            maker_text(best)[0],
            theorem_text(run)[0],
            seconds_text(wall_seconds(run.history.rows)),
            str(run.ranks),
        )

    columns = (
        "run",
        "task",
        "method",
        "generation",
        "individuals",
        "best fitness",
        *(name.replace("_", " ") for name in names),
        "made by",
        "Theorem 1",
        "wall time",
        "ranks",
    )
    return Table(
        "The runs side by side",
        columns,
        [row(name, run) for name, run in runs.items()],
        words=("run", "task", "method", "made by", "Theorem 1"),
    )


def _without_empty_columns(table: Table) -> Table:
    kept = [place for place in range(len(table.columns)) if any(row[place] for row in table.rows)]
    return table._replace(
        columns=tuple(table.columns[place] for place in kept),
        rows=[tuple(row[place] for place in kept) for row in table.rows],
    )


def _left_out(number: int) -> str:
    if number <= MOST_ROWS:
        return ""
    return f"{number - MOST_ROWS:,} more are in the files: esgd inspect --json"
