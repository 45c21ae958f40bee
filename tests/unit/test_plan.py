"""Plans, carried out by a simulation: what a group needs is at hand, and never too much."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from esgd_hpc import rng
from esgd_hpc.config import Recipe
from esgd_hpc.errors import RunError
from esgd_hpc.evolution.plan import (
    Child,
    assign_makers,
    draw_children,
    place_survivors,
    plan_rounds,
)
from esgd_hpc.population import Individual, Transfer
from esgd_hpc.recipe_file import recipe_from


@dataclasses.dataclass(frozen=True)
class Instance:
    """Some children to make, and who owns the parents."""

    num_groups: int
    owner: Mapping[int, int]
    children: list[Child]
    anchor: int | None


@st.composite
def instances(draw: st.DrawFn) -> Instance:
    """Draw uneven owners, an anchor or none, children of one to all parents."""
    mu = draw(st.integers(1, 10))
    num_groups = draw(st.integers(1, 6))
    owner = {uid: draw(st.integers(0, num_groups - 1)) for uid in range(mu)}
    anchor = mu if draw(st.booleans()) else None
    possible = [*range(mu), *([] if anchor is None else [anchor])]
    parents = st.lists(st.sampled_from(possible), min_size=1, max_size=4, unique=True)
    num_children = draw(st.integers(0, 20))
    children = [
        Child(uid=mu + 1 + i, parents=tuple(draw(parents)), noise_seed=str(i), sigma=0.1)
        for i in range(num_children)
    ]
    return Instance(num_groups, owner, children, anchor)


# Making -------------------------------------------------------------------------------------------


@given(instances())
def test_makers_have_equal_loads_and_are_near_the_parents(instance: Instance) -> None:
    maker = assign_makers(instance.children, instance.owner, instance.num_groups)
    assert list(maker) == [child.uid for child in instance.children]
    limit = math.ceil(len(instance.children) / instance.num_groups)
    loads = [0] * instance.num_groups
    for child in instance.children:
        free = [group for group, load in enumerate(loads) if load < limit]
        owned = Counter(instance.owner.get(uid) for uid in child.parents)
        assert maker[child.uid] in free
        assert owned[maker[child.uid]] == max(owned[group] for group in free)
        loads[maker[child.uid]] += 1


@given(instances(), st.data())
def test_in_each_round_a_group_has_the_parents_and_no_more_than_its_share(
    instance: Instance, data: st.DataObject
) -> None:
    # A chosen child is made again where it will live, which need not be near its parents.
    maker = assign_makers(instance.children, instance.owner, instance.num_groups)
    if data.draw(st.booleans()):
        maker = {uid: data.draw(st.integers(0, instance.num_groups - 1)) for uid in maker}
    rounds = plan_rounds(instance.children, maker, instance.owner, instance.num_groups)
    held: list[set[int]] = [set() for _ in range(instance.num_groups)]
    made: list[Child] = []
    share = math.ceil(len(instance.owner) / instance.num_groups)
    for making_of in rounds:
        assert making_of, "a round in which nobody does anything"
        for group, making in making_of.items():
            assert len(set(making.borrow)) == len(making.borrow)
            for uid in making.borrow:
                assert instance.owner[uid] != group, "borrowed by its owner"
                assert uid not in held[group], "borrowed again while it is held"
                held[group].add(uid)
            for child in making.children:
                for uid in child.parents:
                    owned = instance.owner.get(uid) == group
                    assert owned or uid == instance.anchor or uid in held[group]
                assert maker[child.uid] == group
            rho = max(len(child.parents) for child in making.children)
            assert len(held[group]) <= max(share, rho)
            made.extend(making.children)
            assert set(making.give_back) <= held[group]
            held[group] -= set(making.give_back)
    assert held == [set()] * instance.num_groups
    assert sorted(child.uid for child in made) == [child.uid for child in instance.children]
    assert all(child in instance.children for child in made)
    if instance.num_groups == 1:
        assert len(rounds) == min(1, len(made))


def test_two_groups_lend_each_other_everything_at_once() -> None:
    owner = {uid: uid % 2 for uid in range(8)}
    children = [Child(uid=10 + n, parents=(n, (3 * n + 1) % 8)) for n in range(8)]
    maker = {child.uid: child.uid % 2 for child in children}
    (only,) = plan_rounds(children, maker, owner, 2)
    assert all(len(making.borrow) <= 4 for making in only.values())
    assert sum(len(making.children) for making in only.values()) == 8


def test_a_group_that_has_no_room_meets_the_others_more_often() -> None:
    owner = {uid: uid for uid in range(6)}  # one individual a group
    children = [Child(uid=10 + n, parents=(n, n + 1)) for n in range(1, 5)]
    rounds = plan_rounds(children, dict.fromkeys([11, 12, 13, 14], 0), owner, 6)
    assert [len(r[0].children) for r in rounds] == [1, 1, 1, 1]
    assert sum(len(r[0].borrow) for r in rounds) == 5  # each parent once


def test_a_parent_that_the_next_child_needs_too_is_borrowed_once() -> None:
    owner = {0: 0, 1: 0, 2: 1}
    children = [
        Child(uid=10, parents=(0, 1)),
        Child(uid=11, parents=(2,)),
        Child(uid=12, parents=(1, 0)),
    ]
    rounds = plan_rounds(children, dict.fromkeys([10, 11, 12], 1), owner, 2)
    borrowed = [uid for each in rounds for making in each.values() for uid in making.borrow]
    assert sorted(borrowed) == [0, 1]


# Placing ------------------------------------------------------------------------------------------


@given(instances(), st.data())
def test_survivors_move_only_from_full_groups_and_no_group_owns_too_many(
    instance: Instance, data: st.DataObject
) -> None:
    survivors = data.draw(
        st.lists(st.sampled_from(sorted(instance.owner)), unique=True, max_size=10)
    )
    chosen = instance.children[: data.draw(st.integers(0, 10))]
    assume(survivors or chosen)
    owner, moves = place_survivors(survivors, chosen, instance.owner, instance.num_groups)
    assert set(owner) == {*survivors, *(child.uid for child in chosen)}
    mu = len(survivors) + len(chosen)
    limit = math.ceil(mu / instance.num_groups)
    assert set(owner.values()) <= set(range(instance.num_groups))
    assert max(Counter(owner.values()).values()) <= limit
    moved = {move.uid for move in moves}
    assert len(moved) == len(moves)
    before = Counter(instance.owner[uid] for uid in survivors)
    assert len(moves) == sum(max(0, n - limit) for n in before.values()), "the fewest moves"
    for move in moves:
        assert isinstance(move, Transfer)
        assert move.source == instance.owner[move.uid]
        assert move.target == owner[move.uid] != move.source
        stay = [uid for uid in survivors if owner[uid] == instance.owner[uid] == move.source]
        assert len(stay) == limit, "moved from a group that was not full"
    assert all(owner[uid] == instance.owner[uid] for uid in survivors if uid not in moved)


def test_chosen_children_come_to_live_near_their_parents() -> None:
    owner = {0: 0, 1: 1, 2: 2}
    chosen = [
        Child(uid=9, parents=(2, 1)),
        Child(uid=10, parents=(2,)),
        Child(uid=11, parents=(0,)),
    ]
    placed, moves = place_survivors([0, 1, 2], chosen, owner, 3)
    assert moves == []
    assert placed == {0: 0, 1: 1, 2: 2, 9: 1, 10: 2, 11: 0}


# Drawing ------------------------------------------------------------------------------------------


def recipe(offspring: int = 6, seed: int = 1, **evolution: Any) -> Recipe:
    return recipe_from(
        {
            "task": "digits",
            "seed": seed,
            "population": {"parents": 4, "offspring": offspring},
            "sgd": {"optimizers": [{"name": "sgd", "learning_rate": 0.1}]},
            "evolution": evolution,
        }
    )


def parents(*fitness: float) -> list[Individual]:
    """Return individuals whose uids are not their places."""
    return [Individual(uid=20 + 3 * i, fitness=f) for i, f in enumerate(fitness)]


FOUR = parents(1.0, 2.0, 0.5, 4.0)


def test_children_are_drawn_from_recipe_generation_step_and_uid_alone() -> None:
    children = draw_children(recipe(), FOUR, 50, 3, 1)
    assert children == draw_children(recipe(), FOUR, 50, 3, 1)
    assert children == draw_children(recipe(offspring=9), FOUR, 50, 3, 1)[:6]
    assert children[2:] == draw_children(recipe(), FOUR, 52, 3, 1)[:4]
    for other in (
        draw_children(recipe(seed=2), FOUR, 50, 3, 1),
        draw_children(recipe(), FOUR, 50, 4, 1),
        draw_children(recipe(), FOUR, 50, 3, 2),
    ):
        assert [c.parents for c in other] != [c.parents for c in children]
        assert not {c.noise_seed for c in other} & {c.noise_seed for c in children}


def test_children_have_consecutive_uids_and_noise_seeds_of_their_own() -> None:
    children = draw_children(recipe(offspring=40), FOUR, 50, 3, 2)
    assert [child.uid for child in children] == list(range(50, 90))
    assert len({child.noise_seed for child in children}) == 40
    for child in children:
        assert int(child.noise_seed) == rng.key(1, 3, 2, child.uid, rng.Purpose.MUTATION)
        assert not child.is_copy


@pytest.mark.parametrize("generation", [1, 2, 7, 100])
def test_mutation_strength_is_divided_by_the_generation(generation: int) -> None:
    for child in draw_children(recipe(mutation_strength=0.3), FOUR, 50, generation, 1):
        assert child.sigma == 0.3 / generation


def test_mutation_strength_is_drawn_uniformly_from_its_range() -> None:
    settings = recipe(offspring=800, mutation_strength=[0.1, 0.5])
    sigmas = np.array([child.sigma for child in draw_children(settings, FOUR, 50, 4, 1)])
    assert (sigmas >= 0.1 / 4).all()
    assert (sigmas <= 0.5 / 4).all()
    assert stats.kstest(sigmas * 4, stats.uniform(0.1, 0.4).cdf).pvalue > 1e-4


@pytest.mark.parametrize("rho", [1, 2, 3, 4])
def test_a_child_has_rho_distinct_parents_of_the_population(rho: int) -> None:
    for child in draw_children(recipe(offspring=50, parents_per_child=rho), FOUR, 50, 1, 1):
        assert len(set(child.parents)) == len(child.parents) == rho
        assert set(child.parents) <= {20, 23, 26, 29}


def test_rho_is_drawn_uniformly_from_a_list() -> None:
    settings = recipe(offspring=900, parents_per_child=[1, 2, 4])
    counts = Counter(len(child.parents) for child in draw_children(settings, FOUR, 50, 1, 1))
    assert set(counts) == {1, 2, 4}
    assert stats.chisquare([*counts.values()]).pvalue > 1e-4


@pytest.mark.parametrize(
    ("selection", "exact"),
    [
        ("inverse", [4 / 15, 2 / 15, 8 / 15, 1 / 15]),
        ("rank", [0.3, 0.2, 0.4, 0.1]),
    ],
)
def test_parents_are_drawn_by_the_selection_of_the_recipe(
    selection: str, exact: list[float]
) -> None:
    settings = recipe(offspring=3000, parents_per_child=1, selection=selection)
    counts = Counter(child.parents[0] for child in draw_children(settings, FOUR, 50, 1, 1))
    seen = [counts[individual.uid] for individual in FOUR]
    assert stats.chisquare(seen, [p * 3000 for p in exact]).pvalue > 1e-4


def test_failed_individuals_are_never_parents_even_where_children_get_fewer() -> None:
    some = parents(math.inf, 2.0, math.inf, 4.0)
    for child in draw_children(recipe(offspring=50, parents_per_child=3), some, 50, 1, 1):
        assert sorted(child.parents) == [23, 29]


def test_without_a_finite_fitness_there_is_an_error_that_names_the_generation() -> None:
    with pytest.raises(RunError, match="generation 5: no individual has a finite fitness"):
        draw_children(recipe(), parents(math.inf, math.inf), 50, 5, 1)


def test_a_negative_fitness_with_inverse_is_an_error_with_a_remedy() -> None:
    negative = parents(-1.0, 2.0)
    with pytest.raises(RunError, match=r"generation 5: .*selection = \"inverse\".*-1\.0") as caught:
        draw_children(recipe(), negative, 50, 5, 1)
    assert "choose window, rank or softmax" in str(caught.value)
    for selection in ("window", "rank", "softmax"):
        assert draw_children(recipe(selection=selection), negative, 50, 5, 1)
