"""What a run would do, in words: `esgd run --dry-run`."""

from collections.abc import Collection, Sequence
from pathlib import Path

from esgd_hpc.config import Range, Recipe, Table
from esgd_hpc.evolution.placement import most_owned
from esgd_hpc.evolution.plan import LOANS
from esgd_hpc.layout import Layout

TRAINING_COPIES = 8
"""Individuals' worth of memory that training one takes, at most, without activations and data."""


def held_individuals(recipe: Recipe, num_groups: int) -> int:
    """Return how many individuals a leader holds at most while it exchanges."""
    rho = recipe.evolution.parents_per_child
    own = most_owned(recipe.num_parents, num_groups)
    on_loan = max(LOANS, 2 * (rho if isinstance(rho, int) else max(rho)))
    # Its own and parents on loan, its chosen children, a child, and what is being written.
    held = min(own + on_loan, recipe.num_parents) + own + 1
    return held + (own if recipe.checkpoint.background else 0)


def plan_text(
    recipe: Recipe,
    headline: str,
    layout: Layout,
    num_groups: int,
    hyperparameters: Collection[str],
    folder: Path | None,
    notes: Sequence[str],
) -> str:
    """Return the plan: what runs, memory of a rank, files, what a draw covers, and the recipe."""
    one = layout.size * 4
    training = size_text(TRAINING_COPIES * one)
    held = held_individuals(recipe, num_groups)
    tuning = recipe.fine_tuning.epochs
    more = f" and {tuning} of fine-tuning" if tuning else ""
    draw = ["optimizer", "learning rate", "momentum", *sorted(hyperparameters)]
    return "\n".join(
        [
            headline,
            f"epochs of each individual: {recipe.generations} x {recipe.sgd.epochs}{more}",
            f"one individual: {layout.size:,} values, {size_text(one)}",
            f"training one: weights, gradient, flat gradient, optimizer and a copy to back off to:"
            f" up to {training} on the device, without activations and data",
            f"a leader holds at most {held} individuals while it exchanges:"
            f" {size_text(held * one)}",
            f"one checkpoint: {size_text(recipe.num_parents * one)} in {folder},"
            f" {recipe.checkpoint.keep} are kept",
            f"a draw covers: {', '.join(draw)}",
            *notes,
            *_missing_weights(recipe),
            "recipe:",
            *_recipe_lines(recipe, "  "),
        ]
    )


def _missing_weights(recipe: Recipe) -> list[str]:
    named = {
        "population.initial_weights": recipe.population.initial_weights,
        "anchor.weights": recipe.anchor.weights if recipe.method == "esgd" else "",
    }
    return [
        f"missing: {key} = {path}: no such file"
        for key, path in named.items()
        if path and not Path(path).is_file()
    ]


def size_text(num_bytes: float) -> str:
    """Return a number of bytes in words."""
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.3g} {name}"
    return f"{num_bytes / 2**10:.3g} KiB"


def _recipe_lines(table: Table, indent: str) -> list[str]:
    lines = []
    for name in table.__struct_fields__:
        value = getattr(table, name)
        if isinstance(value, Table):
            lines += [f"{indent}{name}", *_recipe_lines(value, f"{indent}  ")]
        elif isinstance(value, tuple) and value and isinstance(value[0], Table):
            for place, part in enumerate(value):
                lines += [f"{indent}{name} {place}", *_recipe_lines(part, f"{indent}  ")]
        else:
            shown = value.plain() if isinstance(value, Range) else value
            if isinstance(value, dict):
                shown = {k: v.plain() if hasattr(v, "plain") else v for k, v in value.items()}
            lines.append(f"{indent}{name} = {shown}")
    return lines
