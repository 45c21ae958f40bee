"""Streams are keyed by every field, and their numbers are those of earlier versions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esgd_hpc import rng
from esgd_hpc.rng import Purpose

WHOLE = st.integers(0, 2**63 - 1)
FIELDS = st.tuples(WHOLE, WHOLE, WHOLE, WHOLE, st.sampled_from(Purpose), WHOLE)


@given(FIELDS, FIELDS, st.sets(st.integers(0, 5)))
def test_keys_differ_where_any_field_does(
    first: tuple[int, int, int, int, Purpose, int],
    second: tuple[int, int, int, int, Purpose, int],
    taken: set[int],
) -> None:
    mixed = [second[i] if i in taken else first[i] for i in range(6)]
    keys_equal = rng.key(*first) == rng.key(*mixed)  # type: ignore[arg-type]
    assert keys_equal == (mixed == list(first))
    assert 0 <= rng.key(*first) < 2**128


@given(st.permutations(range(6)))
def test_fields_do_not_stand_for_each_other(order: list[int]) -> None:
    fields = [1, 2, 3, 4, 5, 6]
    swapped = [fields[i] for i in order]
    one, other = (rng.key(a, b, c, d, Purpose(e), f) for a, b, c, d, e, f in (fields, swapped))
    assert (one == other) == (swapped == fields)


def test_purposes_have_the_numbers_they_always_had() -> None:
    assert {purpose.name: purpose.value for purpose in Purpose} == {
        "INITIAL_WEIGHTS": 1,
        "PERTURBATION": 2,
        "HYPERPARAMETERS": 3,
        "SAMPLE_ORDER": 4,
        "DROPOUT": 5,
        "BACK_OFF": 6,
        "PARENTS": 7,
        "MUTATION": 8,
        "SURVIVORS": 9,
        "RECALIBRATION": 10,
        "SKETCH": 11,
    }


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ((1, 0, 0, 0, Purpose.INITIAL_WEIGHTS), 157199901792843615549374550697276082007),
        ((1, 3, 2, 17, Purpose.MUTATION), 128307664245878966487579784169627878650),
        ((2**63 - 1, 1, 1, 2**40, Purpose.DROPOUT, 5), 299395588071691754267676150283736202927),
    ],
)
def test_keys_are_those_of_earlier_versions(
    fields: tuple[int, int, int, int, Purpose], key: int
) -> None:
    assert rng.key(*fields) == key


def test_streams_are_those_of_earlier_versions() -> None:
    def stream() -> np.random.Generator:
        return rng.stream(1, 3, 2, 17, Purpose.MUTATION)

    uniform = [0.5744113805529197, 0.5797079886942385, 0.10339177050649384]
    assert stream().random(3).tolist() == uniform
    normal = stream().standard_normal(4, dtype=np.float32)
    assert normal.view(np.uint32).tolist() == [3213295332, 3214836088, 3213445939, 1056977177]
    assert stream().permutation(8).tolist() == [3, 2, 7, 0, 4, 1, 5, 6]
    assert stream().integers(1000, size=4).tolist() == [925, 574, 671, 579]


@given(FIELDS)
def test_a_stream_is_the_generator_of_its_key(
    fields: tuple[int, int, int, int, Purpose, int],
) -> None:
    numbers = rng.stream(*fields).integers(2**63, size=4).tolist()
    assert numbers == rng.generator(rng.key(*fields)).integers(2**63, size=4).tolist()
    assert numbers != rng.generator(rng.key(*fields) ^ 1).integers(2**63, size=4).tolist()


def test_streams_are_independent_of_what_was_drawn_before() -> None:
    used = rng.stream(1, 1, 1, 1, Purpose.PARENTS)
    first = used.random()
    used.random(100)
    assert rng.stream(1, 1, 1, 1, Purpose.PARENTS).random() == first != used.random()


@given(FIELDS)
def test_torch_seeds_are_in_range_and_keyed_by_the_lane(
    fields: tuple[int, int, int, int, Purpose, int],
) -> None:
    seed = rng.torch_seed(*fields)
    assert 0 <= seed < 2**63
    assert seed == rng.torch_seed(*fields)
    others = {rng.torch_seed(*fields[:5], lane) for lane in range(20)}
    assert len(others) == 20
