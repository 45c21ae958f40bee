"""The operators do what section 3.3 says: probabilities, means, noise, elites, each to its bound.

Frequencies are held against exact probabilities by chi-square tests with fixed seeds.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from esgd_hpc import rng
from esgd_hpc.evolution import operators
from esgd_hpc.evolution.operators import Selection
from esgd_hpc.layout import Entry, Kind, Layout
from esgd_hpc.population import Weights, finite_fitness

SELECTIONS: tuple[Selection, ...] = ("inverse", "window", "rank", "softmax")
SMOOTHINGS = (0.5, 1.0, 2.0)
INF = math.inf
UNLIKELY = 1e-4
"""A test of frequencies fails below this probability of what was seen."""


def floats(values: Iterable[float]) -> operators.Floats:
    return np.array(list(values), dtype=np.float64)


def scores_by_definition(
    fitness: Sequence[float], selection: Selection, smoothing: float
) -> list[float]:
    """Return the scores by the formulas of the paper and the docstring, one by one."""
    finite = [f for f in fitness if math.isfinite(f)]
    worst, best, mu = max(finite), min(finite), len(finite)

    def score(f: float) -> float:
        if not math.isfinite(f):
            return 0.0
        if selection == "inverse":
            return 1 / f
        if selection == "window":
            return worst - f + (worst - best) / mu
        if selection == "softmax":
            return math.exp(-f)
        places = [mu - place for place, g in enumerate(sorted(finite)) if g == f]
        return sum(places) / len(places)

    return [score(f) ** smoothing if math.isfinite(f) else 0.0 for f in fitness]


def sequence_probabilities(scores: Sequence[float], count: int) -> dict[tuple[int, ...], float]:
    """Return the probability of each ordered draw of `count` places without replacement."""
    found = {}
    for places in itertools.permutations(range(len(scores)), count):
        left, probability = sum(scores), 1.0
        for place in places:
            probability *= scores[place] / left
            left -= scores[place]
        if probability > 0.0:
            found[places] = probability
    return found


def assert_frequencies(seen: Mapping[Any, int], expected: Mapping[Any, float]) -> None:
    """Fail where what was seen has a probability below `UNLIKELY` under the expectation."""
    assert set(seen) <= set(expected)
    total = sum(seen.values())
    few = [key for key, p in expected.items() if p * total < 5]
    cells = [([key], p) for key, p in expected.items() if key not in few]
    if few:
        cells.append((few, sum(expected[key] for key in few)))
    counts = [sum(seen.get(key, 0) for key in keys) for keys, _ in cells]
    means = [p * total for _, p in cells]
    if len(cells) > 1:
        assert stats.chisquare(counts, means).pvalue > UNLIKELY


def layout_of(**sizes: int) -> Layout:
    """Return a layout of one vector each of the kinds parameter, buffer and integer."""
    entries, offset = [], 0
    kinds: tuple[Kind, ...] = ("parameter", "buffer", "integer")
    for kind in kinds:
        size = sizes.get(kind, 0)
        dtype = "int32" if kind == "integer" else "float32"
        entries.append(
            Entry(name=kind, offset=offset, size=size, shape=(size,), kind=kind, dtype=dtype)
        )
        offset += size
    return Layout(entries=tuple(entries))


def bits(weights: Weights) -> npt.NDArray[np.uint32]:
    return weights.view(np.uint32)


# Selection ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("selection", SELECTIONS)
def test_parents_are_drawn_in_proportion_to_their_scores_without_replacement(
    selection: Selection, smoothing: float, count: int
) -> None:
    fitness = [0.9, 0.3, INF, 1.4, 0.9, 2.5]
    exact = scores_by_definition(fitness, selection, smoothing)
    scores = operators.selection_scores(floats(fitness), selection, smoothing)
    stream = rng.stream(11, count, 0, 0, rng.Purpose.PARENTS)
    wheel = operators.Roulette(scores)
    drawn = [tuple(wheel.draw(count, stream)) for _ in range(4000)]
    assert_frequencies(Counter(drawn), sequence_probabilities(exact, count))
    first = {(i,): s / sum(exact) for i, s in enumerate(exact) if s > 0.0}
    assert_frequencies(Counter((places[0],) for places in drawn), first)
    chosen = Counter(place for places in drawn for place in places)
    for place, n in chosen.items():
        inclusion = sum(
            p for places, p in sequence_probabilities(exact, count).items() if place in places
        )
        assert stats.binomtest(n, len(drawn), min(1.0, inclusion)).pvalue > UNLIKELY / 10


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("selection", SELECTIONS)
def test_scores_are_those_of_the_definition_up_to_a_factor(
    selection: Selection, smoothing: float
) -> None:
    fitness = [0.25, 3.0, 0.5, INF, 0.5, 7.0, 1.0]
    exact = floats(scores_by_definition(fitness, selection, smoothing))
    scores = operators.selection_scores(floats(fitness), selection, smoothing)
    np.testing.assert_allclose(scores / scores.sum(), exact / exact.sum(), rtol=1e-12)


ANY_SCORES = st.lists(st.just(0.0) | st.floats(0.0, 1e100), min_size=1, max_size=12)


@given(ANY_SCORES, st.integers(0, 14), st.integers(0, 2**32))
def test_roulette_draws_distinct_places_with_a_score_as_many_as_there_are(
    scores: list[float], count: int, seed: int
) -> None:
    before = floats(scores)
    drawn = operators.Roulette(before).draw(count, rng.generator(seed))
    assert len(drawn) == min(count, sum(s > 0.0 for s in scores)) == len(set(drawn))
    assert all(scores[place] > 0.0 for place in drawn)
    assert all(type(place) is int for place in drawn)
    assert before.tolist() == scores, "the scores of the caller are left as they are"
    assert drawn == operators.Roulette(floats(scores)).draw(count, rng.generator(seed))


@given(
    st.lists(st.just(0.0) | st.floats(0.01, 100.0), min_size=1, max_size=12),
    st.integers(1, 5),
    st.integers(0, 2**32),
)
def test_one_wheel_for_all_children_draws_what_a_new_one_for_each_draw_would(
    scores: list[float], count: int, seed: int
) -> None:
    remaining, stream = floats(scores), rng.generator(seed)
    expected = []
    for _ in range(min(count, sum(s > 0.0 for s in scores))):
        ends = np.cumsum(remaining)
        expected.append(int(np.searchsorted(ends, stream.random() * ends[-1], side="right")))
        remaining[expected[-1]] = 0.0
    assert operators.Roulette(floats(scores)).draw(count, rng.generator(seed)) == expected


def test_after_a_score_that_outweighs_all_the_others_are_drawn_in_proportion() -> None:
    wheel = operators.Roulette(floats([1e-20, 1.0, 2e-20, 1e-20]))
    stream = rng.stream(3, 1, 0, 0, rng.Purpose.PARENTS)
    seconds = Counter((wheel.draw(2, stream)[1],) for _ in range(4000))
    assert_frequencies(seconds, {(0,): 0.25, (2,): 0.5, (3,): 0.25})


def test_roulette_at_the_end_of_the_wheel_stays_on_a_place_with_a_score() -> None:
    class Last(np.random.Generator):
        def random(self, *_: object) -> float:  # type: ignore[override]
            return 1.0  # what rounding can make of the largest number below 1

    wheel = operators.Roulette(floats([0.0, 2.0, 1.0, 0.0]))
    assert wheel.draw(2, Last(np.random.Philox())) == [2, 1]


@given(st.integers(1, 8), st.integers(0, 2**32))
def test_as_many_parents_as_individuals_are_all_of_them(mu: int, seed: int) -> None:
    scores = operators.selection_scores(floats(range(1, mu + 1)), "inverse")
    assert sorted(operators.Roulette(scores).draw(mu, rng.generator(seed))) == list(range(mu))


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_single_individual_is_its_own_parent(selection: Selection) -> None:
    scores = operators.selection_scores(floats([0.7]), selection)
    assert scores[0] > 0.0
    assert operators.Roulette(scores).draw(2, rng.generator(1)) == [0]


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.5, 1.0, 2.0])
def test_failed_individuals_are_never_selected(selection: Selection, smoothing: float) -> None:
    fitness = floats(finite_fitness(f) for f in [INF, 1.0, math.nan, 2.0, -INF])
    assert fitness.tolist() == [INF, 1.0, INF, 2.0, INF]
    scores = operators.selection_scores(fitness, selection, smoothing)
    assert (scores > 0.0).tolist() == [False, True, False, True, False]
    for seed in range(50):
        assert sorted(operators.Roulette(scores).draw(3, rng.generator(seed))) == [1, 3]


@pytest.mark.parametrize("selection", SELECTIONS)
def test_where_all_failed_nobody_has_a_score(selection: Selection) -> None:
    scores = operators.selection_scores(floats([INF, INF]), selection)
    assert scores.tolist() == [0.0, 0.0]
    assert operators.Roulette(scores).draw(2, rng.generator(1)) == []


FITNESSES = st.lists(
    st.sampled_from([0.0, 0.25, 1.0, 3.0, INF]) | st.floats(1e-6, 1e6), min_size=1, max_size=12
)
SELECTION = st.sampled_from(SELECTIONS)
SMOOTHING = st.sampled_from([0.0, 0.5, 1.0, 2.0])


@given(FITNESSES, SELECTION, SMOOTHING)
def test_a_better_fitness_never_has_a_lower_score_and_equals_have_equal_scores(
    fitness: list[float], selection: Selection, smoothing: float
) -> None:
    scores = operators.selection_scores(floats(fitness), selection, smoothing)
    assert np.isfinite(scores).all()
    assert (scores >= 0.0).all()
    slack = 1e-14 * scores.max()  # powers and exponentials are right to the last bit or two
    for (f, s), (g, t) in itertools.combinations(zip(fitness, scores, strict=True), 2):
        assert s >= t - slack if f <= g else t >= s - slack
        if f == g:
            assert abs(s - t) <= slack
    assert scores[int(np.argmin(fitness))] > 0.0 or min(fitness) == INF


@given(FITNESSES, SMOOTHING, st.floats(1e-6, 1e6))
def test_inverse_does_not_depend_on_the_unit_of_fitness(
    fitness: list[float], smoothing: float, unit: float
) -> None:
    scaled = floats(f * unit for f in fitness)
    np.testing.assert_allclose(
        operators.selection_scores(scaled, "inverse", smoothing),
        operators.selection_scores(floats(fitness), "inverse", smoothing),
        rtol=1e-9,
    )


WHOLE_FITNESSES = st.lists(
    st.integers(-1000, 1000).map(float) | st.just(INF), min_size=1, max_size=12
)


@given(WHOLE_FITNESSES, SMOOTHING, st.integers(-1000, 1000), st.sampled_from([0.5, 1.0, 4.0]))
def test_window_depends_on_neither_unit_nor_zero_of_fitness(
    fitness: list[float], smoothing: float, shift: int, unit: float
) -> None:
    np.testing.assert_allclose(
        operators.selection_scores(floats(f * unit + shift for f in fitness), "window", smoothing),
        operators.selection_scores(floats(fitness), "window", smoothing),
        rtol=1e-12,
    )


@given(WHOLE_FITNESSES, SMOOTHING, st.integers(-1000, 1000))
def test_softmax_does_not_depend_on_the_zero_of_fitness(
    fitness: list[float], smoothing: float, shift: int
) -> None:
    np.testing.assert_allclose(
        operators.selection_scores(floats(f + shift for f in fitness), "softmax", smoothing),
        operators.selection_scores(floats(fitness), "softmax", smoothing),
        rtol=1e-12,
    )


@given(WHOLE_FITNESSES, SMOOTHING)
def test_rank_depends_on_the_order_of_fitness_alone(fitness: list[float], smoothing: float) -> None:
    np.testing.assert_array_equal(
        operators.selection_scores(floats(f**3 - 7.0 for f in fitness), "rank", smoothing),
        operators.selection_scores(floats(fitness), "rank", smoothing),
    )


def test_inverse_refuses_a_negative_fitness_and_names_the_others() -> None:
    with pytest.raises(ValueError, match=r"needs a fitness of at least 0, got -1\.0") as caught:
        operators.selection_scores(floats([2.0, -1.0]), "inverse")
    assert "window, rank or softmax" in str(caught.value)


def test_a_perfect_fitness_takes_all_under_inverse() -> None:
    scores = operators.selection_scores(floats([0.0, 1e-300, 1.0, 0.0]), "inverse")
    assert scores.tolist() == [1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("smoothing", [50.0, 400.0, 1e6])
def test_strong_smoothing_leaves_finite_scores_with_the_best_on_top(
    selection: Selection, smoothing: float
) -> None:
    scores = operators.selection_scores(floats(range(1, 101)), selection, smoothing)
    assert np.isfinite(scores).all()
    assert scores[0] == scores.max() > 0.0


# Recombination ------------------------------------------------------------------------------------

LAYOUT = layout_of(parameter=40, buffer=9, integer=6)


def random_parents(count: int, seed: int) -> list[Weights]:
    """Return vectors with floats of many sizes and any bits in the integer places."""
    stream = np.random.default_rng(seed)
    parents = []
    for _ in range(count):
        values = stream.standard_normal(LAYOUT.size) * 10.0 ** stream.integers(-8, 8, LAYOUT.size)
        parent = values.astype(np.float32)
        bits(parent)[LAYOUT.num_floats :] = stream.integers(
            0, 2**32, LAYOUT.size - LAYOUT.num_floats, dtype=np.uint32
        )
        parents.append(parent)
    return parents


def recombined(parents: Sequence[Weights], uids: Sequence[int]) -> Weights:
    out = np.full(LAYOUT.size, np.nan, dtype=np.float32)
    before = [parent.tobytes() for parent in parents]
    operators.recombine(parents, uids, LAYOUT, out)
    assert [parent.tobytes() for parent in parents] == before, "parents are left as they are"
    return out


@given(st.integers(1, 5), st.integers(0, 2**32))
def test_the_mean_of_the_parents_is_right_to_rounding(rho: int, seed: int) -> None:
    parents = random_parents(rho, seed)
    end = LAYOUT.num_floats
    out = recombined(parents, range(rho))[:end]
    stacked = np.stack([p[:end] for p in parents]).astype(np.float64)
    bound = rho * 2.0**-24 * np.abs(stacked).sum(axis=0) / rho + 2.0**-149
    assert (np.abs(out - stacked.mean(axis=0)) <= bound * 1.01).all()


@given(st.integers(2, 5), st.integers(0, 2**32))
def test_the_order_of_the_draw_does_not_change_a_bit_of_the_mean(rho: int, seed: int) -> None:
    parents = random_parents(rho, seed)
    uids = [7, 3, 99, 12, 50][:rho]
    expected = bits(recombined(parents, uids))[: LAYOUT.num_floats]
    for order in itertools.islice(itertools.permutations(range(rho)), 0, None, max(1, rho - 2)):
        other = bits(recombined([parents[i] for i in order], [uids[i] for i in order]))
        np.testing.assert_array_equal(other[: LAYOUT.num_floats], expected)
        # The integer buffers are those of the parent that was drawn first.
        np.testing.assert_array_equal(
            other[LAYOUT.num_floats :], bits(parents[order[0]])[LAYOUT.num_floats :]
        )


@given(st.sampled_from([1, 2, 4]), st.integers(0, 2**32))
def test_identical_parents_have_themselves_as_child(rho: int, seed: int) -> None:
    parent = random_parents(1, seed)[0]
    assert recombined([parent] * rho, range(rho)).tobytes() == parent.tobytes()


@given(st.sampled_from([3, 5]), st.integers(0, 2**32))
def test_identical_parents_have_themselves_as_child_but_for_the_last_bit(
    rho: int, seed: int
) -> None:
    parent = random_parents(1, seed)[0]
    end = LAYOUT.num_floats
    out = recombined([parent] * rho, range(rho))
    np.testing.assert_array_almost_equal_nulp(out[:end], parent[:end], nulp=1)
    assert out[end:].tobytes() == parent[end:].tobytes()


@pytest.mark.parametrize(
    "pattern", [0x7F800001, 0xFFFFFFFF, 0x7FC00000, 0xFF800000, 0x80000000, 0x00000001]
)
def test_integer_places_keep_bits_that_would_be_no_numbers(pattern: int) -> None:
    first, second = random_parents(2, 5)
    bits(first)[LAYOUT.num_floats :] = pattern
    out = recombined([first, second], [9, 4])
    assert (bits(out)[LAYOUT.num_floats :] == pattern).all()


def test_floating_buffers_are_averaged_like_parameters() -> None:
    first, second = (np.zeros(LAYOUT.size, dtype=np.float32) for _ in range(2))
    first[40:49], second[40:49] = 1.0, 4.0
    assert recombined([first, second], [1, 2])[40:49].tolist() == [2.5] * 9


# Mutation -----------------------------------------------------------------------------------------


def test_noise_is_normal_with_mean_0_and_the_variance_asked_for() -> None:
    count, sigma = 200_000, 0.03
    layout = layout_of(parameter=count)
    weights = np.zeros(count, dtype=np.float32)
    operators.mutate(weights, rng.key(3, 1, 1, 17, rng.Purpose.MUTATION), sigma, layout)
    noise = weights.astype(np.float64) / sigma
    assert stats.norm.sf(abs(noise.mean()) * math.sqrt(count)) * 2 > UNLIKELY
    squares = stats.chi2(count).cdf(float((noise**2).sum()))
    assert UNLIKELY < squares < 1 - UNLIKELY
    assert stats.kstest(noise, "norm").pvalue > UNLIKELY
    lag = float((noise[:-1] * noise[1:]).mean()) * math.sqrt(count - 1)
    assert stats.norm.sf(abs(lag)) * 2 > UNLIKELY


@given(st.integers(0, 2**128 - 1), st.floats(1e-6, 10.0))
def test_the_same_seed_adds_the_same_noise_and_another_seed_another(
    seed: int, sigma: float
) -> None:
    first, again, other = (random_parents(1, 8)[0] for _ in range(3))
    operators.mutate(first, seed, sigma, LAYOUT)
    operators.mutate(again, seed, sigma, LAYOUT)
    operators.mutate(other, seed ^ 1, sigma, LAYOUT)
    assert first.tobytes() == again.tobytes()
    assert first[:40].tobytes() != other[:40].tobytes()


def test_buffers_are_not_mutated_and_every_parameter_is() -> None:
    before = random_parents(1, 2)[0]
    before[:40] = 1.0
    after = before.copy()
    operators.mutate(after, 5, 0.1, LAYOUT)
    assert after[40:].tobytes() == before[40:].tobytes()
    assert (after[:40] != before[:40]).all()
    assert after.dtype == np.float32


def test_no_mutation_strength_is_no_mutation() -> None:
    before = random_parents(1, 2)[0]
    before[0] = -0.0
    after = before.copy()
    operators.mutate(after, 5, 0.0, LAYOUT)
    assert after.tobytes() == before.tobytes()


@pytest.mark.parametrize("chunk", [1, 2, 7, 39, 40, 41])
def test_noise_does_not_depend_on_how_much_is_made_at_once(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = np.zeros(LAYOUT.size, dtype=np.float32)
    operators.mutate(whole, 77, 1.0, LAYOUT)
    pieces = np.zeros(LAYOUT.size, dtype=np.float32)
    monkeypatch.setattr(operators, "NOISE_CHUNK", chunk)
    operators.mutate(pieces, 77, 1.0, LAYOUT)
    assert pieces.tobytes() == whole.tobytes()


def test_noise_is_scaled_by_its_strength() -> None:
    one, four = (np.zeros(LAYOUT.size, dtype=np.float32) for _ in range(2))
    operators.mutate(one, 77, 1.0, LAYOUT)
    operators.mutate(four, 77, 4.0, LAYOUT)
    np.testing.assert_array_equal(four, 4.0 * one)


# Survivors ----------------------------------------------------------------------------------------

CANDIDATES = st.lists(
    st.sampled_from([0.0, 0.5, 0.5, 1.0, INF, INF]) | st.floats(0.0, 1e6), min_size=1, max_size=16
)


def survivors(
    fitness: Sequence[float], uids: Sequence[int], m: int, mu: int, seed: int = 1
) -> tuple[list[int], list[int]]:
    return operators.select_survivors(floats(fitness), uids, m, mu, rng.generator(seed))


@given(CANDIDATES, st.data())
def test_elite_and_rest_are_disjoint_and_as_many_as_asked_for(
    fitness: list[float], data: st.DataObject
) -> None:
    mu = data.draw(st.integers(1, len(fitness)))
    m = data.draw(st.integers(1, mu))
    uids = data.draw(st.permutations(range(len(fitness))))
    elite, rest = survivors(fitness, uids, m, mu, data.draw(st.integers(0, 2**32)))
    assert len(elite) == m
    assert len({*elite, *rest}) == len(elite) + len(rest) == mu
    # The elite is the m best, best first, ties by uid.
    by_hand = sorted(range(len(fitness)), key=lambda i: (fitness[i], uids[i]))
    assert elite == by_hand[:m]
    # Who failed is drawn only where there are too few who did not.
    healthy = sum(f < INF for f in fitness)
    assert sum(fitness[i] < INF for i in elite + rest) == min(mu, healthy)


@given(CANDIDATES, st.data())
def test_the_order_of_the_candidates_does_not_change_who_is_elite(
    fitness: list[float], data: st.DataObject
) -> None:
    m = data.draw(st.integers(1, len(fitness)))
    uids = list(range(100, 100 + len(fitness)))
    order = data.draw(st.permutations(range(len(fitness))))
    elite, _ = survivors(fitness, uids, m, m)
    shuffled = [uids[i] for i in order]
    other, _ = survivors([fitness[i] for i in order], shuffled, m, m)
    assert [shuffled[place] for place in other] == [uids[place] for place in elite]


def test_ties_break_by_uid() -> None:
    elite, _ = survivors([1.0, 1.0, 1.0, 1.0], [40, 10, 30, 20], 3, 3)
    assert elite == [1, 3, 2]


def test_without_a_rest_the_survivors_are_the_elite() -> None:
    assert survivors([3.0, 1.0, 2.0], [0, 1, 2], 2, 2) == ([1, 2], [])


@pytest.mark.parametrize("num_rest", [1, 2, 3])
def test_the_rest_is_drawn_uniformly_from_the_healthy_others(num_rest: int) -> None:
    fitness = [0.1, 5.0, 0.9, INF, 2.0, 0.2, 1.0, 3.0]
    others = [1, 2, 4, 6, 7]
    drawn: Counter[tuple[int, ...]] = Counter()
    for k in range(3000):
        stream = rng.stream(1, k, 1, 0, rng.Purpose.SURVIVORS)
        elite, rest = operators.select_survivors(floats(fitness), range(8), 2, 2 + num_rest, stream)
        assert elite == [0, 5]
        drawn[tuple(sorted(rest))] += 1
    subsets = [*itertools.combinations(others, num_rest)]
    assert_frequencies(drawn, dict.fromkeys(subsets, 1 / len(subsets)))


def test_failed_ones_fill_up_uniformly_where_too_few_are_healthy() -> None:
    fitness = [INF, 0.5, INF, 0.7, INF]
    drawn: Counter[int] = Counter()
    for seed in range(1500):
        elite, rest = survivors(fitness, range(5), 1, 3, seed)
        assert (elite, rest[0]) == ([1], 3)
        drawn[rest[1]] += 1
    assert_frequencies(drawn, dict.fromkeys([0, 2, 4], 1 / 3))


@given(CANDIDATES, CANDIDATES, st.data())
def test_selection_never_raises_the_elitist_average(
    parents: list[float], offspring: list[float], data: st.DataObject
) -> None:
    """The evolution part of Theorem 1."""
    mu = len(parents)
    m = data.draw(st.integers(1, mu))
    both = parents + offspring
    elite, rest = survivors(both, range(len(both)), m, mu, data.draw(st.integers(0, 2**32)))
    after = operators.elite_average(floats(both[i] for i in elite + rest), m)
    assert after <= operators.elite_average(floats(parents), m)


# Elitist average ----------------------------------------------------------------------------------


def test_the_elitist_average_is_the_mean_of_the_m_best() -> None:
    fitness = floats([4.0, INF, 1.0, 3.0, 1.0])
    assert operators.elite_average(fitness, 1) == 1.0
    assert operators.elite_average(fitness, 3) == pytest.approx(5 / 3, rel=1e-15)
    assert operators.elite_average(fitness, 5) == INF
    assert fitness.tolist() == [4.0, INF, 1.0, 3.0, 1.0]


@given(
    st.lists(
        st.tuples(
            st.floats(-1e6, 1e6), st.sampled_from([0.0, 0.0, 1e-16, 1.0, INF]) | st.floats(0, 1e6)
        ),
        min_size=1,
        max_size=300,
    ),
    st.data(),
)
def test_no_worse_one_by_one_is_no_worse_on_average_in_floating_point(
    pairs: list[tuple[float, float]], data: st.DataObject
) -> None:
    m = data.draw(st.integers(1, len(pairs)))
    low, high = floats(f for f, _ in pairs), floats(f + more for f, more in pairs)
    shuffled = high[data.draw(st.permutations(range(len(pairs))))] if len(pairs) < 20 else high
    assert operators.elite_average(low, m) <= operators.elite_average(shuffled, m)
