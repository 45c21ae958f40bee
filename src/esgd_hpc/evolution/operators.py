"""The operators of the evolution step (section 3.3): selection, recombination, mutation, m-elitism.

Pure functions of arrays and random streams. Lower fitness is better, +inf is a failure.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from esgd_hpc import rng
from esgd_hpc.layout import Layout
from esgd_hpc.population import Weights

Selection = Literal["inverse", "window", "rank", "softmax"]
Floats = npt.NDArray[np.float64]

NOISE_CHUNK = 1 << 20
"""Values of noise made at once: bounds the memory of a mutation."""


def selection_scores(fitness: Floats, selection: Selection, smoothing: float = 1.0) -> Floats:
    """Return a score >= 0 for each individual; its probability of selection is proportional to it.

    inverse: 1/f, where a perfect 0 takes all.  window: f_worst - f + (f_worst - f_best) / n.
    rank: n for the best to 1 for the worst, equals share the mean.  softmax: exp(f_best - f).
    n counts those that did not fail; failures have 0. All in relation to the best and raised to the
    power `smoothing`. Raises ValueError where `inverse` meets a negative fitness.
    """
    finite = np.isfinite(fitness)
    scores = np.zeros_like(fitness)
    if not finite.any():
        return scores
    values = fitness[finite]
    best, worst = values.min(), values.max()
    if selection == "inverse":
        if best < 0.0:
            raise ValueError(
                f'evolution.selection = "inverse" needs a fitness of at least 0, got {best};'
                " choose window, rank or softmax"
            )
        raw = (values == 0.0).astype(float) if best == 0.0 else best / values
    elif selection == "window":
        spread = worst - best
        raw = np.ones_like(values) if spread == 0.0 else (worst - values) / spread + 1 / len(values)
    elif selection == "rank":
        ranked = np.sort(values)
        better = np.searchsorted(ranked, values)
        equal = np.searchsorted(ranked, values, side="right") - better
        raw = len(values) - better - (equal - 1) / 2
    else:
        raw = np.exp(best - values)
    scores[finite] = (raw / raw.max()) ** smoothing  # the best has 1: no power overflows
    return scores


class Roulette:
    """Draws distinct places with probability proportional to their scores, >= 0, shape [n]."""

    def __init__(self, scores: Floats) -> None:
        self._places = np.flatnonzero(scores)
        self._scores = scores[self._places]
        self._ends = np.cumsum(self._scores)

    def draw(self, count: int, stream: np.random.Generator) -> list[int]:
        """Draw places one after another, without replacement.

        Fewer than `count` where fewer have a positive score.
        """
        chosen: list[int] = []
        for _ in range(min(count, len(self._places))):
            chosen.append(self._slot(stream.random(), sorted(chosen)))
        return [int(self._places[slot]) for slot in chosen]

    def _slot(self, at: float, gone: list[int]) -> int:
        """Return the slot at this part, in [0, 1), of the wheel without those that are gone."""
        total, missing = self._ends[-1], self._scores[gone].sum()
        if 2.0 * missing > total:  # little of the sum is left: too rough, so add up anew
            scores = self._scores.copy()
            scores[gone] = 0.0
            ends = np.cumsum(scores)
            at *= ends[-1]
        else:
            ends = self._ends
            at *= total - missing
            for slot in gone:
                if at >= ends[slot] - self._scores[slot]:
                    at += self._scores[slot]
        found = int(np.searchsorted(ends, at, side="right"))
        # Rounding at an edge must not lead to a slot that is gone, nor behind the last.
        if found >= len(ends) or found in gone:
            left = [slot for slot in range(len(ends)) if slot not in gone]
            found = max([slot for slot in left if slot <= found], default=left[0])
        return found


def recombine(
    parents: Sequence[Weights], uids: Sequence[int], layout: Layout, out: Weights
) -> None:
    """Write the intermediate recombination of parents to `out`, shape [P] (Eq. 12 without noise).

    Parameters and floating buffers are the mean, added up in uid order so that the order of the
    draw cannot change it; integer buffers are those of the first parent.
    """
    end = layout.num_floats
    in_order = [parent for _, parent in sorted(zip(uids, parents, strict=True), key=lambda p: p[0])]
    np.copyto(out[:end], in_order[0][:end])
    for parent in in_order[1:]:
        out[:end] += parent[:end]
    if len(in_order) > 1:
        out[:end] /= np.float32(len(in_order))
    out[end:] = parents[0][end:]


def mutate(weights: Weights, noise_seed: int, sigma: float, layout: Layout) -> None:
    """Add N(0, sigma^2) to every parameter in place (Eq. 12); buffers are left as they are."""
    if sigma == 0.0:
        return
    stream = rng.generator(noise_seed)
    for start in range(0, layout.num_parameters, NOISE_CHUNK):
        stop = min(start + NOISE_CHUNK, layout.num_parameters)
        noise = stream.standard_normal(stop - start, dtype=np.float32)
        noise *= np.float32(sigma)
        weights[start:stop] += noise


def select_survivors(
    fitness: Floats,
    uids: Sequence[int],
    num_elite: int,
    num_survivors: int,
    stream: np.random.Generator,
) -> tuple[list[int], list[int]]:
    """Return the places of the m-elite, best first, and of the random rest (section 3.3, item 4).

    `fitness` and `uids` cover parents and offspring. Ties break by uid. The rest is drawn
    uniformly from the others, from those that failed only when there are too few that did not.
    """
    order = np.lexsort((np.asarray(uids), fitness))
    elite = [int(place) for place in order[:num_elite]]
    others = order[num_elite:]
    healthy = [int(place) for place in others if np.isfinite(fitness[place])]
    failed = [int(place) for place in others if not np.isfinite(fitness[place])]
    missing = num_survivors - num_elite
    rest = [healthy[i] for i in stream.permutation(len(healthy))[:missing]]
    rest += [failed[i] for i in stream.permutation(len(failed))[: missing - len(rest)]]
    return elite, rest


def elite_average(fitness: Floats, num_elite: int) -> float:
    """Return the m-elitist average fitness J_m (Definition 1)."""
    return float(np.sort(fitness)[:num_elite].mean())
