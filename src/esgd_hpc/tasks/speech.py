"""What the speech runs of section 4.1 train on: frames and their states, from a prepared file.

`bn50` and its stand-in `festvox-ru` classify single frames by a DNN, `swb300` and its stand-in
`asterisk` segments of frames by a bidirectional LSTM. Frames stay as they are in the file; what a
network sees of them is gathered for each batch, on the device.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from esgd_hpc.data.speech_store import open_speech
from esgd_hpc.data.store import Store, read
from esgd_hpc.errors import InputError
from esgd_hpc.models.speech import DNN, BidirectionalLSTM
from esgd_hpc.tasks.base import Batch, Data
from esgd_hpc.tasks.options import check_whole_number
from esgd_hpc.tasks.utterances import Sizes, SpeechTask, first_numbers, labelled_splits, splits_of
from esgd_hpc.tasks.windows import cut_into_segments, segment_frames, splice

_FRAMES_AT_ONCE = 2048
"""Frames of an utterance that the network sees at once."""


class FrameTask(SpeechTask):
    """Single frames, seen with their neighbours. Batches are (frame numbers, states), [n] each."""

    def __init__(
        self,
        store: Store,
        sizes: Sizes,
        *,
        context: int,
        hidden: Sequence[int],
        num_relu: int,
        training_frames: int,
    ) -> None:
        """Take `context`, frames on each side, and the network's hidden layers, see `DNN`.

        The first `training_frames` train, where 0 is all.
        """
        self._context = context
        self._hidden = tuple(hidden)
        self._num_relu = num_relu
        splits: dict[str, Data] = {}
        for split in labelled_splits(store):
            labels: Any = store[f"{split}/labels"]
            if store.is_missing:
                splits[split] = (labels,)
                continue
            if split == "train" and 0 < training_frames < labels.shape[0]:
                labels = labels.rows(0, training_frames)
            first = first_numbers(store)[split]
            splits[split] = (_numbered(np.arange(first, first + labels.shape[0])), labels)
        shared = [f"{s}/{part}" for s in splits_of(store) for part in ("features", "utterances")]
        super().__init__(store, splits, shared, sizes)

    def model(self) -> nn.Module:
        inputs = (2 * self._context + 1) * self.sizes.features
        return DNN(inputs, self._hidden, self._num_relu, self.sizes.states)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        frames, labels = batch
        logits = self._logits(model, "train", frames.long())
        return nn.functional.cross_entropy(logits, labels.long())

    def score(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        numbers, labels = batch
        logits = self._logits(model, *self.located(numbers))
        wrong = (logits.argmax(dim=-1) != labels).to(torch.float32)
        return {
            "loss": nn.functional.cross_entropy(logits, labels.long()),
            "frame_error": wrong.mean(),
        }

    def _logits(self, model: nn.Module, split: str, frames: Tensor) -> Tensor:
        features, utterances = self.datasets(split, "features", "utterances")
        logits: Tensor = model(splice(features, utterances, frames, self._context))
        return logits

    def utterance_logits(self, model: nn.Module, split: str, first: int, end: int) -> Tensor:
        (features,) = self.datasets(split, "features")
        frames = torch.arange(first, end, device=features.device)
        parts = frames.split(_FRAMES_AT_ONCE)
        return torch.cat([self._logits(model, split, part) for part in parts])


class SegmentTask(SpeechTask):
    """Segments of frames. Batches are (number of the first frame, frames to skip), [n] each.

    A frame that two segments have counts in one of them. Means over segments are so scaled that
    over a whole split they are exact means over its frames. An utterance's i-vector goes with each
    of its frames.
    """

    def __init__(
        self,
        store: Store,
        sizes: Sizes,
        *,
        segment: int,
        cells: int,
        layers: int,
        bottleneck: int,
        training_frames: int,
    ) -> None:
        """Take `segment`, frames of a segment, and the network's sizes, see `BidirectionalLSTM`.

        The first segments with about `training_frames` frames train, where 0 is all.
        """
        self._segment = segment
        self._cells, self._layers, self._bottleneck = cells, layers, bottleneck
        self._scales: dict[str, float] = {}
        splits: dict[str, Data] = {}
        for split in labelled_splits(store):
            if store.is_missing:
                splits[split] = (store[f"{split}/labels"],)
                continue
            starts, skips, num_new = cut_into_segments(read(store[f"{split}/utterances"]), segment)
            if split == "train" and training_frames:
                kept = -(-training_frames // segment)
                starts, skips, num_new = starts[:kept], skips[:kept], num_new[:kept]
            numbers = _numbered(starts + first_numbers(store)[split])
            splits[split] = (numbers, torch.from_numpy(skips.astype(np.int32)))
            self._scales[split] = len(starts) / int(num_new.sum())
        parts = ["features", "utterances"] + ["ivectors"] * bool(sizes.ivector)
        shared = [f"{split}/{part}" for split in splits_of(store) for part in parts]
        shared += [f"{split}/labels" for split in labelled_splits(store)]
        super().__init__(store, splits, shared, sizes)

    def model(self) -> nn.Module:
        inputs = self.sizes.features + self.sizes.ivector
        return BidirectionalLSTM(
            inputs, self._cells, self._layers, self._bottleneck, self.sizes.states
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        starts, skips = batch
        return self._scores(model, "train", starts.long(), skips)[0]

    def score(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        numbers, skips = batch
        loss, frame_error = self._scores(model, *self.located(numbers), skips)
        return {"loss": loss, "frame_error": frame_error}

    def _scores(
        self, model: nn.Module, split: str, starts: Tensor, skips: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return loss and frame error, means over the segments, scaled."""
        inputs, frames, is_new = self._inputs(split, starts, skips)
        (labels,) = self.datasets(split, "labels")
        targets = labels[frames].long().masked_fill(~is_new, -1)
        logits = model(inputs)
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum"
        )
        wrong = (is_new & (logits.argmax(dim=-1) != targets)).sum()
        scale = self._scales[split] / len(starts)
        return loss * scale, wrong * scale

    def _inputs(self, split: str, starts: Tensor, skips: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the network sees [n, segment, inputs], its frames, and which are new."""
        features, utterances = self.datasets(split, "features", "utterances")
        frames, is_new, which = segment_frames(utterances, starts, skips, self._segment)
        inputs = features[frames]
        if self.sizes.ivector:
            (ivectors,) = self.datasets(split, "ivectors")
            own = ivectors[which].unsqueeze(1).expand(-1, self._segment, -1)
            inputs = torch.cat([inputs, own], dim=-1)
        return inputs, frames, is_new

    def utterance_logits(self, model: nn.Module, split: str, first: int, end: int) -> Tensor:
        (features,) = self.datasets(split, "features")
        found = cut_into_segments(np.array([[first, end]]), self._segment)
        at_once = max(1, _FRAMES_AT_ONCE // self._segment)
        logits = []
        for starts, skips in zip(
            torch.from_numpy(found.starts).to(features.device).split(at_once),
            torch.from_numpy(found.skips).to(features.device).split(at_once),
            strict=True,
        ):
            inputs, _, is_new = self._inputs(split, starts, skips)
            logits.append(model(inputs)[is_new])
        return torch.cat(logits)


def _numbered(numbers: npt.NDArray[np.int64]) -> Tensor:
    """Return sample numbers, four bytes each where they fit."""
    fits = numbers[-1] < 2**31
    return torch.from_numpy(numbers.astype(np.int32) if fits else numbers)


# Factories ----------------------------------------------------------------------------------------


def _sizes(store: Store, usual: Sizes, features: int, states: int, *, ivectors: bool) -> Sizes:
    """Return the sizes of the file, or where it is missing those asked for, else the usual ones.

    Raises InputError where the file has others than those asked for.
    """
    check_whole_number("features", features, 0)
    check_whole_number("states", states, 0)
    if store.is_missing:
        return Sizes(features or usual.features, usual.ivector, states or usual.states)
    shape = store["train/features"].shape
    ivector = store["train/ivectors"].shape if ivectors and store.has("train/ivectors") else (0, 0)
    assert shape is not None
    assert ivector is not None
    found = Sizes(shape[1], ivector[1], int(store.attributes["num_states"]))
    for name, asked, have in (
        ("features", features, found.features),
        ("states", states, found.states),
    ):
        if asked not in (0, have):
            raise InputError(
                f"task_options.{name} = {asked}: {store.file} has {have}; leave the option out"
            )
    return found


def _frames(
    name: str,
    usual: Sizes,
    *,
    path: str = "",
    context: int = 4,
    hidden: Sequence[int] = (1024, 1024, 1024, 1024, 1024, 512),
    relu_layers: int = 3,
    features: int = 0,
    states: int = 0,
    training_frames: int = 0,
) -> FrameTask:
    """Return a task of single frames from the prepared file of the data set `name`.

    `context` frames on each side; `hidden` layers, of which the lowest `relu_layers` have ReLU
    units. `features` and `states` are those of the file, or where it is missing the `usual` ones;
    0 asks for nothing else. The first `training_frames` train, where 0 is all.

    Raises InputError where an option is out of bounds or does not fit the file.
    """
    check_whole_number("context", context, 0, 1000)
    check_whole_number("relu_layers", relu_layers, 0)
    check_whole_number("training_frames", training_frames, 0)
    if not isinstance(hidden, list | tuple) or not hidden:
        raise InputError(f"task_options.hidden = {hidden!r}: expected a list of layer sizes")
    for place, units in enumerate(hidden):
        check_whole_number(f"hidden.{place}", units, 1)
    store = open_speech(name, path)
    return FrameTask(
        store,
        _sizes(store, usual, features, states, ivectors=False),
        context=context,
        hidden=hidden,
        num_relu=relu_layers,
        training_frames=training_frames,
    )


def _segments(
    name: str,
    usual: Sizes,
    *,
    path: str = "",
    segment: int = 21,
    cells: int = 512,
    layers: int = 4,
    bottleneck: int = 256,
    features: int = 0,
    states: int = 0,
    training_frames: int = 0,
) -> SegmentTask:
    """Return a task of segments of frames from the prepared file of the data set `name`.

    Segments of `segment` frames; `layers` of `cells` a direction, then a linear `bottleneck`.
    `features` and `states` as for single frames. The first segments with about `training_frames`
    frames train, where 0 is all.

    Raises InputError where an option is out of bounds or does not fit the file.
    """
    sizes = {"segment": segment, "cells": cells, "layers": layers, "bottleneck": bottleneck}
    for option, size in sizes.items():
        check_whole_number(option, size, 1, 100_000)
    check_whole_number("training_frames", training_frames, 0)
    store = open_speech(name, path)
    return SegmentTask(
        store,
        _sizes(store, usual, features, states, ivectors=True),
        segment=segment,
        cells=cells,
        layers=layers,
        bottleneck=bottleneck,
        training_frames=training_frames,
    )


# Sizes and defaults of the originals are those of section 4.1; stand-ins have smaller networks.
bn50 = partial(_frames, "bn50", Sizes(40, 0, 5000))
festvox_ru = partial(
    _frames, "festvox-ru", Sizes(40, 0, 153), hidden=(256, 256, 256, 256, 256, 128)
)
swb300 = partial(_segments, "swb300", Sizes(40, 100, 32_000))
asterisk = partial(_segments, "asterisk", Sizes(40, 0, 207), cells=64, layers=2, bottleneck=64)
