"""Table 1 and Table 6 of the paper, as people read them and as programs do, with notes in words."""

import json
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from esgd_hpc.checkpoint.reader import Checkpoint
from esgd_hpc.report.evidence import (
    LOSS,
    TOP,
    Spread,
    TaskRuns,
    Winner,
    epochs_so_far,
    has_children,
    is_finished,
    is_of_test,
    quantities,
    spread,
    top,
    winners,
)
from esgd_hpc.report.recipe import last_generation, setting
from esgd_hpc.report.tables import Table
from esgd_hpc.report.texts import (
    METHOD_NAMES,
    OPTIMIZER_NAMES,
    counted,
    draw_text,
    fitness_text,
    listed,
)

PERCENT = ("error_rate", "frame_error", "accuracy")
"""How the names of metrics end that are shown in percent."""

Record = dict[str, Any]
"""One row of a CSV file, by column."""

COLUMNS_1 = (
    *("task", "fitness_data", "method", "runs", "seeds", "generation", "finished", "epochs"),
    *("individuals", "top", "quantity", "best", "low", "high"),
)
COLUMNS_6 = (
    *("task", "run", "seed", "generation", "individual", "optimizer", "learning_rate", "momentum"),
    *("nesterov", "weight_decay", "batch_size", "hyperparameters", "epochs", "epochs_undone"),
    *("fitness", "best_individual", "best_parents", "best_fitness"),
)


# Table 1 ------------------------------------------------------------------------------------------


def table_1(task: TaskRuns) -> Table:
    """Return a row for each method: best individual, and in brackets the range of the top."""
    shown = quantities(task)
    spreads = [[spread(series, quantity) for quantity in shown] for series in task.series]
    columns = [
        _texts(quantity, [row[place] for row in spreads]) for place, quantity in enumerate(shown)
    ]
    return Table(
        f"Table 1 ({task.task}): best individual [range of the top {TOP}, or of all]",
        (
            "method",
            "seeds",
            "SGD epochs",
            *(quantity_name(quantity, task.data) for quantity in shown),
        ),
        [
            (
                series.label,
                _seeds_text(series.seeds),
                str(epochs_so_far(series.first)[-1]) if series.first.history.rows else "",
                *(column[place] for column in columns),
            )
            for place, series in enumerate(task.series)
        ],
        words=("method", "seeds"),
    )


def quantity_name(quantity: str, data: str) -> str:
    """Return the heading of a quantity; `data` is what the fitness is measured on."""
    name = quantity if is_of_test(quantity) else f"{data} {quantity}".strip()
    return name.replace("_", " ") + (" (%)" if quantity.endswith(PERCENT) else "")


def _texts(quantity: str, column: Sequence[Spread | None]) -> list[str]:
    """Return the cells of one column, all with as many decimals."""
    scale = 100.0 if quantity.endswith(PERCENT) else 1.0
    smallest = min((abs(s.best) for s in column if s and s.best), default=1.0)
    # Four digits of the smallest; six decimals at most.
    decimals = 2 if scale > 1 else max(0, min(6, 3 - math.floor(math.log10(smallest))))

    def text(value: float) -> str:
        size = abs(scale * value)
        is_usual = size == 0 or 10.0**-decimals <= size < 1e7
        return f"{scale * value:.{decimals}f}" if is_usual else f"{scale * value:.3g}"

    def cell(spread: Spread | None) -> str:
        if spread is None:
            return MISSING
        if spread.low == spread.high == spread.best:
            return text(spread.best)
        return f"{text(spread.best)} [{text(spread.low)}, {text(spread.high)}]"

    return [cell(spread) for spread in column]


MISSING = "-"
"""What a cell shows where there is no number; the notes say why."""


def _seeds_text(seeds: Sequence[Any]) -> str:
    """Return "n = 4: 1 to 4", "n = 2: 3, 5", "1"."""
    numbers = sorted(seed for seed in seeds if isinstance(seed, int))
    told = ", ".join(map(str, seeds))
    if len(numbers) == len(seeds) > 2 and all(b == a + 1 for a, b in pairwise(numbers)):
        told = f"{numbers[0]} to {numbers[-1]}"
    return told if len(seeds) == 1 else f"n = {len(seeds)}: {told}"


def notes_1(task: TaskRuns) -> list[str]:
    """Return what a reader of Table 1 has to know, and what it lacks."""
    notes = [
        "Best is the fittest individual, the one with the lowest"
        f" {quantity_name(LOSS, task.data)}; another one may have a better metric."
    ]
    firsts = [series.first for series in task.series if len(series.first.individuals) > 1]
    sizes = dict.fromkeys(f"{len(top(first))} of {len(first.individuals)}" for first in firsts)
    if sizes:
        notes.append(f"Ranges are over {listed(sizes)} individuals.")
    if any(len(series.runs) > 1 for series in task.series):
        notes.append("Where n seeds are named, each number is the median over their runs.")
    present = {series.method for series in task.series}
    absent = [name for key, name in METHOD_NAMES.items() if key not in present]
    if "esgd-anchor" not in present:
        absent.remove(METHOD_NAMES["esgd-anchor"])  # the paper's table has no such row
    if absent:
        notes.append(f"Not among the given runs: {listed(absent)}.")
    epochs = {e[-1] for s in task.series if (e := epochs_so_far(s.first))}
    if len(epochs) > 1:
        notes.append("The methods did not train for the same number of SGD epochs.")
    options = [setting(series.first.recipe, "task_options") for series in task.series]
    if any(option != options[0] for option in options):
        notes.append(
            "The runs differ in task_options: their losses may be of other data or networks, and"
            " then cannot be compared."
        )
    notes += _notes_on_test_data(task)
    return notes


def _notes_on_test_data(task: TaskRuns) -> Iterator[str]:
    runs = {name: run for series in task.series for name, run in series.runs.items()}
    going = [name for name, run in runs.items() if not is_finished(run)]
    if going:
        told = [f"{name} (generation {_progress(runs[name])})" for name in going]
        yield (
            f"Not at the end yet: {listed(told)}; there is a dash for test numbers, since test data"
            " are scored after the last generation alone."
        )
    of_test = [quantity for quantity in quantities(task) if is_of_test(quantity)]
    without = [
        name
        for series in task.series
        for name, run in series.runs.items()
        if is_finished(run) and all(i.metrics.get(q) is None for q in of_test for i in top(run)[:1])
    ]
    if without:
        whose = "" if len(without) == len(runs) else f" in {listed(without)}"
        yield f"No test data were scored{whose}."


def _progress(run: Checkpoint) -> str:
    return f"{run.generation} of {last_generation(run.recipe)}"


def records_1(task: TaskRuns) -> Iterator[Record]:
    """Yield a row for each method and quantity, in full precision; NaN where there is none."""
    for series in task.series:
        epochs = epochs_so_far(series.first)
        for quantity in quantities(task):
            found = spread(series, quantity)
            best, low, high = found or (math.nan, math.nan, math.nan)
            yield {
                "task": task.task,
                "fitness_data": task.data,
                "method": series.method,
                "runs": ";".join(series.runs),
                "seeds": ";".join(map(str, series.seeds)),
                "generation": series.first.generation,
                "finished": is_finished(series.first),
                "epochs": epochs[-1] if epochs else 0,
                "individuals": len(series.first.individuals),
                "top": len(top(series.first)),
                "quantity": quantity,
                "best": best,
                "low": low,
                "high": high,
            }


# Table 6 ------------------------------------------------------------------------------------------


def tables_6(task: TaskRuns) -> list[Table]:
    """Return a table for each run of ESGD that recorded its SGD steps."""
    return [
        Table(
            f"Table 6 ({task.task}): optimizers of the best individual of {name}",
            (
                "generation",
                "individual",
                "optimizer",
                "hyper-parameters",
                "fitness",
                "best of the generation",
                "its fitness",
            ),
            [
                (
                    str(winner.step.generation),
                    str(winner.step.uid),
                    OPTIMIZER_NAMES[winner.step.draw.optimizer],
                    draw_text(winner.step.draw) + _undone(winner),
                    fitness_text(winner.step.fitness),
                    _best_text(winner, parents),
                    fitness_text(winner.row.best),
                )
                for winner in winners(run)
            ],
            words=("optimizer", "hyper-parameters", "best of the generation"),
        )
        for name, run, parents in _evolved(task)
        if run.history.steps
    ]


def _evolved(task: TaskRuns) -> Iterator[tuple[str, Checkpoint, dict[int, tuple[int, ...]]]]:
    """Yield the name of each run of ESGD, the run, and the parents of its individuals."""
    for series in filter(has_children, task.series):
        for name, run in series.runs.items():
            yield name, run, {birth.uid: birth.parents for birth in run.history.births}


def _undone(winner: Winner) -> str:
    step = winner.step
    if not step.back_offs:
        return ""
    return f"; {step.back_offs} of {counted(step.epochs, 'epoch')} undone"


def _best_text(winner: Winner, parents: dict[int, tuple[int, ...]]) -> str:
    uid = winner.row.best_uid
    if uid == winner.step.uid:
        return "the same"
    return f"{uid}, child of {listed(parents[uid])}" if parents.get(uid) else str(uid)


def notes_6(task: TaskRuns) -> list[str]:
    """Return what a reader of Table 6 has to know, and which runs it lacks."""
    evolved = list(_evolved(task))
    if not evolved:
        return ["Figure 2 and Table 6 are about ESGD, and there is no such run."]
    notes = []
    if any(run.history.steps for _, run, _ in evolved):
        notes.append(
            "Table 6 has the optimizer of the individual that is the fittest at the end of each"
            " generation's SGD step. After the evolution step the best is often a child, which no"
            " optimizer has touched yet."
        )
    missing = [name for name, run, _ in evolved if not run.history.steps]
    if missing:
        notes.append(f"No SGD steps are recorded, hence no Table 6: {listed(missing)}.")
    return notes


def records_6(task: TaskRuns) -> Iterator[Record]:
    """Yield a row for each run of ESGD and generation, in full precision."""
    for name, run, parents in _evolved(task):
        for step, row in winners(run):
            draw = step.draw
            yield {
                "task": task.task,
                "run": name,
                "seed": setting(run.recipe, "seed"),
                "generation": step.generation,
                "individual": step.uid,
                "optimizer": draw.optimizer,
                "learning_rate": draw.learning_rate,
                "momentum": draw.momentum,
                "nesterov": draw.nesterov,
                "weight_decay": draw.weight_decay,
                "batch_size": draw.batch_size,
                "hyperparameters": json.dumps(draw.hyperparameters, sort_keys=True),
                "epochs": step.epochs,
                "epochs_undone": step.back_offs,
                "fitness": step.fitness,
                "best_individual": row.best_uid,
                "best_parents": ";".join(map(str, parents.get(row.best_uid, ()))),
                "best_fitness": row.best,
            }
