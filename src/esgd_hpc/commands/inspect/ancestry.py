"""From whom one individual descends, as an indented tree and as an image."""

from collections import Counter
from pathlib import Path
from typing import Any

from esgd_hpc.commands.inspect.view import View, asked_uid
from esgd_hpc.commands.inspect.words import Answer, number, table
from esgd_hpc.lineage import Ancestry, Lineage, Story, extent

TEXT_DEPTH = 4
"""Births that the text goes back if --depth does not say: 31 lines where all have two parents."""


def of_individual(
    view: View, asked: str, depth: int | None, output: Path | None, *, everything: bool
) -> Answer:
    """Show an individual with its ancestors of at most `depth` births ago, and draw them too.

    Without `depth` the text goes back TEXT_DEPTH births, the object to the first (`everything`),
    and the image as far as it has room. The object:

    uid, generation (that is looked at)
    depth               births that it goes back
    ancestors           how many there are in all
    individuals         [{uid, depth (births to the individual, on the shortest way), generation (of
                        birth), origin (at birth), parents, birth_fitness, fitness (last known),
                        optimizers ({name: SGD steps}), survived_until}] in the order of depth, the
                        individual itself first
    left_out            uids whose parents are left out
    image               {path, depth (births that it goes back)}, or null

    Raises InputError for a uid that nobody ever selected had, and for an image that cannot be made.
    """
    uid = asked_uid(view, "--ancestry", asked)
    lineage = view.lineage
    drawn, image = [], None
    if output is not None:
        from esgd_hpc.report.ancestry import draw_ancestry, drawable

        fitting = drawable(lineage, uid, depth)
        draw_ancestry(fitting, lineage, view.history, output)
        drawn = ["", f"{output}: {_extent(fitting)}"]
        image = {"path": str(output), "depth": max(fitting.depths.values())}
    shown = lineage.ancestry(uid, TEXT_DEPTH if depth is None and not everything else depth)
    described = {
        "uid": uid,
        "generation": view.generation,
        "depth": max(shown.depths.values()),
        "ancestors": shown.num_ancestors,
        "individuals": [
            _individual(lineage.story(member), shown.depths[member]) for member in shown.depths
        ],
        "left_out": sorted(shown.cut),
        "image": image,
    }
    return Answer(described, [*_tree_lines(shown, lineage), *drawn])


def _individual(story: Story, depth: int) -> dict[str, Any]:
    birth = story.birth
    return {
        "uid": birth.uid,
        "depth": depth,
        "generation": birth.born,
        "origin": birth.origin,
        "parents": list(birth.parents),
        "birth_fitness": birth.fitness,
        "fitness": story.fitness,
        "optimizers": _optimizers(story),
        "survived_until": story.survived_until,
    }


def _optimizers(story: Story) -> dict[str, int]:
    return dict(Counter(step.draw.optimizer for step in story.steps))


# For people ---------------------------------------------------------------------------------------


def _extent(ancestry: Ancestry) -> str:
    """Return what is shown of an ancestry."""
    what = extent(ancestry)
    if not ancestry.cut:
        return what
    return f"{what}; --depth {ancestry.whole_depth} goes back to the first"


def _tree_lines(ancestry: Ancestry, lineage: Lineage) -> list[str]:
    """Return a tree in which everyone has one line of its own, where its way is the shortest.

    Elsewhere it is only referred to.
    """
    child_above: dict[int, int] = {}
    for uid, depth in ancestry.depths.items():
        for parent in lineage.births[uid].parents:
            if ancestry.depths.get(parent) == depth + 1:
                child_above.setdefault(parent, uid)
    rows: list[tuple[str, ...]] = []
    waiting: list[tuple[str, str, int | None]] = [(str(ancestry.root), "", ancestry.root)]
    while waiting:  # texts of the line and below it, and whose line it is; None where nobody's
        line, below, owner = waiting.pop()
        if owner is None:
            rows.append((line, *[""] * 6))
            continue
        story = lineage.story(owner)
        rows.append((line, *_cells(story)))
        branches: list[tuple[str, int | None]] = []
        for parent in dict.fromkeys(story.birth.parents):
            if parent in ancestry.depths:
                own = child_above.get(parent) == owner
                branches.append((str(parent) if own else f"({parent})", parent if own else None))
        if owner in ancestry.cut:
            branches.append(("...", None))
        for place, (text, whose) in reversed(list(enumerate(branches, 1))):
            last = place == len(branches)
            waiting.append(
                (
                    f"{below}{'`-- ' if last else '|-- '}{text}",
                    f"{below}{'    ' if last else '|   '}",
                    whose,
                )
            )
    titles = ("individual", "born", "origin", "fitness at birth", "at last", "SGD steps", "until")
    lines = table(titles, rows, words=(0,))
    notes = [_extent(ancestry)]
    if any(row[0].endswith(")") for row in rows):
        notes.append("(uid): has its line elsewhere in the tree")
    return [*lines, "", *notes]


def _cells(story: Story) -> tuple[str, ...]:
    return (
        str(story.birth.born),
        story.birth.origin,
        number(story.birth.fitness),
        number(story.fitness),
        " ".join(f"{name} {count}" for name, count in _optimizers(story).items()) or "-",
        "-" if story.survived_until is None else str(story.survived_until),
    )
