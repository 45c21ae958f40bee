"""`esgd inspect`: how a run went, and what its population is now."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esgd_hpc.checkpoint.reader import Checkpoint
    from esgd_hpc.population import Draw, Individual

HISTORY_COLUMNS = (
    "generation",
    "best",
    "elite_average",
    "median",
    "worst",
    "elite_offspring_fraction",
)

SHOWN = 20
"""Rows of a table; --json has all."""


def execute(arguments: argparse.Namespace) -> int:
    """Print one generation of a run, and return 0. Raises InputError where there is none."""
    from esgd_hpc.checkpoint.reader import find_generation, open_checkpoint

    checkpoint = open_checkpoint(find_generation(Path(arguments.run), arguments.generation))
    described = describe(checkpoint)
    if arguments.json:
        print(json.dumps(described, allow_nan=False))
    else:
        print(_text(described, checkpoint))
    return 0


def describe(checkpoint: "Checkpoint") -> dict[str, Any]:
    """Return the object of `inspect --json`. Numbers that are not finite are null.

    Reads all weights for the digest. Raises InputError where they are damaged.
    """
    from esgd_hpc.checkpoint.reader import population_digest

    best = checkpoint.best()
    described = {
        "recipe": checkpoint.recipe,
        "generation": checkpoint.generation,
        "generations": _last_generation(checkpoint.recipe),
        "ranks": checkpoint.ranks,
        "ranks_per_group": checkpoint.ranks_per_group,
        "groups": checkpoint.groups,
        "digest": population_digest(checkpoint),
        "best": {
            "uid": best.uid,
            "fitness": best.fitness,
            "metrics": best.metrics,
            "optimizer": _optimizer(best.draw),
        },
        "population": [_member(individual) for individual in checkpoint.individuals],
        "history": {
            name: [getattr(row, name) for row in checkpoint.history.rows]
            for name in HISTORY_COLUMNS
        },
        "theorem_1_holds": all(row.theorem_1_holds for row in checkpoint.history.rows),
    }
    finite: dict[str, Any] = _finite(described)
    return finite


def _member(individual: "Individual") -> dict[str, Any]:
    return {
        "uid": individual.uid,
        "fitness": individual.fitness,
        "parents": list(individual.parents),
        "born": individual.born,
        "origin": individual.origin,
        "optimizer": _optimizer(individual.draw),
        "seconds": individual.seconds,
    }


def _optimizer(draw: "Draw | None") -> dict[str, Any] | None:
    """Return the optimizer with its hyper-parameters, None before the first SGD step."""
    import msgspec

    if draw is None:
        return None
    fields = msgspec.to_builtins(draw)
    return {"name": fields.pop("optimizer"), **fields}


def _last_generation(recipe: dict[str, Any]) -> int | None:
    """Return the number of the generation that ends the run; fine-tuning is one more."""
    generations, fine_tuning = recipe.get("generations"), recipe.get("fine_tuning")
    if not isinstance(generations, int):
        return None
    extra = isinstance(fine_tuning, dict) and fine_tuning.get("epochs")
    return generations + (1 if extra else 0)


def _finite(value: Any) -> Any:
    """Return nested data with None for the numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# For people ---------------------------------------------------------------------------------------


def _text(described: dict[str, Any], checkpoint: "Checkpoint") -> str:
    best = checkpoint.best()
    recipe = checkpoint.recipe
    lines = [
        f"task        {recipe.get('task')}",
        f"method      {recipe.get('method')}",
        f"generation  {checkpoint.generation} of {described['generations']}",
        f"ranks       {checkpoint.ranks}: {checkpoint.groups} groups of"
        f" {checkpoint.ranks_per_group}",
        f"digest      {described['digest']}",
        f"Theorem 1   {_theorem_text(checkpoint)}",
        f"best        individual {best.uid}, fitness {best.fitness:.6g}"
        + "".join(f", {name} {value:.4g}" for name, value in sorted(best.metrics.items())),
        f"trained by  {_optimizer_text(best.draw)}",
        "",
        *_history_lines(checkpoint),
        "",
        *_population_lines(checkpoint),
    ]
    return "\n".join(printable(line) for line in lines)


def _history_lines(checkpoint: "Checkpoint") -> list[str]:
    rows = [
        (
            str(row.generation),
            f"{row.best:.6g}",
            f"{row.elite_average:.6g}",
            f"{row.median:.6g}",
            f"{row.worst:.6g}",
            f"{row.elite_offspring_fraction:.0%}",
            f"{sum(row.seconds.values()):.1f}",
        )
        for row in checkpoint.history.rows
    ]
    titles = ("generation", "best", "elite average", "median", "worst", "children", "seconds")
    earlier = [f"the {len(rows) - SHOWN} generations before: --json"] if rows[SHOWN:] else []
    return [*earlier, *_table(titles, rows[-SHOWN:])]


def _population_lines(checkpoint: "Checkpoint") -> list[str]:
    ranked = sorted(checkpoint.individuals, key=lambda i: (i.fitness, i.uid))
    rows = [
        (
            str(i.uid),
            f"{i.fitness:.6g}",
            i.origin,
            str(i.born),
            " ".join(map(str, i.parents)) or "-",
            f"{i.draw.optimizer} {i.draw.learning_rate:.3g}" if i.draw else "-",
            f"{i.seconds:.2f}",
            i.failure[:40],
        )
        for i in ranked
    ]
    titles = ("uid", "fitness", "origin", "born", "parents", "optimizer", "seconds", "failure")
    more = [f"{len(rows) - SHOWN} more individuals: --json"] if rows[SHOWN:] else []
    return [*_table(titles, rows[:SHOWN]), *more]


def _theorem_text(checkpoint: "Checkpoint") -> str:
    rose = [str(row.generation) for row in checkpoint.history.rows if not row.theorem_1_holds]
    if not rose:
        return "holds: the m-elitist average fitness never rose"
    return f"the m-elitist average fitness rose in generation {', '.join(rose[:SHOWN])}"


def _optimizer_text(draw: "Draw | None") -> str:
    if draw is None:
        return "nothing yet"
    parts = [f"{draw.optimizer}, learning rate {draw.learning_rate:.4g}"]
    if draw.momentum:
        parts.append(f"{'Nesterov ' if draw.nesterov else ''}momentum {draw.momentum:.4g}")
    if draw.weight_decay:
        parts.append(f"weight decay {draw.weight_decay:.4g}")
    parts.append(f"batch size {draw.batch_size}")
    parts += [f"{name} {value}" for name, value in sorted(draw.hyperparameters.items())]
    return ", ".join(parts)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (titles, *rows)
    ]


def printable(text: str) -> str:
    """Return a text from a file without what would control a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)
