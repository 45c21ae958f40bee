"""Distances by a sketch are close to the true ones, and see parameters alone."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esgd_hpc.diversity import MOST, PLACES, Sketch, mean_distances, sampled, sketch
from esgd_hpc.layout import Entry, Layout


def layout(parameters: int, buffers: int = 0) -> Layout:
    entries = []
    offset = 0
    for name, size, kind in (("weight", parameters, "parameter"), ("mean", buffers, "buffer")):
        entries.append(
            Entry(
                name=name,
                offset=offset,
                size=size,
                shape=(size,),
                kind=kind,  # type: ignore[arg-type]
                dtype="float32",
            )
        )
        offset += size
    return Layout(entries=tuple(entries))


def vectors(count: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)


def true_mean(points: np.ndarray) -> float:
    pairs = [
        np.linalg.norm(a.astype(float) - b) for n, a in enumerate(points) for b in points[n + 1 :]
    ]
    return float(np.mean(pairs))


def mean_distance(sketches: list[Sketch]) -> float:
    return mean_distances(dict(enumerate(sketches)), {})[""]


def test_of_a_large_population_some_that_are_evenly_spaced_stand_for_all() -> None:
    assert sampled({5: 0, 3: 1, 9: 0}) == [3, 5, 9]
    some = sampled(range(7, 7 + 3 * MOST))
    assert some == list(range(7, 7 + 3 * MOST, 3))
    found = mean_distances({1: np.zeros(4), 3: np.array([3.0, 4.0, 0.0, 0.0])}, {"sgd": [1, 2, 3]})
    assert found == {"": pytest.approx(5.0), "sgd": pytest.approx(5.0)}


@pytest.mark.parametrize("size", [100_000, 3_000_001])
def test_the_mean_distance_is_close_to_the_true_one(size: int) -> None:
    points = vectors(4, size)
    points[2] *= 5.0
    found = mean_distance([sketch(p, layout(size)) for p in points])
    # One distance is within about 2 % (one standard error); these six share sketches.
    assert found == pytest.approx(true_mean(points), rel=0.1)


@given(st.integers(1, PLACES), st.integers(0, 100))
def test_vectors_that_fit_into_a_sketch_keep_their_distance_to_rounding(
    size: int, seed: int
) -> None:
    points = vectors(3, size, seed)
    found = mean_distance([sketch(p, layout(size)) for p in points])
    assert found == pytest.approx(true_mean(points), rel=1e-5)


def test_equal_individuals_have_no_distance_and_one_has_none_to_others() -> None:
    point = sketch(vectors(1, 5000)[0], layout(5000))
    assert mean_distance([point, point]) == 0.0
    assert math.isnan(mean_distance([point]))


def test_buffers_do_not_count() -> None:
    point = vectors(1, 3000)[0]
    other = point.copy()
    other[2000:] += 100.0
    shape = layout(2000, 1000)
    assert np.array_equal(sketch(point, shape), sketch(other, shape))


def test_groups_are_measured_by_themselves() -> None:
    points = vectors(4, 20_000)
    sketches = {uid: sketch(p, layout(20_000)) for uid, p in zip((9, 3, 5, 7), points, strict=True)}
    found = mean_distances(sketches, {"sgd": [3, 5], "adam": [7], "none": []})
    assert found["sgd"] == pytest.approx(mean_distance([sketches[3], sketches[5]]))
    assert math.isnan(found["adam"])
    assert math.isnan(found["none"])
    assert found[""] == pytest.approx(mean_distance([sketches[u] for u in (3, 5, 7, 9)]))


def test_weights_that_are_not_finite_make_a_distance_that_is_not() -> None:
    points = vectors(2, 5000)
    points[0, 17] = np.inf
    with np.errstate(invalid="ignore"):
        found = mean_distance([sketch(p, layout(5000)) for p in points])
    assert not math.isfinite(found)
