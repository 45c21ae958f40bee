"""How far the individuals of a population are from one another, by a sketch of their weights.

A sketch is a random projection to a few places, the same for all individuals, that keeps Euclidean
distances: the weights, each with a random sign, are added up block by block (the count sketch of
Charikar, Chen and Farach-Colton, "Finding frequent items in data streams", 2002). The square of a
distance has a relative standard error of about sqrt(2 / PLACES), 4 %.
"""

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from esgd_hpc import rng
from esgd_hpc.layout import Layout
from esgd_hpc.population import Weights

Sketch = npt.NDArray[np.float64]
"""Shape [PLACES]."""

PLACES = 1024
MOST = 1024
"""Individuals whose distances are measured; of a larger population these stand for all."""
_BLOCKS = 1024
"""Blocks of PLACES values that are added up at once: bounds the memory."""


def sketch(weights: Weights, layout: Layout) -> Sketch:
    """Return the sketch of the parameters of one individual, its flat vector of shape [P]."""
    stream = rng.stream(0, 0, 0, 0, rng.Purpose.SKETCH)
    total = np.zeros(PLACES, dtype=np.float64)
    parameters = weights[: layout.num_parameters]
    for start in range(0, len(parameters), _BLOCKS * PLACES):
        part = parameters[start : start + _BLOCKS * PLACES]
        rows = -(-len(part) // PLACES)
        blocks = np.zeros((rows, PLACES), dtype=np.float32)
        blocks.reshape(-1)[: len(part)] = part
        bits = np.frombuffer(stream.bytes(rows * PLACES // 8), dtype=np.uint8)
        signs = np.unpackbits(bits).reshape(rows, PLACES).view(np.int8)
        signs *= 2
        signs -= 1
        blocks *= signs
        total += blocks.sum(axis=0, dtype=np.float64)
    return total


def sampled(uids: Collection[int]) -> list[int]:
    """Return the uids of those whose distances are measured: all, or `MOST` evenly spaced ones."""
    ordered = sorted(uids)
    if len(ordered) <= MOST:
        return ordered
    return [ordered[place * len(ordered) // MOST] for place in range(MOST)]


def distances(sketches: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the distance of each pair of sketches, shape [n, PLACES], as a matrix [n, n].

    NaN and infinity in a sketch make its distances NaN.
    """
    if not np.isfinite(sketches).all():
        whole = np.isfinite(sketches).all(axis=1)
        result = np.full((len(sketches), len(sketches)), np.nan)
        result[np.ix_(whole, whole)] = distances(sketches[whole])
        return result
    centered = sketches - sketches.mean(axis=0)
    products = centered @ centered.T
    squares = np.diag(products)
    found: npt.NDArray[np.float64] = np.sqrt(
        np.maximum(squares[:, None] + squares[None, :] - 2.0 * products, 0.0)
    )
    return found


def mean_distances(
    sketches: Mapping[int, Sketch], groups: Mapping[str, list[int]]
) -> dict[str, float]:
    """Return the mean distance in the whole population, under "", and in each group of uids.

    Over all pairs of those that have a sketch; NaN for fewer than two.
    """
    uids = sorted(sketches)
    matrix = distances(np.array([sketches[uid] for uid in uids]))
    place = {uid: number for number, uid in enumerate(uids)}
    members = {"": uids, **groups}
    return {
        name: _mean_of_pairs(matrix, [place[uid] for uid in some if uid in place])
        for name, some in members.items()
    }


def _mean_of_pairs(matrix: npt.NDArray[np.float64], places: list[int]) -> float:
    n = len(places)
    if n < 2:
        return float("nan")
    part = matrix[np.ix_(places, places)]
    return float(part[np.triu_indices(n, 1)].mean())
