"""How far the individuals of a population are from one another, by a sketch of their weights.

A sketch is a random projection to a few places, the same for all individuals, that keeps Euclidean
distances: the weights, each with a random sign, are added up block by block (the count sketch of
Charikar, Chen and Farach-Colton, "Finding frequent items in data streams", 2002). The square of a
distance has a relative standard error of about sqrt(2 / PLACES), 4 %.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from esgd_hpc import rng
from esgd_hpc.layout import Layout
from esgd_hpc.population import Weights

Sketch = npt.NDArray[np.float64]
"""Shape [PLACES]."""

PLACES = 1024
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


def mean_distance(sketches: npt.NDArray[np.float64]) -> float:
    """Return the mean distance over all pairs of sketches, shape [n, PLACES]; NaN for n < 2.

    NaN and infinity in a sketch make it so too.
    """
    n = len(sketches)
    if n < 2:
        return float("nan")
    distances = [np.linalg.norm(sketches[i + 1 :] - sketches[i], axis=1) for i in range(n - 1)]
    return float(np.concatenate(distances).mean())


def mean_distances(
    sketches: Mapping[int, Sketch], groups: Mapping[str, list[int]]
) -> dict[str, float]:
    """Return the mean distance in the whole population, under "", and in each group of uids."""
    everyone = {"": sorted(sketches), **groups}
    return {
        name: mean_distance(np.array([sketches[uid] for uid in uids]))
        for name, uids in everyone.items()
    }
