"""How the phone error rate comes from what a network says of frames: Viterbi, then edits.

The most likely path through hidden Markov models: the states of a phone follow each other, each
for one frame or more, and phones follow each other as a bigram has it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Levenshtein

BIGRAM_SCALE = 3.0
"""Weight of the bigram against the frames, whose neighbours say much the same. Chosen on validation
data of festvox-ru, where a price for each phone beside it gained nothing."""

Array = npt.NDArray[Any]


def phone_error_rate(
    log_likelihoods: Sequence[npt.NDArray[np.float32]],
    phone_of_state: Array,
    phone_bigram: Array,
    references: Sequence[Array],
) -> float:
    """Return edits (substitutions, insertions, deletions) per phone spoken, 0 or more.

    For each utterance there are log-likelihoods [T, S] and phones spoken [n]. See `best_phones` for
    the others.
    """
    found = best_phones(log_likelihoods, phone_of_state, phone_bigram)
    edits = sum(
        Levenshtein.distance(phones, reference.tolist())
        for phones, reference in zip(found, references, strict=True)
    )
    return edits / max(1, sum(map(len, references)))


def best_phones(
    log_likelihoods: Sequence[npt.NDArray[np.float32]],
    phone_of_state: Array,
    phone_bigram: Array,
    *,
    bigram_scale: float = BIGRAM_SCALE,
) -> list[list[int]]:
    """Return the phones of the most likely path for each utterance.

    `log_likelihoods` are [T, S] each, `phone_of_state` is [S], where the states of each phone are
    in the order in which they follow each other, and `phone_bigram` [P + 1, P] holds natural-log
    probabilities of a phone (column) after another (row; the last row: as the first). An
    utterance that is shorter than any phone has none.

    All utterances go through their frames together; those that have ended drop out.
    """
    order = np.argsort([-len(frames) for frames in log_likelihoods], kind="stable")
    lengths = np.array([len(log_likelihoods[u]) for u in order], dtype=np.int64)
    states = np.argsort(phone_of_state, kind="stable")
    phones = np.asarray(phone_of_state)[states]
    first = np.searchsorted(phones, np.arange(phone_bigram.shape[1]))
    last = np.searchsorted(phones, np.arange(phone_bigram.shape[1]), side="right") - 1
    # From each phone (column) into another (row), so that the best is sought along the memory.
    entering = (bigram_scale * phone_bigram).T.astype(np.float32, order="C")

    scores = np.full((len(order), len(phones)), -np.inf, dtype=np.float32)
    scores[:, first] = entering[:, -1]
    moves: list[tuple[Array, Array]] = []
    for t in range(lengths.max(initial=0)):
        active = int(np.searchsorted(-lengths, -t))
        if t > 0:
            staying = scores[:active]
            by_way = staying[:, None, last] + entering[:, :-1]
            before = by_way.argmax(axis=2)
            coming = np.full_like(staying, -np.inf)
            coming[:, 1:] = staying[:, :-1]
            coming[:, first] = np.take_along_axis(by_way, before[:, :, None], axis=2)[:, :, 0]
            moves.append((coming > staying, before.astype(np.int32)))
            scores[:active] = np.maximum(staying, coming)
        now = np.stack([log_likelihoods[u][t] for u in order[:active]])
        scores[:active] += now[:, states]

    found: list[list[int]] = [[] for _ in order]
    for row, u in enumerate(order):
        if lengths[row] and np.isfinite(scores[row, last]).any():
            own = [(comes[row], before[row]) for comes, before in moves[: lengths[row] - 1]]
            found[u] = _path(int(scores[row, last].argmax()), own, phones, first, last)
    return found


def _path(
    phone: int, moves: Sequence[tuple[Array, Array]], phones: Array, first: Array, last: Array
) -> list[int]:
    """Return the phones of the path that ends in the last state of `phone`.

    For each frame but the first, `moves` has whether a state came from another one [S], and which
    phone each phone came from if it began there [P].
    """
    path = [phone]
    state = last[phone]
    for comes, before in reversed(moves):
        if not comes[state]:
            continue
        if state == first[phones[state]]:
            path.append(int(before[phones[state]]))
            state = last[path[-1]]
        else:
            state -= 1
    return path[::-1]
