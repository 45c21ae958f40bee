"""What a prepared file of speech holds, for whoever prepares one and whoever trains on it.

For each split s of train, validation and test, with F frames in U utterances:

    s/features        float32 [F, D]  normalized frames, utterance after utterance
    s/labels          int32 [F]       the state (pdf) of each frame; a test split may have none
    s/utterances      int64 [U, 2]    first frame and end of each utterance, in the frames' order
    s/utterance_ids   uint8           their names, joined by newlines, UTF-8
    s/ivectors        float32 [U, V]  one a utterance; optional

and for all of them

    log_priors        float32 [S]     of the states, from the training labels
    num_states        attribute       S

For phone error rates, all or none of

    phone_of_state    int32 [S]       which phone a state belongs to
    phone_bigram      float32 [P + 1, P]  natural-log probability of a phone (column) after another
                                      (row); the last row is for the first phone of an utterance
    phones            attribute       the names of the P phones
    s/phones          int32 [N]       the phones of all utterances as they were spoken
    s/phone_ends      int64 [U]       where each utterance's phones end
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from esgd_hpc.data.store import Store, StoreWriter, open_store, read
from esgd_hpc.errors import InputError

SPLITS = ("train", "validation", "test")

_BLOCK_FRAMES = 2**16
"""Frames that are gathered before they are written."""

Array = npt.NDArray[Any]


class FrameStatistics:
    """Mean and deviation of each feature over frames that come a few at a time."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: Array = np.zeros(0)
        self._squares: Array = np.zeros(0)

    def add(self, frames: Array) -> None:
        """Take in frames, shape [n, D]."""
        if not len(frames):
            return
        frames = frames.astype(np.float64)
        if not self._count:
            self._mean, self._squares = np.zeros((2, frames.shape[1]))
        mean = frames.mean(axis=0)
        total = self._count + len(frames)
        shift = mean - self._mean
        self._squares += np.square(frames - mean).sum(axis=0)
        self._squares += np.square(shift) * (self._count * len(frames) / total)
        self._mean += shift * (len(frames) / total)
        self._count = total

    def normalized(self, frames: Array) -> npt.NDArray[np.float32]:
        """Return frames, shape [n, D], with the mean taken away and divided by the deviation.

        A feature that never changed is only shifted.
        """
        deviation = np.sqrt(self._squares / max(1, self._count))
        deviation[deviation < 1e-10 * np.maximum(1.0, np.abs(self._mean))] = 1.0
        scaled: npt.NDArray[np.float32] = ((frames - self._mean) / deviation).astype(np.float32)
        return scaled


# Writing ------------------------------------------------------------------------------------------


class SpeechWriter:
    """Writes utterances, one after the other, and at the end what is known of all of them.

    Utterances of one split may come between those of others. Memory holds a block of frames.
    """

    def __init__(self, writer: StoreWriter, num_states: int) -> None:
        """Take the writer of a prepared file, and S, the number of states."""
        self._writer = writer
        self._num_states = num_states
        self._counts = np.zeros(num_states, dtype=np.int64)
        self._splits = {split: _Split(split) for split in SPLITS}
        self._has_phones = False

    def add(
        self,
        split: str,
        utterance_id: str,
        features: Array,
        labels: Array | None,
        ivector: Array | None = None,
        phones: Sequence[int] | None = None,
    ) -> None:
        """Add an utterance: normalized features [T, D], labels [T], i-vector [V], phones spoken.

        Raises InputError, which names the utterance, for what cannot be trained on or differs in
        kind from the utterances before: empty, other sizes, NaN, labels that are no states.
        """
        at = f"{split} utterance {utterance_id}"
        part = self._splits[split]
        if not utterance_id or utterance_id.split() != [utterance_id]:
            raise InputError(f"{at}: a name must have no white space and not be empty")
        if utterance_id in part.known:
            raise InputError(f"{at}: there twice; remove one of the two")
        features = np.asarray(features, dtype=np.float32)
        if features.ndim != 2 or 0 in features.shape:
            raise InputError(f"{at}: features of shape {list(features.shape)}; expected [T, D]")
        self._check(at, "features", features)
        if labels is not None:
            labels = np.asarray(labels)
            if labels.shape != features.shape[:1] or labels.dtype.kind not in "iu":
                raise InputError(
                    f"{at}: labels of shape {list(labels.shape)} for {len(features)} frames;"
                    " expected one whole number a frame"
                )
            if labels.min() < 0 or labels.max() >= self._num_states:
                raise InputError(
                    f"{at}: labels from {labels.min()} to {labels.max()}; with"
                    f" {self._num_states} states they go from 0 to {self._num_states - 1}"
                )
            if split == "train":
                self._counts += np.bincount(labels, minlength=self._num_states)
        elif split != "test":
            raise InputError(f"{at}: no labels; only a test split may be without")
        if ivector is not None:
            ivector = np.asarray(ivector, dtype=np.float32)
            self._check(at, "i-vector", ivector)
        part.add(at, utterance_id, features, labels, ivector, phones)
        if part.waiting_frames >= _BLOCK_FRAMES:
            part.write_frames(self._writer)

    def add_phones(self, names: Sequence[str], phone_of_state: Array, bigram: Array) -> None:
        """Add what a decoder needs: P names, the phone of each state [S], bigram [P + 1, P]."""
        self._has_phones = True
        self._writer.append("phone_of_state", np.asarray(phone_of_state, dtype=np.int32))
        self._writer.append("phone_bigram", np.asarray(bigram, dtype=np.float32))
        self._writer.note(phones=list(names))

    def finish(self) -> None:
        """Write all that is left. Raises InputError without training and validation data."""
        for split, part in self._splits.items():
            if part.ids:
                part.finish(self._writer, self._has_phones)
            elif split != "test":
                raise InputError(f"no {split} data: not a single utterance of it can be used")
        train, *others = (part for part in self._splits.values() if part.ids)
        for part in others:
            if part.sizes != train.sizes:
                raise InputError(
                    f"{part.name} data has features and i-vectors of {part.sizes} numbers, train"
                    f" data of {train.sizes}; make all of them alike"
                )
        # A state that was never seen counts as seen in one frame.
        priors = np.maximum(self._counts, 1) / max(1, self._counts.sum())
        self._writer.append("log_priors", np.log(priors).astype(np.float32))
        self._writer.note(num_states=self._num_states)

    def _check(self, at: str, what: str, values: Array) -> None:
        if not np.isfinite(values).all():
            raise InputError(f"{at}: {what} with NaN or infinity; compute them again")


class _Split:
    """The utterances of one split that were added so far."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ids: list[str] = []
        self.known: set[str] = set()
        self.waiting_frames = 0
        self.sizes: tuple[int, int] = (0, 0)
        """D and V, which is 0 without i-vectors."""
        self._ends: list[int] = []
        self._features: list[Array] = []
        self._labels: list[Array] = []
        self._ivectors: list[Array] = []
        self._phones: list[Array] = []
        self._has: tuple[bool, bool] = (False, False)

    def add(
        self,
        at: str,
        utterance_id: str,
        features: Array,
        labels: Array | None,
        ivector: Array | None,
        phones: Sequence[int] | None,
    ) -> None:
        sizes = (features.shape[1], 0 if ivector is None else ivector.size)
        has = (labels is not None, phones is not None)
        if not self.ids:
            self.sizes, self._has = sizes, has
        if sizes != self.sizes:
            raise InputError(
                f"{at}: features and i-vector of {sizes} numbers, {self.sizes} before; make all"
                " utterances alike"
            )
        if has != self._has:
            raise InputError(f"{at}: labels or phones for some utterances of a split and not all")
        self.ids.append(utterance_id)
        self.known.add(utterance_id)
        self._ends.append((self._ends[-1] if self._ends else 0) + len(features))
        self._features.append(features)
        if labels is not None:
            self._labels.append(labels.astype(np.int32))
        if ivector is not None:
            self._ivectors.append(ivector.reshape(-1))
        if phones is not None:
            self._phones.append(np.asarray(phones, dtype=np.int32).reshape(-1))
        self.waiting_frames += len(features)

    def write_frames(self, writer: StoreWriter) -> None:
        if self._features:
            writer.append(f"{self.name}/features", np.concatenate(self._features))
        if self._labels:
            writer.append(f"{self.name}/labels", np.concatenate(self._labels))
        self._features.clear()
        self._labels.clear()
        self.waiting_frames = 0

    def finish(self, writer: StoreWriter, has_phones: bool) -> None:
        self.write_frames(writer)
        bounds = np.stack([[0, *self._ends[:-1]], self._ends], axis=1).astype(np.int64)
        writer.append(f"{self.name}/utterances", bounds)
        names = "\n".join(self.ids).encode()
        writer.append(f"{self.name}/utterance_ids", np.frombuffer(names, dtype=np.uint8))
        if self._ivectors:
            writer.append(f"{self.name}/ivectors", np.stack(self._ivectors))
        if has_phones and self._phones:
            writer.append(f"{self.name}/phones", np.concatenate(self._phones))
            ends = np.cumsum([len(phones) for phones in self._phones], dtype=np.int64)
            writer.append(f"{self.name}/phone_ends", ends)


# Reading ------------------------------------------------------------------------------------------


def open_speech(name: str, path: str = "") -> Store:
    """Return what the prepared file of a speech data set holds; see `open_store`.

    Raises InputError where it is there and lacks what the module's first lines promise.
    """
    store = open_store(name, path)
    if store.is_missing:
        return store
    num_states = store.attributes.get("num_states")
    fits = store["log_priors"].shape == (num_states,)
    for split in SPLITS if store.has("test/features") else SPLITS[:2]:
        frames = store[f"{split}/features"].shape or ()
        fits = fits and len(frames) == 2 and len(store[f"{split}/utterances"].shape or ()) == 2
        if split != "test" or store.has("test/labels"):
            fits = fits and store[f"{split}/labels"].shape == frames[:1]
    if not fits:
        raise InputError(
            f"{store.file}: its datasets do not fit together; prepare it again:"
            f" `esgd data prepare {name}`"
        )
    return store


def utterance_ids(store: Store, split: str) -> list[str]:
    """Return the names of a split's utterances, in their order."""
    return read(store[f"{split}/utterance_ids"]).tobytes().decode().split("\n")
