"""The distance of two flat vectors does not depend on how they come in pieces."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esgd_hpc.distance import Piece, parameter_distance, tensor_distances
from esgd_hpc.layout import Entry, Kind, Layout
from esgd_hpc.population import Weights

KINDS: tuple[Kind, ...] = ("parameter", "buffer", "integer")


def make_layout(sizes: list[tuple[Kind, int]]) -> Layout:
    """Return tensors of these kinds and sizes, one after another."""
    entries = []
    offset = 0
    for place, (kind, size) in enumerate(sizes):
        dtype = "int32" if kind == "integer" else "float32"
        entry = Entry(
            name=f"t{place}", offset=offset, size=size, shape=(size,), kind=kind, dtype=dtype
        )
        entries.append(entry)
        offset += size
    return Layout(entries=tuple(entries))


def cut(vector: Weights, length: int) -> Iterator[Piece]:
    for start in range(0, len(vector), length):
        yield vector[start : start + length]


def vectors(size: int, seed: int) -> list[Weights]:
    random = np.random.default_rng(seed)
    return [random.normal(size=size).astype(np.float32) for _ in range(2)]


layouts = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 9)), max_size=7).map(
    make_layout
)


@given(layouts, st.integers(1, 12), st.integers(0, 2**32))
def test_distances_are_those_of_whole_tensors(layout: Layout, length: int, seed: int) -> None:
    a, b = vectors(layout.size, seed)
    tensors = tensor_distances(layout, cut(a, length), cut(b, length))
    assert [tensor.entry for tensor in tensors] == list(layout.entries)
    for tensor in tensors:
        inside = slice(tensor.entry.offset, tensor.entry.offset + tensor.entry.size)
        x, y = a[inside].astype(np.float64), b[inside].astype(np.float64)
        assert tensor.equal == (tensor.entry.size == 0)
        if tensor.entry.kind == "integer":
            assert math.isnan(tensor.absolute)
            continue
        assert tensor.absolute == pytest.approx(np.linalg.norm(x - y))
        if tensor.entry.size:
            expected = np.linalg.norm(x - y) / np.linalg.norm(x)
            assert tensor.relative == pytest.approx(expected)
    parameters = np.concatenate(
        [np.zeros(0, dtype=np.int64)]
        + [np.arange(e.offset, e.offset + e.size) for e in layout.entries if e.kind == "parameter"]
    )
    difference = a[parameters].astype(np.float64) - b[parameters]
    assert parameter_distance(tensors).absolute == pytest.approx(np.linalg.norm(difference))


@given(layouts, st.integers(1, 12), st.integers(0, 2**32))
def test_equal_bits_are_at_no_distance(layout: Layout, length: int, seed: int) -> None:
    a, _ = vectors(layout.size, seed)
    tensors = tensor_distances(layout, cut(a, length), cut(a.copy(), length))
    assert all(tensor.equal for tensor in tensors)
    distance = parameter_distance(tensors)
    assert (distance.absolute, distance.relative, distance.equal) == (0.0, 0.0, True)


def test_weights_that_are_not_finite_are_at_no_known_distance() -> None:
    layout = make_layout([("parameter", 2), ("parameter", 1)])
    a = np.array([np.inf, 1.0, 3.0], dtype=np.float32)
    first, second = tensor_distances(layout, [a], [a + np.float32(1.0)])
    assert math.isnan(first.absolute)
    assert (second.absolute, second.relative) == (1.0, 1.0 / 3.0)
    assert math.isnan(parameter_distance([first, second]).absolute)
    same = tensor_distances(layout, [a], [a.copy()])[0]
    assert same.equal
    assert math.isnan(same.absolute)


def test_a_distance_from_nothing_is_relative_to_nothing() -> None:
    layout = make_layout([("parameter", 2)])
    zero, one = np.zeros(2, dtype=np.float32), np.ones(2, dtype=np.float32)
    assert math.isnan(tensor_distances(layout, [zero], [one])[0].relative)


def test_both_are_read_to_their_ends() -> None:
    """There the reader compares the checksums."""
    layout = make_layout([("parameter", 3)])
    ended = []

    def pieces(name: str) -> Iterator[Piece]:
        yield from cut(np.zeros(3, dtype=np.float32), 2)
        ended.append(name)

    tensor_distances(layout, pieces("a"), pieces("b"))
    assert ended == ["a", "b"]
    with pytest.raises(ValueError, match="shorter"):
        tensor_distances(layout, cut(np.zeros(3, dtype=np.float32), 2), [])
