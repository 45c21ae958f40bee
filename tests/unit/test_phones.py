"""Phone error rates: the decoder against all paths one by one, edits against counts by hand."""

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from esgd_hpc.tasks.phones import best_phones, phone_error_rate

Array = npt.NDArray[Any]


def all_paths(num_frames: int, phone_of_state: Array) -> Iterator[tuple[list[int], list[int]]]:
    """Yield states and phones of every path of whole phones through the frames."""
    states = {p: np.flatnonzero(phone_of_state == p).tolist() for p in set(phone_of_state.tolist())}
    if num_frames == 0:
        yield [], []
    for phone, own in states.items():
        for durations in itertools.product(range(1, num_frames + 1), repeat=len(own)):
            begin = [s for s, d in zip(own, durations, strict=True) for _ in range(d)]
            if len(begin) <= num_frames:
                for path, phones in all_paths(num_frames - len(begin), phone_of_state):
                    yield begin + path, [phone, *phones]


def score(frames: Array, bigram: Array, path: Sequence[int], phones: Sequence[int]) -> float:
    before = [len(bigram) - 1, *phones[:-1]]
    language = sum(bigram[pair] for pair in zip(before, phones, strict=True))
    return float(language + sum(frames[t, s] for t, s in enumerate(path)))


@pytest.mark.parametrize("phone_of_state", [[0, 0, 0, 1, 1, 1], [1, 0, 1, 0, 2], [0, 1, 2]])
def test_the_decoder_finds_the_best_of_all_paths(phone_of_state: list[int]) -> None:
    owners = np.array(phone_of_state)
    num_phones = owners.max() + 1
    draw = np.random.default_rng(len(owners))
    for scale in (0.5, 1.0, 3.0):
        frames = [
            (2 * draw.standard_normal((n, len(owners)))).astype(np.float32) for n in (7, 3, 6, 1, 5)
        ]
        weights = draw.random((num_phones + 1, num_phones))
        bigram = np.log(weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
        found = best_phones(frames, owners, bigram, bigram_scale=scale)
        for own, phones in zip(frames, found, strict=True):
            scored = [
                (score(own, scale * bigram, *way), way[1]) for way in all_paths(len(own), owners)
            ]
            assert phones == (max(scored)[1] if scored else [])


def test_edits_are_those_counted_by_hand() -> None:
    one_state_each = np.arange(4)
    bigram = np.full((5, 4), np.log(0.25), dtype=np.float32)

    def frames(*spoken: int) -> npt.NDArray[np.float32]:
        """Return two frames a phone, so clear that the bigram has no say."""
        states = np.repeat(spoken, 2)
        return np.where(np.arange(4) == states[:, None], 0.0, -1000.0).astype(np.float32)

    said = [np.array([0, 1, 2, 3]), np.array([0, 1, 2]), np.array([3, 2, 1])]
    heard = [frames(0, 1, 2, 3), frames(0, 2), frames(3, 0, 1, 0, 1)]
    # Nothing; one deletion; one substitution and two insertions: four edits of ten phones.
    assert phone_error_rate(heard, one_state_each, bigram, said) == pytest.approx(0.4)
    assert phone_error_rate(heard[:1], one_state_each, bigram, said[:1]) == 0.0
    assert phone_error_rate([], one_state_each, bigram, []) == 0.0


def test_the_bigram_decides_what_the_frames_leave_open() -> None:
    """Phones 0 and 1 sound alike; 1 follows 2, and 0 comes first."""
    bigram = np.log([[0.1, 0.1, 0.8], [0.1, 0.1, 0.8], [0.1, 0.8, 0.1], [0.8, 0.1, 0.1]])
    frames = np.array([[0, 0, -50], [-50, -50, 0], [0, 0, -50]], dtype=np.float32)
    assert best_phones([frames], np.arange(3), bigram.astype(np.float32)) == [[0, 2, 1]]


def test_an_utterance_too_short_for_a_phone_is_all_deletions() -> None:
    phone_of_state = np.array([0, 0, 0])
    bigram = np.zeros((2, 1), dtype=np.float32)
    short = [np.zeros((2, 3), dtype=np.float32), np.zeros((0, 3), dtype=np.float32)]
    assert best_phones(short, phone_of_state, bigram) == [[], []]
    said = [np.array([0, 0]), np.array([0])]
    assert phone_error_rate(short, phone_of_state, bigram, said) == 1.0


def test_ten_minutes_of_speech_are_decoded_in_seconds() -> None:
    draw = np.random.default_rng(1)
    frames = [draw.standard_normal((1000, 153)).astype(np.float32) for _ in range(60)]
    bigram = np.full((52, 51), np.log(1 / 51), dtype=np.float32)
    before = time.process_time()
    found = best_phones(frames, np.repeat(np.arange(51), 3), bigram)
    assert all(found)
    assert time.process_time() - before < 10.0  # it takes half a second
