"""How a run went up to one generation, and what the population of that generation is."""

from typing import Any

from esgd_hpc.checkpoint.reader import population_digest
from esgd_hpc.commands.inspect.view import NOT_KEPT, View
from esgd_hpc.commands.inspect.words import (
    SHOWN,
    Answer,
    number,
    optimizer_object,
    optimizer_text,
    table,
)
from esgd_hpc.population import Individual

HISTORY_COLUMNS = (
    "generation",
    "best",
    "elite_average",
    "median",
    "worst",
    "elite_offspring_fraction",
    "best_ever",
    "lower_quartile",
    "upper_quartile",
    "diversity",
)


def of_view(view: View) -> Answer:
    """Describe one generation; its weights, where they are kept, are all read for the digest.

    recipe, generation, generations (of the whole run), ranks, ranks_per_group, groups
    digest              see `population_digest`; null where the weights are no longer kept
    best                {uid, fitness, metrics, optimizer, in_population} of the fittest ever seen
    population          [{uid, fitness, parents, born, origin, optimizer, seconds}] in uid order
    history             {column: [value of each generation]}, see HISTORY_COLUMNS
    theorem_1_holds     in all generations
    underway            {generation, trained, steps, scored}: how much was done of the next
                        generation when the run was stopped; null where it was not
    changes             [{generation, key, old, new}] of the recipe, on purpose; values are JSON

    Raises InputError where the weights are damaged.
    """
    checkpoint, best = view.checkpoint, view.best()
    described = {
        "recipe": checkpoint.recipe,
        "generation": view.generation,
        "generations": _last_generation(checkpoint.recipe),
        "ranks": checkpoint.ranks,
        "ranks_per_group": checkpoint.ranks_per_group,
        "groups": checkpoint.groups,
        "digest": population_digest(checkpoint) if view.kept else None,
        "best": {
            "uid": best.uid,
            "fitness": best.fitness,
            "metrics": best.metrics,
            "optimizer": optimizer_object(best.draw),
            "in_population": view.champion is None,
        },
        "population": [_member(individual) for individual in view.individuals],
        "history": {
            name: [getattr(row, name) for row in view.history.rows] for name in HISTORY_COLUMNS
        },
        "theorem_1_holds": all(row.theorem_1_holds for row in view.history.rows),
        "underway": view.underway
        and {
            "generation": view.underway.generation,
            "trained": len(view.underway.trained),
            "steps": view.underway.steps,
            "scored": len(view.underway.scored),
        },
        "changes": [
            {"generation": c.generation, "key": c.key, "old": c.old, "new": c.new}
            for c in view.history.changes
        ],
    }
    return Answer(described, _lines(described, view))


def _member(individual: Individual) -> dict[str, Any]:
    return {
        "uid": individual.uid,
        "fitness": individual.fitness,
        "parents": list(individual.parents),
        "born": individual.born,
        "metrics": individual.metrics,
        "origin": individual.origin,
        "optimizer": optimizer_object(individual.draw),
        "seconds": individual.seconds,
    }


def _last_generation(recipe: dict[str, Any]) -> int | None:
    """Return the number of the generation that ends the run; fine-tuning is one more."""
    generations, fine_tuning = recipe.get("generations"), recipe.get("fine_tuning")
    if not isinstance(generations, int):
        return None
    extra = isinstance(fine_tuning, dict) and fine_tuning.get("epochs")
    return generations + (1 if extra else 0)


# For people ---------------------------------------------------------------------------------------


def _lines(described: dict[str, Any], view: View) -> list[str]:
    checkpoint, best = view.checkpoint, view.best()
    lost = " (the population lost it)" if view.champion else ""
    return [
        f"task        {checkpoint.recipe.get('task')}",
        f"method      {checkpoint.recipe.get('method')}",
        f"generation  {view.generation} of {described['generations']}",
        *(
            [f"stopped     in generation {view.underway.generation}, {view.underway.told()}"]
            if view.underway
            else []
        ),
        f"ranks       {checkpoint.ranks}: {checkpoint.groups} groups of"
        f" {checkpoint.ranks_per_group}",
        f"digest      {described['digest']}" if view.kept else f"weights     {NOT_KEPT}",
        f"Theorem 1   {_theorem_text(view)}",
        f"best        individual {best.uid}{lost}, fitness {best.fitness:.6g}"
        + "".join(f", {name} {value:.4g}" for name, value in sorted(best.metrics.items())),
        f"trained by  {optimizer_text(best.draw)}",
        *(
            f"changed     after generation {c.generation}: {c.key}: {c.old} -> {c.new}"
            for c in view.history.changes[-SHOWN:]
        ),
        "",
        *_history_lines(view),
        "",
        *_population_lines(view),
    ]


def _history_lines(view: View) -> list[str]:
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
        for row in view.history.rows
    ]
    titles = ("generation", "best", "elite average", "median", "worst", "children", "seconds")
    earlier = [f"the {len(rows) - SHOWN} generations before: --json"] if rows[SHOWN:] else []
    return [*earlier, *table(titles, rows[-SHOWN:])]


def _population_lines(view: View) -> list[str]:
    ranked = sorted(view.individuals, key=lambda i: (i.fitness, i.uid))
    rows = [
        (
            str(i.uid),
            f"{i.fitness:.6g}",
            i.origin,
            str(i.born),
            " ".join(map(str, i.parents)) or "-",
            f"{i.draw.optimizer} {i.draw.learning_rate:.3g}" if i.draw else "-",
            number(i.seconds, ".2f"),
            i.failure[:40],
        )
        for i in ranked
    ]
    titles = ("uid", "fitness", "origin", "born", "parents", "optimizer", "seconds", "failure")
    more = [f"{len(rows) - SHOWN} more individuals: --json"] if rows[SHOWN:] else []
    return [*table(titles, rows[:SHOWN], words=(7,)), *more]


def _theorem_text(view: View) -> str:
    rose = [str(row.generation) for row in view.history.rows if not row.theorem_1_holds]
    if not rose:
        return "holds: the m-elitist average fitness never rose"
    return f"the m-elitist average fitness rose in generation {', '.join(rose[:SHOWN])}"
