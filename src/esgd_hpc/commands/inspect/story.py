"""What became of one individual: its birth, its training, how long it lived, its children."""

from typing import Any

from esgd_hpc.commands.inspect.view import View, asked_uid
from esgd_hpc.commands.inspect.words import (
    SHOWN,
    Answer,
    number,
    optimizer_object,
    optimizer_text,
    table,
)
from esgd_hpc.history import Birth, SgdStep
from esgd_hpc.lineage import Story


def of_individual(view: View, asked: str) -> Answer:
    """Tell the story of one individual up to the generation that is looked at.

    uid, generation (that is looked at)
    best                whether the fittest state ever seen is one of this individual
    in_population       of this generation
    fitness             the last one known
    survived_until      last generation at whose end it was in the population, or null
    birth               {generation, origin, parents, sigma, noise_seed (decimal text), fitness}
    steps               [{generation, optimizer (as in the population), epochs, back_offs,
                        fitness_before, fitness, seconds, failure}], one each SGD step
    children            [{uid, generation (of birth), fitness (at birth), survived_until}], those
                        that were ever selected
    num_children        selected or not

    Raises InputError for a uid that nobody ever selected had.
    """
    uid = asked_uid(view, "--individual", asked)
    story = view.lineage.story(uid)
    described = {
        "uid": uid,
        "generation": view.generation,
        "best": view.best().uid == uid,
        "in_population": story.survived_until == view.generation,
        "fitness": story.fitness,
        "survived_until": story.survived_until,
        "birth": _birth(story.birth),
        "steps": [_step(step) for step in story.steps],
        "children": [
            {
                "uid": child.uid,
                "generation": child.born,
                "fitness": child.fitness,
                "survived_until": view.lineage.story(child.uid).survived_until,
            }
            for child in story.children
        ],
        "num_children": story.num_children,
    }
    return Answer(described, _lines(story, view))


def _birth(birth: Birth) -> dict[str, Any]:
    return {
        "generation": birth.born,
        "origin": birth.origin,
        "parents": list(birth.parents),
        "sigma": birth.sigma,
        "noise_seed": birth.noise_seed,
        "fitness": birth.fitness,
    }


def _step(step: SgdStep) -> dict[str, Any]:
    return {
        "generation": step.generation,
        "optimizer": optimizer_object(step.draw),
        "epochs": step.epochs,
        "back_offs": step.back_offs,
        "fitness_before": step.fitness_before,
        "fitness": step.fitness,
        "seconds": step.seconds,
        "failure": step.failure,
    }


# For people ---------------------------------------------------------------------------------------


def _lines(story: Story, view: View) -> list[str]:
    birth = story.birth
    return [
        f"individual  {birth.uid}, up to generation {view.generation}",
        f"born        {_birth_text(birth)}",
        f"survived    {survival_text(story, view.generation)}",
        f"fitness     {number(birth.fitness)} at birth, {number(story.fitness)} at last",
        f"best        {_best_text(story, view)}",
        "",
        *_step_lines(story),
        "",
        *_children_lines(story, view),
    ]


def _birth_text(birth: Birth) -> str:
    parents = f" of {' '.join(map(str, birth.parents))}" if birth.parents else ""
    noise = f", sigma {birth.sigma:.4g}, noise seed {birth.noise_seed}" if birth.sigma else ""
    return f"in generation {birth.born}: {birth.origin}{parents}{noise}"


def survival_text(story: Story, generation: int) -> str:
    """Return how long an individual lived, seen from a generation."""
    if story.survived_until is None:
        if story.birth.origin == "anchor" and not story.birth.parents:
            return "never in the population: the anchor itself"
        return f"not to the end of generation {story.birth.born}"
    if story.survived_until == generation:
        return f"still there in generation {generation}"
    return f"until generation {story.survived_until}"


def _best_text(story: Story, view: View) -> str:
    best = view.best()
    if best.uid != story.birth.uid:
        return f"no, that is {best.uid} with {best.fitness:.6g}"
    if view.champion is None:
        return "yes, the fittest ever seen"
    return f"yes, with {best.fitness:.6g}: the population lost that state, the checkpoint keeps it"


def _step_lines(story: Story) -> list[str]:
    if not story.steps:
        return ["no SGD step"]
    rows = [
        (
            str(step.generation),
            f"{step.fitness_before:.6g}",
            f"{step.fitness:.6g}",
            str(step.epochs),
            str(step.back_offs),
            f"{step.seconds:.2f}",
            optimizer_text(step.draw) + (f"; failed: {step.failure}" if step.failure else ""),
        )
        for step in story.steps
    ]
    titles = ("SGD step", "before", "after", "epochs", "back-offs", "seconds", "trained by")
    earlier = [f"the {len(rows) - SHOWN} steps before: --json"] if rows[SHOWN:] else []
    return [*earlier, *table(titles, rows[-SHOWN:], words=(6,))]


def _children_lines(story: Story, view: View) -> list[str]:
    if not story.children:
        return [f"children    {story.num_children}, none of them selected"]
    rows = [
        (
            str(child.uid),
            str(child.born),
            number(child.fitness),
            survival_text(view.lineage.story(child.uid), view.generation),
        )
        for child in story.children[:SHOWN]
    ]
    more = len(story.children) - SHOWN
    return [
        f"children    {story.num_children}, of them {len(story.children)} selected",
        *table(("child", "born", "fitness", "survived"), rows, words=(3,)),
        *([f"{more} more: --json"] if more > 0 else []),
    ]
