"""What the page says of a run in headlines, which charts it has, and why it lacks others."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from esgd_hpc.checkpoint.reader import Checkpoint
from esgd_hpc.history import GenerationRow
from esgd_hpc.report.evidence import evolved_rows
from esgd_hpc.report.lineage import Family
from esgd_hpc.report.recipe import fitness_name, has_evolution, last_generation, setting
from esgd_hpc.report.texts import counted, fitness_text, maker_text, seconds_text


class Tile(NamedTuple):
    """One headline number."""

    label: str
    value: str
    detail: str


class Figure(NamedTuple):
    """One chart; `kind` is what page.js knows it by."""

    kind: str
    title: str
    text: str
    """What it shows, for those who see it and those who do not."""


# Headlines ----------------------------------------------------------------------------------------


def headline(checkpoint: Checkpoint) -> str:
    """Return in a sentence what was run."""
    recipe = checkpoint.recipe
    parts = [f"{counted(len(checkpoint.individuals), 'individual')} of"]
    parts.append(f"{checkpoint.layout.num_parameters:,} parameters")
    children = setting(recipe, "population.offspring")
    if has_evolution(recipe) and isinstance(children, int):
        parts.append(f"and {children:,} children in each evolution step")
    return (
        f"{' '.join(parts)}, on {counted(checkpoint.ranks, 'rank')}"
        f" in {counted(checkpoint.groups, 'group')}."
    )


def tiles(checkpoint: Checkpoint) -> list[Tile]:
    """Return the headline numbers of a run."""
    recipe, best = checkpoint.recipe, checkpoint.best()
    last = last_generation(recipe)
    made, how = maker_text(best)
    seconds = wall_seconds(checkpoint.history.rows)
    return [
        Tile("Task", str(setting(recipe, "task")), f"method {setting(recipe, 'method')}"),
        Tile(
            "Generation",
            f"{checkpoint.generation}" + (f" of {last}" if last is not None else ""),
            progress_text(checkpoint),
        ),
        Tile(
            "Best fitness",
            fitness_text(best.fitness),
            f"{fitness_name(recipe)}, lower is better; individual {best.uid}",
        ),
        *(
            Tile(name.replace("_", " ").capitalize(), f"{value:.4g}", "of the best individual")
            for name, value in sorted(best.metrics.items())
        ),
        Tile("Made by", made, how),
        Tile("Theorem 1", *theorem_text(checkpoint)),
        Tile("Wall time", seconds_text(seconds), "sum over the generations, without start-up"),
    ]


def progress_text(checkpoint: Checkpoint) -> str:
    """Return whether a run is at its end."""
    last = last_generation(checkpoint.recipe)
    return "not at its end" if last is not None and checkpoint.generation < last else "complete"


def theorem_text(checkpoint: Checkpoint) -> tuple[str, str]:
    """Return whether the m-elitist average fitness ever rose, in a word and in detail."""
    rose = [str(row.generation) for row in checkpoint.history.rows if not row.theorem_1_holds]
    if not rose:
        return "holds", "the m-elitist average fitness never rose"
    allowed = setting(checkpoint.recipe, "sgd.backoff_probability")
    excuse = ", as it may where not every epoch is backed off" if allowed != 1.0 else ""
    shown = ", ".join(rose[:8]) + (" …" if rose[8:] else "")
    return "does not hold", f"the m-elitist average fitness rose in generation {shown}{excuse}"


def wall_seconds(rows: Sequence[GenerationRow]) -> float:
    """Return the seconds of all phases that were measured."""
    return sum(s for row in rows for s in row.seconds.values() if math.isfinite(s))


# Figures ------------------------------------------------------------------------------------------


def figures(checkpoint: Checkpoint, family: Family) -> tuple[list[Figure], dict[str, list[str]]]:
    """Return the charts that a run has the numbers for, and the titles of the others by reason."""
    shown: list[Figure] = []
    missing: dict[str, list[str]] = {}
    for figure, reason in _candidates(checkpoint, family):
        if reason:
            missing.setdefault(reason, []).append(figure.title)
        else:
            shown.append(figure)
    return shown, missing


def _candidates(checkpoint: Checkpoint, family: Family) -> Iterator[tuple[Figure, str]]:
    """Yield every chart, and why this run has not got it; empty if it has."""
    history, recipe = checkpoint.history, checkpoint.recipe
    rows = history.rows
    unrecorded = "" if history.births else "this run did not record them"
    yield (
        Figure("fitness", "Fitness", _fitness_caption(checkpoint)),
        "" if rows else "no generation is recorded",
    )
    share = [row.elite_offspring_fraction for row in evolved_rows(checkpoint)]
    average = f"; {sum(share) / len(share):.0%} on average" if share else ""
    no_children = "" if share else "there was no evolution step yet"
    yield (
        Figure(
            "children",
            "Children in the elite",
            f"Share of the m best individuals that were born in the same generation{average}.",
        ),
        no_children
        if has_evolution(recipe)
        else f"method {setting(recipe, 'method')} has no evolution step",
    )
    measured = any(math.isfinite(row.diversity) for row in rows)
    yield (
        Figure(
            "diversity",
            "Diversity",
            "Mean Euclidean distance between the parameters of two individuals: of all, and of"
            " those that were last trained by one optimizer.",
        ),
        "" if measured else unrecorded or "there are no two individuals",
    )
    yield (
        Figure(
            "optimizers",
            "Individuals by optimizer",
            "What each individual was last trained by. Children wait for their first SGD step.",
        ),
        unrecorded,
    )
    yield (
        Figure(
            "seconds",
            "Wall time by phase",
            "Seconds of rank 0 in each generation; checkpoint is how long training waited for it.",
        ),
        "" if any(row.seconds for row in rows) else "no generation was timed yet",
    )
    yield (
        Figure(
            "settings",
            "Hyper-parameters and fitness",
            "Each dot is one SGD step of one individual: what it was drawn to train with, and what"
            " came of it. Hollow dots were undone by back-off.",
        ),
        "" if history.steps else unrecorded or "there was no SGD step yet",
    )
    yield Figure("family", "Family of the best", _family_caption(checkpoint, family)), unrecorded


def _fitness_caption(checkpoint: Checkpoint) -> str:
    rows = checkpoint.history.rows
    what = fitness_name(checkpoint.recipe)
    if len(rows) < 2:
        return f"Fitness of the initial population ({what}, lower is better)."
    text = (
        f"Best fitness from {fitness_text(rows[0].best)} to {fitness_text(rows[-1].best_ever)} in"
        f" {counted(len(rows) - 1, 'generation')} ({what}, lower is better)."
    )
    if len(checkpoint.individuals) == 1:
        return text
    if any(math.isfinite(row.lower_quartile) for row in rows):
        return (
            f"{text} Light band: from the best to the worst individual; dark band: the middle"
            " half; dots: individuals."
        )
    return f"{text} Band: from the best to the worst individual."


def _family_caption(checkpoint: Checkpoint, family: Family) -> str:
    uid = family.relatives[0].uid
    if family.num_ancestors == 0:
        return f"Individual {uid} descends from no other; its line shows its SGD steps."
    left_out = family.num_ancestors + 1 - len(family.relatives)
    shown = f", of which the {len(family.relatives) - 1} youngest are drawn" if left_out else ""
    return (
        f"Individual {uid} (star) and its {counted(family.num_ancestors, 'ancestor')}{shown}."
        " Each line is a life from birth to the last child that matters here, in the colour of"
        " the optimizer of each SGD step; thin curves lead from parents to children. Squares: the"
        " initial population."
    )
