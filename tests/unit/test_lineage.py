"""Who descends from whom, on runs that are made up step by step and remembered as real ones are."""

import math
import random
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esgd_hpc.errors import InputError
from esgd_hpc.history import History, generation_row
from esgd_hpc.lineage import (
    Lineage,
    as_of,
    last_population,
    lost_champion,
    nearest_uids,
    unselected_child,
)
from esgd_hpc.population import Draw, Individual, Population, fittest
from esgd_hpc.recipe_file import load_recipe
from esgd_hpc.report.ancestry import MOST_DRAWN, drawable
from esgd_hpc.report.ancestry_places import BOX_WIDTH, MARGIN, Places
from esgd_hpc.report.lineage import family_of

MU, LAMBDA = 4, 5
RECIPE = load_recipe("digits", [f"population.parents={MU}", f"population.offspring={LAMBDA}"])


class Run(NamedTuple):
    """A run that never was."""

    populations: list[list[Individual]]
    """Of each generation."""
    history: History


def make_run(seed: int, generations: int, steps: int = 1, worse: float = 0.0) -> Run:
    """Return a run of random choices; an SGD step ends worse with probability `worse`."""
    choose = random.Random(seed)
    members = [
        Individual(uid=uid, fitness=choose.uniform(2, 3), seconds=math.nan) for uid in range(MU)
    ]
    next_uid, best_ever = MU + 1, math.inf
    history, populations = History(), [members]

    def remember(
        before: list[Individual],
        trained: list[Individual],
        offspring: list[Individual],
        selected: set[int],
        generation: int,
    ) -> None:
        nonlocal best_ever
        population = Population(
            generation=generation,
            individuals=members,
            owner={i.uid: 0 for i in members},
            next_uid=next_uid,
            weights={},
        )
        row = generation_row(population, before or None, RECIPE, {})
        best_ever = min(best_ever, row.best)
        history.rows.append(msgspec.structs.replace(row, best_ever=best_ever))
        history.remember(before, trained, offspring, selected, population)

    remember([], [], [], {i.uid for i in members}, 0)
    for k in range(1, generations + 1):
        before = members
        members = trained = [_trained(i, choose, worse) for i in before]
        offspring: list[Individual] = []
        selected: set[int] = set()
        for _ in range(steps):
            children = [
                _child(next_uid + place, k, members, choose, choose.choice([1, 2, 3]))
                for place in range(LAMBDA)
            ]
            next_uid += LAMBDA + 1
            members = sorted(choose.sample(members + children, MU), key=lambda i: i.uid)
            offspring += children
            selected |= {i.uid for i in members}
        populations.append(members)
        remember(before, trained, offspring, selected, k)
    return Run(populations, history)


def _trained(individual: Individual, choose: random.Random, worse: float) -> Individual:
    undone = choose.random() < 0.25
    factor = 1.5 if choose.random() < worse else 0.9
    return msgspec.structs.replace(
        individual,
        fitness=individual.fitness * (1.0 if undone else factor),
        origin=individual.origin if undone else "sgd",
        draw=Draw(
            optimizer="adam" if choose.random() < 0.5 else "sgd",
            learning_rate=choose.random(),
            hyperparameters={"dropout": choose.random()},
        ),
        epochs=individual.epochs + 1,
        back_offs=individual.back_offs + undone,
        seconds=choose.random(),
        failure="the loss is nan\x1b[31m" if undone and choose.random() < 0.5 else "",
    )


def _child(
    uid: int, generation: int, members: list[Individual], choose: random.Random, rho: int
) -> Individual:
    parents = choose.sample(members, rho)
    return Individual(
        uid=uid,
        fitness=sum(p.fitness for p in parents) / rho + choose.uniform(-0.1, 0.1),
        origin="offspring",
        born=generation,
        parents=tuple(p.uid for p in parents),
        noise_seed=str(choose.getrandbits(128)),
        sigma=0.01 / generation,
        seconds=math.nan,
    )


runs = st.builds(
    make_run, st.integers(0, 2**32), st.integers(0, 7), st.integers(1, 3), st.sampled_from([0, 0.5])
)


def ancestors(lineage: Lineage, uid: int) -> set[int]:
    """Return all ancestors, by the definition."""
    parents = lineage.births[uid].parents
    return set(parents).union(*(ancestors(lineage, parent) for parent in parents))


# ---------------------------------------------------------------- stories


@given(runs)
def test_every_generation_is_remembered_as_it_was(run: Run) -> None:
    """But for the metrics."""
    for generation, members in enumerate(run.populations):
        then = as_of(run.history, generation)
        assert repr(last_population(then, Lineage(then))) == repr(members)


@given(runs)
def test_a_story_is_one_of_unbroken_generations(run: Run) -> None:
    lineage = Lineage(run.history)
    last = len(run.populations) - 1
    for uid in lineage.births:
        story = lineage.story(uid)
        alive = [k for k, members in enumerate(run.populations) if uid in {i.uid for i in members}]
        if not alive:  # selected in one evolution step, and not in the next
            assert story.survived_until is None
            assert story.steps == ()
            continue
        assert alive == list(range(story.birth.born, alive[-1] + 1))
        assert story.survived_until == alive[-1]
        trained = range(story.birth.born + 1, min(alive[-1] + 1, last) + 1)
        assert [step.generation for step in story.steps] == list(trained)
        fitness = story.birth.fitness
        for step in story.steps:
            assert step.fitness_before == fitness
            fitness = step.fitness
        assert story.fitness == fitness


@given(runs)
def test_children_and_parents_know_one_another(run: Run) -> None:
    lineage = Lineage(run.history)
    everyone = [child for children in run.history.offspring for child in children]
    for uid, birth in lineage.births.items():
        story = lineage.story(uid)
        assert all(birth in lineage.story(parent).children for parent in birth.parents)
        assert all(uid in child.parents for child in story.children)
        assert story.num_children == sum(uid in child.parents for child in everyone)
        assert len(story.children) <= story.num_children


def test_the_anchor_is_known_by_its_children() -> None:
    history = make_run(1, 1).history
    child = history.births[-1]
    assert child.born == 1
    history.births[-1] = msgspec.structs.replace(child, parents=(MU, 0), origin="anchor")
    story = Lineage(history).story(MU)
    assert (story.birth.origin, story.survived_until, story.steps) == ("anchor", None, ())
    assert [birth.uid for birth in story.children] == [child.uid]


# ---------------------------------------------------------------- descent


@given(runs, st.integers(1, 9))
def test_an_ancestry_has_all_ancestors_up_to_its_depth(run: Run, depth: int) -> None:
    lineage = Lineage(run.history)
    for uid in lineage.births:
        whole = lineage.ancestry(uid)
        assert whole.depths.keys() == ancestors(lineage, uid) | {uid}
        assert (whole.num_ancestors, whole.cut) == (len(whole.depths) - 1, frozenset())
        assert whole.whole_depth == max(whole.depths.values())
        shown = lineage.ancestry(uid, depth)
        assert shown.depths == {u: d for u, d in whole.depths.items() if d <= depth}
        assert (shown.num_ancestors, shown.whole_depth) == (whole.num_ancestors, whole.whole_depth)
        for member in shown.depths:
            parents = lineage.births[member].parents
            assert (member in shown.cut) == any(p not in shown.depths for p in parents)


@given(runs)
def test_every_ancestor_is_older_and_as_near_as_its_child_says(run: Run) -> None:
    lineage = Lineage(run.history)
    for uid, birth in lineage.births.items():
        depths = lineage.ancestry(uid).depths
        assert list(depths.values()) == sorted(depths.values())
        assert depths.pop(uid) == 0
        for ancestor, depth in depths.items():
            assert ancestor < uid
            assert lineage.births[ancestor].born <= birth.born
            children = [c.uid for c in lineage.story(ancestor).children if c.uid in {uid, *depths}]
            assert depth == 1 + min(depths.get(child, 0) for child in children)


@given(runs, st.data())
def test_common_ancestors(run: Run, data: st.DataObject) -> None:
    lineage = Lineage(run.history)
    first, second = (data.draw(st.sampled_from(sorted(lineage.births))) for _ in range(2))
    common, nearest = lineage.common_ancestors(first, second)
    ours, theirs = (ancestors(lineage, uid) | {uid} for uid in (first, second))
    assert common == sorted(ours & theirs)
    assert nearest == [u for u in common if not any(u in ancestors(lineage, o) for o in common)]
    assert bool(nearest) == bool(common)


def test_an_individual_counts_among_its_own_ancestors() -> None:
    lineage = Lineage(make_run(3, 4).history)
    child = max(lineage.births)
    parent = lineage.births[child].parents[0]
    assert lineage.common_ancestors(child, child)[1] == [child]
    assert lineage.common_ancestors(child, parent)[1] == [parent]
    assert lineage.common_ancestors(0, 1) == ([], [])


# ---------------------------------------------------------------- the best, and who is asked for


@given(runs)
def test_the_champion_is_the_best_state_that_the_population_lost(run: Run) -> None:
    best: list[Individual] = []
    for generation, members in enumerate(run.populations):
        then = as_of(run.history, generation)
        found = lost_champion(then, Lineage(then))
        best.append(fittest(members))
        if best[-1].fitness == min(b.fitness for b in best):
            assert found is None
        else:
            assert repr(found) == repr(min(best, key=lambda b: b.fitness))


def test_nearest_uids() -> None:
    lineage = Lineage(make_run(5, 0).history)
    assert list(lineage.births) == [0, 1, 2, 3]
    assert nearest_uids(lineage, 10**9, 2) == [2, 3]
    assert nearest_uids(lineage, 7) == [0, 1, 2, 3]


def test_children_that_were_not_selected() -> None:
    history = make_run(6, 3).history
    births = Lineage(history).births
    for generation, children in enumerate(history.offspring):
        for child in children:
            if child.uid not in births:
                assert unselected_child(history, child.uid) == (generation, child)
    assert unselected_child(history, MU) is None


# ---------------------------------------------------------------- what cannot be


def _parent_younger(history: History) -> None:
    """Of the same generation."""
    first, second = history.births[:2]
    assert first.born == second.born
    history.births[0] = msgspec.structs.replace(first, parents=(second.uid,))


def _parent_born_later(history: History) -> None:
    first = history.births[0]
    child = next(birth for birth in history.births if birth.parents)
    history.births[0] = msgspec.structs.replace(first, born=3)
    history.births[history.births.index(child)] = msgspec.structs.replace(child, parents=(0,))


def _born_never(history: History) -> None:
    history.births[0] = msgspec.structs.replace(history.births[0], born=2**62)


def _survivor_unborn(history: History) -> None:
    uid = history.survivors[-1][-1].uid
    history.births[:] = [birth for birth in history.births if birth.uid != uid]


def _trained_before_birth(history: History) -> None:
    history.steps[0] = msgspec.structs.replace(history.steps[0], generation=0)


def _generations_missing(history: History) -> None:
    history.rows[-1] = msgspec.structs.replace(history.rows[-1], generation=2**62)


@pytest.mark.parametrize(
    "damage",
    [
        _parent_younger,
        _parent_born_later,
        _born_never,
        _survivor_unborn,
        _trained_before_birth,
        _generations_missing,
    ],
)
def test_a_history_that_contradicts_itself_is_refused(damage: Callable[[History], None]) -> None:
    history = make_run(7, 3).history
    Lineage(history)
    damage(history)
    with pytest.raises(InputError, match="the history is damaged: "):
        Lineage(history)


# ---------------------------------------------------------------- the image


@pytest.mark.filterwarnings("ignore:Generating overly large repr")  # of a filtered run
@given(runs.filter(lambda run: len(run.history.rows) > 1))
def test_what_is_drawn_lies_apart(run: Run) -> None:
    """Births do not overlap, also not those of one generation, and dots are beside them."""
    lineage = Lineage(run.history)
    root = fittest(run.populations[-1]).uid
    family = family_of(root, run.history, len(run.history.rows) - 1, MOST_DRAWN)
    places = Places(family.relatives)
    boxes: dict[float, list[tuple[float, float]]] = {}
    for relative in family.relatives:
        left = places.box(relative.start)
        boxes.setdefault(places.y(relative), []).append((left, left + BOX_WIDTH))
        dots = [places.dot(step.generation) for step in relative.steps]
        assert dots == sorted(set(dots))
        assert not dots or dots[0] > left + BOX_WIDTH
    for row in boxes.values():
        row.sort()
        assert all(end < start for (_, end), (start, _) in pairwise(row))
        assert row[0][0] >= MARGIN
        assert row[-1][1] <= places.width
    for parent, child in family.edges:
        start = family.relatives[child].start
        assert places.box(family.relatives[parent].start) + BOX_WIDTH <= places.leaving(start)
    assert {r.uid for r in family.relatives} == lineage.ancestry(root).depths.keys()


@given(st.integers(0, 2**32), st.integers(1, 7))
def test_no_row_runs_through_the_birth_of_another(seed: int, generations: int) -> None:
    run = make_run(seed, generations)
    root = fittest(run.populations[-1]).uid
    family = family_of(root, run.history, generations, MOST_DRAWN)
    places = Places(family.relatives)
    for parent, child in family.edges:
        relative = family.relatives[parent]
        begun = places.box(relative.start)
        ended = places.leaving(family.relatives[child].start)
        for other in family.relatives:
            if other is not relative and places.y(other) == places.y(relative):
                left = places.box(other.start)
                assert left + BOX_WIDTH < begun or ended < left


def test_an_image_goes_back_as_far_as_it_has_room() -> None:
    lineage = Lineage(make_run(8, 120).history)
    root = max(lineage.births)
    whole = lineage.ancestry(root)
    assert whole.num_ancestors > MOST_DRAWN
    fitting = drawable(lineage, root, None)
    depth = max(fitting.depths.values())
    assert len(fitting.depths) <= MOST_DRAWN < len(lineage.ancestry(root, depth + 1).depths)
    assert drawable(lineage, root, depth) == fitting
    assert drawable(lineage, root, 1).depths.keys() == {root, *lineage.births[root].parents}
    with pytest.raises(InputError, match=rf"--depth {depth + 1}: .*at most --depth {depth}$"):
        drawable(lineage, root, depth + 1)
