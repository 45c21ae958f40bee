"""The numbers that the charts of the page draw: columns, fit for JSON.

Numbers that are not finite are None; a fitness of None is +inf. Individuals and SGD steps of long
runs are thinned by whole generations, so that a browser can draw them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from esgd_hpc.checkpoint.reader import Checkpoint
from esgd_hpc.history import OPTIMIZERS, GenerationRow, History, SgdStep
from esgd_hpc.report.evidence import evolved_rows
from esgd_hpc.report.evidence_charts import Chart
from esgd_hpc.report.lineage import Family, Relative
from esgd_hpc.report.texts import birth_text, step_text

MOST_POINTS = 6000
"""Individuals, and SGD steps, that a chart draws one by one."""
MOST_STEPS_TOLD = 8
"""SGD steps of one ancestor that are told, the last ones."""

P = TypeVar("P")

Figures = dict[str, Any]
"""Nested lists and mappings of numbers and texts."""


def figures_of(checkpoint: Checkpoint, family: Family) -> Figures:
    """Return what the charts of one run draw."""
    history = checkpoint.history
    return {
        "rows": _rows(history.rows),
        "children": _children(evolved_rows(checkpoint)),
        "members": _members(history),
        "steps": _steps(history.steps),
        "family": _family(family),
    }


def chart_of(chart: Chart) -> Figures:
    """Return what one of the paper's figures draws."""
    return {
        "x_title": chart.x_title,
        "y_title": chart.y_title,
        "y_range": list(map(number, chart.y_range)),
        "y_scale": chart.y_scale,
        "y_ticks": list(map(number, chart.y_ticks)),
        "bands": [
            {
                "label": band.label,
                "method": band.method,
                "variant": band.variant,
                "x": band.x,
                "line": list(map(number, band.line)),
                "low": list(map(number, band.low)),
                "high": list(map(number, band.high)),
            }
            for band in chart.bands
        ],
    }


def number(value: float) -> float | None:
    """Return a number in seven digits, which no screen shows more of; None if it is not finite."""
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _rows(rows: Sequence[GenerationRow]) -> Figures:
    def column(name: str) -> list[float | None]:
        return [number(getattr(row, name)) for row in rows]

    phases = list(dict.fromkeys(phase for row in rows for phase in row.seconds))
    names = (
        "best",
        "best_ever",
        "elite_average",
        "lower_quartile",
        "median",
        "upper_quartile",
        "worst",
    )
    return {
        "generation": [row.generation for row in rows],
        **{name: column(name) for name in names},
        "diversity": column("diversity"),
        "diversity_by_optimizer": {
            name: [number(row.diversity_by_optimizer.get(name, math.nan)) for row in rows]
            for name in OPTIMIZERS
        },
        "individuals_by_optimizer": {
            name: [row.individuals_by_optimizer.get(name, 0) for row in rows] for name in OPTIMIZERS
        },
        "seconds": {
            phase: [number(row.seconds.get(phase, math.nan)) for row in rows] for phase in phases
        },
    }


def _children(rows: Sequence[GenerationRow]) -> Figures:
    return {
        "generation": [row.generation for row in rows],
        "share": [number(row.elite_offspring_fraction) for row in rows],
    }


def thinned(points: Sequence[P], generation_of: Callable[[P], int]) -> tuple[list[P], int]:
    """Return the points of every n-th generation, the last one among them, and n."""
    every = max(1, math.ceil(len(points) / MOST_POINTS))
    last = max(map(generation_of, points), default=0)
    return [point for point in points if (last - generation_of(point)) % every == 0], every


def _members(history: History) -> Figures:
    everyone = [
        (row.generation, member)
        for row, members in zip(history.rows, history.survivors, strict=False)
        for member in members
    ]
    shown, every = thinned(everyone, lambda point: point[0])
    return {
        "every": every,
        "generation": [generation for generation, _ in shown],
        "uid": [member.uid for _, member in shown],
        "fitness": [number(member.fitness) for _, member in shown],
        "origin": [member.origin for _, member in shown],
        "optimizer": [member.optimizer for _, member in shown],
        "learning_rate": [number(member.learning_rate) for _, member in shown],
    }


def _steps(steps: Sequence[SgdStep]) -> Figures:
    shown, every = thinned(steps, lambda step: step.generation)
    settings = [
        {"name": name, "values": [number(getattr(step.draw, field)) for step in shown]}
        for name, field in (
            ("learning rate", "learning_rate"),
            ("momentum", "momentum"),
            ("weight decay", "weight_decay"),
            ("batch size", "batch_size"),
        )
    ]
    own = sorted({name for step in shown for name in step.draw.hyperparameters})
    for name in own:
        values = [step.draw.hyperparameters.get(name) for step in shown]
        settings.append({"name": name, "values": [_value(value) for value in values]})
    return {
        "every": every,
        "generation": [step.generation for step in shown],
        "uid": [step.uid for step in shown],
        "optimizer": [step.draw.optimizer for step in shown],
        "fitness": [number(step.fitness) for step in shown],
        "fitness_before": [number(step.fitness_before) for step in shown],
        "undone": [step.back_offs == step.epochs for step in shown],
        "settings": settings,
    }


def _value(value: Any) -> Any:
    """Return a task's hyper-parameter: a number, or a text for whatever is chosen by name."""
    if value is None or isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else number(value)


def _family(family: Family) -> Figures:
    return {
        "uid": [relative.uid for relative in family.relatives],
        "start": [relative.start for relative in family.relatives],
        "end": [relative.end for relative in family.relatives],
        "lane": [relative.lane for relative in family.relatives],
        "origin": [
            relative.birth.origin if relative.birth else "" for relative in family.relatives
        ],
        "optimizers": [_optimizers(relative) for relative in family.relatives],
        "told": [_told(relative) for relative in family.relatives],
        "edges": family.edges,
    }


def _optimizers(relative: Relative) -> list[tuple[int, str, bool]]:
    """Return generation, optimizer and whether all was undone, of each SGD step."""
    return [(s.generation, s.draw.optimizer, s.back_offs == s.epochs) for s in relative.steps]


def _told(relative: Relative) -> str:
    lines = [f"individual {relative.uid}", birth_text(relative.birth)]
    if relative.steps[MOST_STEPS_TOLD:]:
        lines.append(f"{len(relative.steps) - MOST_STEPS_TOLD} earlier SGD steps")
    lines += [step_text(step) for step in relative.steps[-MOST_STEPS_TOLD:]]
    return "\n".join(lines)
