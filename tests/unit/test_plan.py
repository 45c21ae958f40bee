"""Plans, carried out by a simulation: what a group needs is at hand, and never too much."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from esgd_hpc import rng
from esgd_hpc.config import Recipe
from esgd_hpc.errors import RunError
from esgd_hpc.evolution import plan
from esgd_hpc.evolution.placement import place_children
from esgd_hpc.evolution.plan import (
    Child,
    Traffic,
    draw_children,
    is_broadcast_cheaper,
    plan_stages,
    traffic,
)
from esgd_hpc.population import Broadcast, Individual, Transfer
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


# Stages -------------------------------------------------------------------------------------------


@given(instances(), st.data())
def test_in_each_stage_a_group_has_the_parents_and_no_more_than_the_loans(
    instance: Instance, data: st.DataObject
) -> None:
    # A chosen child is made again where it will live, which need not be near its parents.
    groups = range(instance.num_groups)
    maker = {child.uid: data.draw(st.sampled_from(groups)) for child in instance.children}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "LOANS", data.draw(st.integers(1, 6)))
        made_plan = plan_stages(instance.children, maker, instance.owner, instance.num_groups)
        loans = plan.LOANS
    made: list[Child] = []
    received, least, most_borrowed = [0] * instance.num_groups, 0, 0
    for group, stages in enumerate(made_plan.stages):
        held = {b.uid for b in made_plan.broadcasts if b.source != group}
        received[group] += len(held)
        ever = set(held)
        for number, stage in enumerate(stages):
            assert set(stage.forget) <= held
            held -= set(stage.forget)
            for transfer in stage.borrow:
                assert transfer.source == instance.owner[transfer.uid]
                assert transfer.target == group != transfer.source
                assert transfer.uid not in held, "borrowed again while it is held"
                held.add(transfer.uid)
                ever.add(transfer.uid)
                received[group] += 1
            coming = stages[number + 1].borrow if number + 1 < len(stages) else ()
            assert stage.children, "a stage in which nothing is made"
            lacked = [
                u for c in stage.children for u in c.parents if instance.owner.get(u) != group
            ]
            next_children = stages[number + 1].children if number + 1 < len(stages) else ()
            lacked += [
                u for c in next_children for u in c.parents if instance.owner.get(u) != group
            ]
            assert len(held) + len(coming) <= max(loans, len(set(lacked)))
            most_borrowed = max(most_borrowed, len(held) + len(coming))
            for child in stage.children:
                assert maker[child.uid] == group
                for uid in child.parents:
                    owned = instance.owner.get(uid) == group
                    assert owned or uid == instance.anchor or uid in held
            made.extend(stage.children)
        # Everything that was borrowed was needed.
        mine = [child for child in instance.children if maker[child.uid] == group]
        needed = {uid for child in mine for uid in child.parents}
        needed = {u for u in needed if instance.owner.get(u, group) != group}
        assert ever - {b.uid for b in made_plan.broadcasts} <= needed <= ever
        least += len(needed)
    assert sorted(child.uid for child in made) == [child.uid for child in instance.children]
    assert all(child in instance.children for child in made)
    # The count is what was seen.
    counted = traffic(made_plan, [Transfer(99, 1, 0)])
    received[0] += 1
    assert counted == Traffic(
        received=tuple(received), least=least + 1, most_borrowed=most_borrowed
    )
    assert counted.moved_bytes(1000) == 4000 * sum(received)
    assert counted.least_bytes(1000) == 4000 * (least + 1)


@given(instances(), st.data())
def test_what_each_group_sends_is_what_the_others_ask_it_for_in_their_order(
    instance: Instance, data: st.DataObject
) -> None:
    groups = range(instance.num_groups)
    maker = {child.uid: data.draw(st.sampled_from(groups)) for child in instance.children}
    made = plan_stages(instance.children, maker, instance.owner, instance.num_groups)
    parts = made.parts()
    assert [part.stages for part in parts] == list(made.stages)
    for source, part in enumerate(parts):
        for target in groups:
            asked = [t for stage in parts[target].stages for t in stage.borrow]
            asked = [t for t in asked if t.source == source]
            assert [t for t in part.sends if t.target == target] == asked


def test_the_first_children_of_a_group_wait_for_nobody() -> None:
    """While they are made and scored, the parents of the next ones are on their way."""
    owner = {0: 0, 1: 0, 2: 1, 3: 1}
    children = [Child(uid=10, parents=(0, 2)), Child(uid=11, parents=(1, 0))]
    made = plan_stages(children, {10: 0, 11: 0}, owner, 2)
    first, second = made.stages[0]
    assert (first.borrow, first.children) == ((), (children[1],))
    assert (second.borrow, second.children) == ((Transfer(2, 1, 0),), (children[0],))
    assert made.stages[1] == ()


@pytest.mark.parametrize(
    ("mu", "num_groups", "offspring", "rho", "limit"),
    [
        (64, 2, 256, [2], 1.0),
        (64, 2, 512, [2], 1.01),
        (64, 4, 256, [2], 1.0),
        (64, 16, 256, [2], 1.0),
        (64, 8, 256, [2, 3, 4], 1.05),
        (64, 16, 256, [4], 1.01),
    ],
)
@pytest.mark.parametrize("skew", [0.0, 0.7])
def test_the_bytes_moved_are_near_the_minimum_of_the_placement(
    mu: int, num_groups: int, offspring: int, rho: list[int], limit: float, skew: float
) -> None:
    stream = np.random.default_rng(1)
    owner = {uid: uid % num_groups for uid in range(mu)}
    chances = np.arange(1.0, mu + 1) ** -skew
    children = []
    for n in range(offspring):
        some = stream.choice(mu, stream.choice(rho), replace=False, p=chances / chances.sum())
        children.append(Child(uid=mu + n, parents=tuple(map(int, some))))
    parents_of = {child.uid: child.parents for child in children}
    maker = place_children(parents_of, owner, [1.0] * num_groups)
    lacked = {(maker[c.uid], u) for c in children for u in c.parents if owner[u] != maker[c.uid]}
    counted = traffic(plan_stages(children, maker, owner, num_groups), [])
    assert counted.least == len(lacked)
    assert counted.moved_bytes(1000) <= limit * 4000 * len(lacked)
    assert counted.most_borrowed <= plan.LOANS


def test_a_group_that_has_no_room_lets_go_of_loans_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "LOANS", 2)
    owner = {uid: uid for uid in range(6)}
    children = [Child(uid=10 + n, parents=(n, n + 1)) for n in range(1, 5)]
    made = plan_stages(children, dict.fromkeys([11, 12, 13, 14], 0), owner, 6)
    assert [len(stage.children) for stage in made.stages[0]] == [1, 1, 1, 1]
    assert sum(len(stage.borrow) for stage in made.stages[0]) == 5  # each parent once
    assert traffic(made, []).most_borrowed == 3  # those of two children in a row


def test_a_parent_that_the_next_child_needs_too_is_borrowed_once() -> None:
    owner = {0: 0, 1: 0, 2: 1}
    children = [
        Child(uid=10, parents=(0, 1)),
        Child(uid=11, parents=(2,)),
        Child(uid=12, parents=(1, 0)),
    ]
    made = plan_stages(children, dict.fromkeys([10, 11, 12], 1), owner, 2)
    assert sorted(t.uid for stage in made.stages[1] for t in stage.borrow) == [0, 1]


def test_what_nearly_everyone_wants_is_broadcast_by_its_owner() -> None:
    owner = {uid: uid for uid in range(8)}
    children = [Child(uid=10 + n, parents=(n, 0)) for n in range(1, 8)]
    maker = {10 + n: n for n in range(1, 8)}
    made = plan_stages(children, maker, owner, 8)
    assert made.broadcasts == (Broadcast(0, 0),)
    assert not any(stage.borrow for stages in made.stages for stage in stages)
    # One group does without: the others get it one by one.
    made = plan_stages(children[:-1], maker, owner, 8)
    assert made.broadcasts == ()
    asked = [stage.borrow for stages in made.stages for stage in stages]
    assert asked == [(Transfer(0, 0, target),) for target in range(1, 7)]


def test_no_more_is_broadcast_than_half_of_the_loans() -> None:
    owner = {uid: uid for uid in range(16)}
    children = [
        Child(uid=100 + 16 * a + b, parents=(a, b)) for a in range(16) for b in range(16) if a != b
    ]
    made = plan_stages(children, {c.uid: c.parents[0] for c in children}, owner, 16)
    assert len(made.broadcasts) == plan.LOANS // 2
    counted = traffic(made, [])
    assert counted.received == (15,) * 16
    assert counted.most_borrowed <= plan.LOANS


@pytest.mark.parametrize(
    ("targets", "groups", "cheaper"),
    [
        *((1, 1, False), (1, 2, False), (3, 4, False), (4, 5, True), (6, 8, False), (7, 8, True)),
        *((59, 64, False), (61, 64, True), (999, 1000, True)),
    ],
)
def test_a_broadcast_is_chosen_by_count(targets: int, groups: int, cheaper: bool) -> None:
    assert is_broadcast_cheaper(targets, groups) is cheaper


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
