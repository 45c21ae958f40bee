"""How much scoring an exact early rejection of children could save, at the very best.

    python bench/early_rejection.py [--recipes digits fashion-small]

Scoring of a child could end once its loss so far, with losses of at least 0, says that it cannot be
in the m-elite. But whoever is drawn into the random rest needs its fitness, and so has to be scored
again. Needs `esgd data prepare fashion`.
"""

import argparse
import tempfile
from pathlib import Path

from measure import on_ranks, seconds_of, table, tell

from esgd_hpc.checkpoint.reader import find_generation, open_checkpoint
from esgd_hpc.history import History
from esgd_hpc.recipe_file import recipe_from


def saved(history: History, num_elite: int, generation: int) -> list[float]:
    """Return the share of its scoring that each child of a generation could save, at the best.

    As if the worst of the m-elite were known before the first child, every batch had the same loss,
    and stopping inside a batch were possible; negative for a child that is scored twice.
    """
    children = history.offspring[generation]
    before = [step.fitness for step in history.steps if step.generation == generation]
    bound = sorted([*before, *(child.fitness for child in children)])[num_elite - 1]
    found = []
    for child in children:
        needed = min(1.0, bound / child.fitness)
        found.append(-needed if needed < 1.0 and child.selected else 1.0 - needed)
    return found


def main() -> None:
    """Run the recipes and print the section."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipes", nargs="+", default=["digits", "fashion-small"])
    rows = []
    for name in parser.parse_args().recipes:
        tell(f"esgd run {name}")
        with tempfile.TemporaryDirectory() as folder:
            seconds_of(on_ranks(2, "-m", "esgd_hpc", "run", name, "--output", folder))
            checkpoint = open_checkpoint(find_generation(Path(folder)))
        recipe = recipe_from(checkpoint.recipe)
        history = checkpoint.history
        by_generation = [
            saved(history, recipe.num_elite, row.generation)
            for row in history.rows
            if history.offspring[row.generation]
        ]
        children = [share for some in by_generation for share in some]
        means = [sum(some) / len(some) for some in by_generation]
        rejected = sum(share != 0.0 for share in children)
        again = sum(share < 0.0 for share in children)
        cells = [len(children), rejected, again]
        rows.append(
            [
                f"`{name}`",
                *map(str, cells),
                f"{100 * sum(children) / len(children):.1f} %",
                f"{100 * min(means):.1f} to {100 * max(means):.1f} %",
            ]
        )
    print("## What early rejection could save")
    print(
        "\nScoring of a child could end once its loss so far proves that it is not in the m-elite;"
        " one that is drawn into the random rest then has to be scored again. An upper bound from"
        " the fitness of all children of one run each: as if the final m-elite were known before"
        " the first child, and every batch had the same loss.\n"
    )
    heads = ["recipe", "children", "rejected", "scored again", "scoring saved", "by generation"]
    print(table(heads, rows))


if __name__ == "__main__":
    main()
