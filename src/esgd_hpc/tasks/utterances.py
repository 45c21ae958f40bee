"""What all speech tasks share: samples that refer to frames of utterances in a prepared file."""

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from esgd_hpc import pulse
from esgd_hpc.data.store import Store
from esgd_hpc.errors import InputError
from esgd_hpc.tasks.base import Data, Task

_VALUES_AT_ONCE = 2**26
"""Log-likelihoods that are decoded at once."""


class Sizes(NamedTuple):
    """What a network must fit."""

    features: int
    """Numbers of a frame."""
    ivector: int
    """Numbers of an utterance, 0 for none."""
    states: int


class SpeechTask(Task):
    """Frames of utterances, each with its state: cross-entropy, and the share of wrong states.

    Samples are numbered through the splits: training, validation, test.
    """

    def __init__(
        self, store: Store, splits: Mapping[str, Data], shared: Sequence[str], sizes: Sizes
    ) -> None:
        """Take the samples of each split, and which datasets of the store they refer to."""
        super().__init__(
            training=splits["train"], validation=splits["validation"], test=splits.get("test")
        )
        self.sizes = sizes
        self.store = store
        self._first_numbers = first_numbers(store)
        phones = ("phone_of_state", "phone_bigram")
        names = [*shared, "log_priors", *(name for name in phones if store.has(name))]
        names += [
            f"{split}/{part}"
            for split in ("validation", "test")
            for part in ("phones", "phone_ends")
            if store.has(f"{split}/{part}")
        ]
        self.shared = {name: store[name] for name in names}
        if store.has("phone_bigram"):
            _check_decoder()

    def datasets(self, split: str, *names: str) -> list[Tensor]:
        """Return datasets of a split, on the device."""
        return [cast(Tensor, self.shared[f"{split}/{name}"]) for name in names]

    def located(self, numbers: Tensor) -> tuple[str, Tensor]:
        """Return the split that samples of one batch are in, and their numbers there, int64."""
        first = int(numbers[0])
        split = [name for name, number in self._first_numbers.items() if number <= first][-1]
        return split, numbers.long() - self._first_numbers[split]

    # Whole utterances -----------------------------------------------------------------------------

    def utterance_logits(self, model: nn.Module, split: str, first: int, end: int) -> Tensor:
        """Return the logits [T, S] of the utterance that has these frames."""
        raise NotImplementedError

    @torch.no_grad()
    def log_likelihoods(
        self, model: nn.Module, split: str, first: int, end: int
    ) -> npt.NDArray[np.float32]:
        """Return log posteriors less log priors [T, S] of the utterance that has these frames.

        That is what a decoder with hidden Markov models takes for log-likelihoods: they lack
        only what all states of a frame have in common.
        """
        logits = self.utterance_logits(model, split, first, end)
        priors = cast(Tensor, self.shared["log_priors"])
        scaled: npt.NDArray[np.float32] = (logits.log_softmax(dim=-1) - priors).cpu().numpy()
        return scaled

    def utterances(self, split: str) -> list[tuple[int, int]]:
        """Return the first frame and the end of each utterance of a split."""
        (found,) = self.datasets(split, "utterances")
        return [(first, end) for first, end in found.tolist()]

    def final_scores(self, model: nn.Module) -> Mapping[str, float]:
        if "phone_bigram" not in self.shared:
            return {}
        return {
            f"{prefix}phone_error_rate": self._phone_error_rate(model, split)
            for split, prefix in (("validation", ""), ("test", "test_"))
            if f"{split}/phones" in self.shared
        }

    def _phone_error_rate(self, model: nn.Module, split: str) -> float:
        """Return edits per phone spoken, over a few utterances at a time."""
        from esgd_hpc.tasks.phones import phone_error_rate

        phone_of_state, bigram = (
            cast(Tensor, self.shared[name]).cpu().numpy()
            for name in ("phone_of_state", "phone_bigram")
        )
        phones, ends = (part.cpu().numpy() for part in self.datasets(split, "phones", "phone_ends"))
        references = np.split(phones, ends[:-1])
        edits = 0.0
        for group in _groups(self.utterances(split), _VALUES_AT_ONCE // self.sizes.states):
            pulse.progress()
            likelihoods = [
                self.log_likelihoods(model, split, first, end) for _, first, end in group
            ]
            spoken = [references[place] for place, _, _ in group]
            rate = phone_error_rate(likelihoods, phone_of_state, bigram, spoken)
            edits += rate * sum(map(len, spoken))
        return edits / max(1, len(phones))


def _check_decoder() -> None:
    """Raise InputError where phone error rates, which come last in a run, cannot be computed."""
    try:
        import_module("esgd_hpc.tasks.phones")
    except ImportError as error:
        raise InputError(
            f"phone error rates need a package that is not installed ({error}); install it with"
            ' pip install "esgd-hpc[data]"'
        ) from None


def _groups(
    utterances: Sequence[tuple[int, int]], num_frames: int
) -> Iterator[list[tuple[int, int, int]]]:
    """Yield runs of (place, first frame, end) that have about so many frames together."""
    group: list[tuple[int, int, int]] = []
    for place, (first, end) in enumerate(utterances):
        if group and end - group[0][1] > num_frames:
            yield group
            group = []
        group.append((place, first, end))
    if group:
        yield group


# Splits -------------------------------------------------------------------------------------------


def splits_of(store: Store) -> list[str]:
    """Return which splits there are, or must be where the file is missing."""
    return ["train", "validation", *(["test"] if store.has("test/features") else [])]


def labelled_splits(store: Store) -> list[str]:
    """Return the splits whose frames have states; a test split may have none."""
    return ["train", "validation", *(["test"] if store.has("test/labels") else [])]


def first_numbers(store: Store) -> dict[str, int]:
    """Return where the numbers of each split begin; empty where the file is missing."""
    found: dict[str, int] = {}
    first = 0
    for split in splits_of(store) if not store.is_missing else []:
        shape = store[f"{split}/features"].shape
        assert shape is not None
        found[split] = first
        first += shape[0]
    return found
