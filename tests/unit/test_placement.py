"""Where children are made and who owns whom: against exhaustive searches of small cases."""

import itertools
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esgd_hpc.evolution.placement import (
    WORTH_A_MOVE,
    Costs,
    choose_makers,
    most_owned,
    place_children,
    place_population,
)
from esgd_hpc.population import Draw, Individual

Parents = dict[int, tuple[int, ...]]


def draw_parents(stream: np.random.Generator, mu: int, children: int, rho: list[int]) -> Parents:
    """Return parents among 0 to mu - 1, by the uids of the children."""
    return {
        mu + n: tuple(map(int, stream.choice(mu, stream.choice(rho), replace=False)))
        for n in range(children)
    }


def vectors(needs: Parents, at: Mapping[int, int], owner: Mapping[int, int]) -> int:
    """Return how many vectors come to groups, each once."""
    return len({(at[c], u) for c, some in needs.items() for u in some if owner[u] != at[c]})


def end(at: Mapping[int, int], seconds: Mapping[int, float], paces: Sequence[float]) -> float:
    done = [0.0] * len(paces)
    for uid, group in at.items():
        done[group] += seconds[uid] * paces[group]
    return max(done)


# Children -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("children", [6, 7, 8])
@pytest.mark.parametrize("rho", [[2], [1, 2, 3]])
def test_children_cost_few_vectors_against_an_exhaustive_search(
    children: int, rho: list[int]
) -> None:
    stream = np.random.default_rng(children)
    share = math.ceil(children / 3)
    placements = np.array(
        [
            p
            for p in itertools.product(range(3), repeat=children)
            if max(Counter(p).values()) <= share
        ]
    )
    for _ in range(25):
        owner = {uid: int(stream.integers(3)) for uid in range(6)}
        needs = draw_parents(stream, 6, children, rho)
        counts = np.zeros(len(placements), dtype=int)
        for group in range(3):
            for parent in range(6):
                if owner[parent] != group:
                    users = [n for n, some in enumerate(needs.values()) if parent in some]
                    counts += (placements[:, users] == group).any(axis=1)
        at = place_children(needs, owner, [1.0] * 3)
        assert max(Counter(at.values()).values()) <= share
        assert vectors(needs, at, owner) <= 1.2 * counts.min()


def test_a_slow_group_makes_fewer_children() -> None:
    needs = draw_parents(np.random.default_rng(1), 8, 70, [2])
    at = place_children(needs, {uid: uid % 4 for uid in range(8)}, [1.0, 1.0, 2.0, 1.0])
    made = Counter(at.values())
    assert made[2] == 10
    assert max(made.values()) == 20


@given(st.integers(0, 30), st.integers(1, 7), st.integers(0, 99))
def test_no_group_makes_more_than_its_share(children: int, groups: int, seed: int) -> None:
    needs = draw_parents(np.random.default_rng(seed), 5, children, [1, 2])
    at = place_children(needs, {uid: uid % groups for uid in range(4)}, [1.0] * groups)
    assert at.keys() == needs.keys()
    assert max(Counter(at.values()).values(), default=0) <= math.ceil(children / groups)


def test_children_of_parents_that_are_together_need_no_vectors() -> None:
    stream = np.random.default_rng(2)
    owner = {uid: int(group) for uid, group in enumerate(stream.permutation(64) % 16)}
    pairs = [
        pair for pair in itertools.combinations(range(64), 2) if owner[pair[0]] == owner[pair[1]]
    ]
    needs = {64 + n: pairs[place] for n, place in enumerate(stream.permutation(len(pairs)))}
    at = place_children(needs, owner, [1.0] * 16)
    assert vectors(needs, at, owner) == 0
    assert set(Counter(at.values()).values()) == {6}


@pytest.mark.parametrize("groups", [64, 256])
def test_few_vectors_come_where_all_children_have_the_same_few_parents(groups: int) -> None:
    needs = draw_parents(np.random.default_rng(groups), 8, 16 * groups, [2])
    at = place_children(needs, {uid: uid for uid in range(8)}, [1.0] * groups)
    assert max(Counter(at.values()).values()) == 16
    # No group can make anything with less than two vectors at hand.
    assert vectors(needs, at, {uid: uid for uid in range(8)}) <= 1.3 * (2 * groups - 8)


@pytest.mark.parametrize(("skew", "vectors_a_child"), [(0.0, 0.88), (0.7, 0.73), (1.2, 0.42)])
def test_vectors_are_as_few_as_a_long_search_by_moves_and_swaps_found(
    skew: float, vectors_a_child: float
) -> None:
    stream, mu, groups = np.random.default_rng(1), 256, 64
    chances = np.arange(1.0, mu + 1) ** -skew
    chances /= chances.sum()
    needs = {
        mu + n: tuple(map(int, stream.choice(mu, 2, replace=False, p=chances))) for n in range(1024)
    }
    owner = {uid: uid % groups for uid in range(mu)}
    at = place_children(needs, owner, [1.0] * groups)
    assert vectors(needs, at, owner) <= vectors_a_child * len(needs)


@pytest.mark.parametrize("wanted", [8, 2048])
def test_hundreds_of_groups_are_planned_within_seconds(wanted: int) -> None:
    stream, mu, groups = np.random.default_rng(1), 2048, 512
    owner = {uid: uid % groups for uid in range(mu)}
    children = {mu + n: some for n, some in enumerate(stream.integers(wanted, size=(8192, 2)))}
    needs = {uid: tuple({int(a), int(b)}) for uid, (a, b) in children.items()}
    chosen = {uid: needs[uid] for uid in stream.choice(list(needs), mu, replace=False).tolist()}
    seconds = {uid: float(stream.uniform(1, 4)) for uid in chosen}
    paces = [1.0] * groups
    started = time.process_time()
    place_children(needs, owner, paces)
    at = place_population(chosen, seconds, owner, paces)
    choose_makers(chosen, at, owner, groups)
    assert time.process_time() - started < 8.0  # a tenth of a second for each would be usual


# The population -----------------------------------------------------------------------------------


def drawn_population(
    stream: np.random.Generator, mu: int, groups: int, survivors: int
) -> tuple[Parents, dict[int, float], dict[int, int]]:
    """Return needs, seconds from 1 to 4, and the owners of the population before."""
    owner = {uid: uid % groups for uid in range(mu)}
    needs = draw_parents(stream, mu, mu - survivors, [2])
    needs |= {int(uid): (int(uid),) for uid in stream.choice(mu, survivors, replace=False)}
    return needs, {uid: float(stream.uniform(1, 4)) for uid in needs}, owner


@pytest.mark.parametrize(("mu", "groups"), [(6, 2), (7, 3), (8, 3)])
def test_the_last_group_ends_soon_against_an_exhaustive_search(mu: int, groups: int) -> None:
    stream = np.random.default_rng(mu)
    placements = np.array(list(itertools.product(range(groups), repeat=mu)))
    for number in range(20):
        needs, seconds, owner = drawn_population(stream, mu, groups, number % (mu + 1))
        costs = np.array([seconds[uid] for uid in needs])
        done = np.stack([(placements == g) @ costs for g in range(groups)])
        at = place_population(needs, seconds, owner, [1.0] * groups)
        assert end(at, seconds, [1.0] * groups) <= 4 / 3 * done.max(axis=0).min()


@pytest.mark.parametrize(("mu", "groups"), [(64, 16), (61, 8), (200, 7)])
@pytest.mark.parametrize("slow", [1.0, 2.0])
def test_the_last_group_ends_soon_against_a_lower_bound(mu: int, groups: int, slow: float) -> None:
    paces = [slow] + [1.0] * (groups - 1)
    needs, seconds, owner = drawn_population(np.random.default_rng(mu), mu, groups, mu // 2)
    at = place_population(needs, seconds, owner, paces)
    bound = sum(seconds.values()) / sum(1 / pace for pace in paces)
    assert end(at, seconds, paces) <= 4 / 3 * bound
    assert max(Counter(at.values()).values()) <= most_owned(mu, groups)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_survivors_stay_where_children_can_fill_what_is_left(seed: int) -> None:
    mu, groups = 256, 64
    needs, seconds, owner = drawn_population(np.random.default_rng(seed), mu, groups, mu // 4)
    at = place_population(needs, seconds, owner, [1.0] * groups)
    assert all(at[uid] == owner[uid] for uid in needs if uid < mu)
    assert end(at, seconds, [1.0] * groups) <= 1.15 * sum(seconds.values()) / groups
    # At home with one of its parents a child needs one vector; without regard to that, two.
    assert vectors(needs, at, owner) <= 1.25 * (mu - mu // 4)


@given(st.integers(2, 24), st.integers(1, 6), st.data())
def test_survivors_of_equal_cost_stay_and_everyone_has_a_home(
    mu: int, groups: int, data: st.DataObject
) -> None:
    stream = np.random.default_rng(data.draw(st.integers(0, 99)))
    needs, seconds, owner = drawn_population(stream, mu, groups, data.draw(st.integers(0, mu)))
    at = place_population(needs, dict.fromkeys(needs, 2.5), owner, [1.0] * groups)
    assert at.keys() == needs.keys()
    assert all(at[uid] == owner[uid] for uid in needs if uid < mu)
    assert max(Counter(at.values()).values()) <= math.ceil(mu / groups)
    # Where costs differ, no group owns too many.
    paces = data.draw(st.lists(st.floats(0.3, 3), min_size=groups, max_size=groups))
    at = place_population(needs, seconds, owner, paces)
    assert at.keys() == needs.keys()
    assert max(Counter(at.values()).values()) <= most_owned(mu, groups)


def test_survivors_move_only_where_it_is_worth_it() -> None:
    needs = {uid: (uid,) for uid in range(8)}
    owner = {uid: uid % 2 for uid in needs}
    nearly = {uid: 1.0 + 0.18 * (uid % 2) for uid in needs}
    assert place_population(needs, nearly, owner, [1.0, 1.0]) == owner
    long = {uid: 1.0 + (uid % 2) for uid in needs}
    at = place_population(needs, long, owner, [1.0, 1.0])
    assert end(at, long, [1.0, 1.0]) <= (1 + WORTH_A_MOVE) * 6.0
    assert Counter(at[uid] != owner[uid] for uid in needs)[True] <= 4


def test_chosen_children_come_to_live_near_their_parents() -> None:
    needs = {0: (0,), 1: (1,), 2: (2,), 9: (2, 1), 10: (2,), 11: (0,)}
    at = place_population(needs, dict.fromkeys(needs, 1.0), {0: 0, 1: 1, 2: 2}, [1.0] * 3)
    assert at == {0: 0, 1: 1, 2: 2, 9: 1, 10: 2, 11: 0}


@given(st.integers(2, 12), st.integers(1, 5), st.integers(0, 99))
def test_a_chosen_child_is_made_where_that_moves_less(mu: int, groups: int, seed: int) -> None:
    stream = np.random.default_rng(seed)
    owner = {uid: uid % groups for uid in range(mu)}
    needs = draw_parents(stream, mu, mu, [2])
    home = {uid: int(stream.integers(groups)) for uid in needs}
    maker = choose_makers(needs, home, owner, groups)
    moved = sum(maker[uid] != home[uid] for uid in needs)
    assert vectors(needs, maker, owner) + moved <= vectors(needs, home, owner)
    for group in range(groups):
        for_others = sum(g == group != home[uid] for uid, g in maker.items())
        assert for_others == 0 or Counter(maker.values())[group] <= most_owned(mu, groups)


@pytest.mark.parametrize("groups", [1, 2, 5, 8])
def test_the_order_in_which_owners_are_named_does_not_matter(groups: int) -> None:
    stream = np.random.default_rng(groups)
    needs, seconds, owner = drawn_population(stream, 16, groups, 4)
    again = {int(uid): owner[int(uid)] for uid in stream.permutation(list(owner))}
    paces = [1.0, *[2.0] * (groups - 1)]
    home = place_population(needs, seconds, owner, paces)
    assert home == place_population(needs, seconds, again, paces)
    assert place_children(needs, owner, paces) == place_children(needs, again, paces)
    assert choose_makers(needs, home, owner, groups) == choose_makers(needs, home, again, groups)


def test_a_child_whose_parents_are_together_is_made_there_and_moves_once() -> None:
    owner = {0: 0, 1: 0, 2: 1}
    assert choose_makers({9: (0, 1)}, {9: 1}, owner, 2) == {9: 0}
    # Not if its home borrows both anyway, or one of them.
    assert choose_makers({9: (0, 2)}, {9: 1}, owner, 2) == {9: 1}
    assert choose_makers({8: (0, 1), 9: (0, 1)}, {8: 1, 9: 1}, owner, 2) == {8: 1, 9: 1}


# Costs --------------------------------------------------------------------------------------------


def draw(batch_size: int, optimizer: str = "sgd") -> Draw:
    return msgspec.convert(
        {"optimizer": optimizer, "learning_rate": 0.1, "batch_size": batch_size}, Draw
    )


def trained(seconds: Sequence[float], draws: Sequence[Draw], failure: str = "") -> list[Individual]:
    return [
        Individual(uid=n, fitness=1.0, draw=d, seconds=s, failure=failure)
        for n, (s, d) in enumerate(zip(seconds, draws, strict=True))
    ]


DRAWS = [draw(b, o) for b in (16, 32, 64, 128) for o in ("sgd", "adam")]
SECONDS = [2.0 + (160 if d.optimizer == "adam" else 128) / d.batch_size for d in DRAWS]


def test_costs_follow_batch_size_and_optimizer() -> None:
    costs = Costs(trained(SECONDS, DRAWS), {n: n % 2 for n in range(8)}, 2)
    for one, seconds in zip(DRAWS, SECONDS, strict=True):
        assert costs.seconds(one) == pytest.approx(seconds)
    assert costs.seconds(draw(48)) == pytest.approx(2 + 128 / 48)
    # Nothing is longer or shorter than what was seen.
    assert costs.seconds(draw(1)) == max(SECONDS)
    assert costs.seconds(draw(4096)) == min(SECONDS)


def test_a_slow_group_is_known_by_its_pace() -> None:
    by = {n: n // 2 for n in range(8)}
    draws = [DRAWS[(3 * n) % 8] for n in range(8)]
    seconds = [SECONDS[(3 * n) % 8] * (2.0 if by[n] == 2 else 1.0) for n in range(8)]
    paces = Costs(trained(seconds, draws), by, 4).paces
    assert paces[2] > 1.4 * max(paces[:2] + paces[3:])


def test_small_differences_of_pace_are_none() -> None:
    seconds = [10.0, 10.5, 9.6, 10.1]
    costs = Costs(trained(seconds, [draw(32)] * 4), {n: n for n in range(4)}, 4)
    assert costs.paces == [1.0] * 4
    assert costs.seconds(draw(32)) == pytest.approx(np.mean(seconds))


@pytest.mark.parametrize(
    ("records", "by"),
    [
        ([], {}),
        (trained([0.1, 0.3], [draw(16), draw(32)]), {0: 0, 1: 1}),  # too short to tell
        (trained([9.0, 3.0], [draw(16), draw(32)]), {}),  # before this process
        (trained([9.0, 3.0], [draw(16), draw(32)], failure="none"), {0: 0, 1: 1}),
    ],
)
def test_without_telling_times_all_cost_the_same(
    records: list[Individual], by: dict[int, int]
) -> None:
    costs = Costs(records, by, 2)
    assert costs.paces == [1.0, 1.0]
    assert costs.seconds(draw(16)) == costs.seconds(draw(128)) == 1.0
