"""What the language models train on: `ptb`, and `kjv` that stands in for it (section 4.3).

The training text is cut into as many columns as the batch size says. A step takes the next words
of all columns, a number of words that is drawn, and the LSTM's state goes on from step to step.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from esgd_hpc.config import Choice, Drawn, Range
from esgd_hpc.data.batches import Batch, Data, Step, length
from esgd_hpc.data.store import Store, open_store, read
from esgd_hpc.errors import InputError
from esgd_hpc.models.language_model import DropoutRates, LanguageModel, State
from esgd_hpc.population import HyperparameterValue
from esgd_hpc.tasks.base import Task
from esgd_hpc.tasks.options import check_one_of, check_whole_number

OBJECTIVES = ("standard", "fraternal", "expectation-linear", "pi")
KAPPA = {"fraternal": 0.15, "expectation-linear": 0.25, "pi": 0.15}
"""Weight of the difference between two passes, from the code of Zolna et al."""

_WORDS_WITHOUT_FILE = 10_000
_UNKNOWN = 0
"""Number of <unk> in the prepared files."""
_IGNORED = -1
"""Target behind the end of a column that is shorter than others."""
_FULL_PROBABILITY = 0.95
_DEVIATION, _FEWEST, _MORE = 5, 5, 10
"""Words of a step: deviation, least, and how many more than `bptt` at most (Zolna et al.)."""
_LOGITS_AT_ONCE = 2**23
"""Scoring: bounds memory at 32 MiB, or at one word of each column where that is more."""


class Window(NamedTuple):
    """The words that one rank takes in one step."""

    first: int
    """Its first column, counted over the group."""
    last: int
    """The first column that is not its own."""
    column: int
    """Words of a column."""
    start: int
    """The place in each column."""
    words: int
    """How many words of each column."""


@dataclass
class Carried:
    """The LSTM's state between the steps of one epoch on one rank; new for each epoch."""

    state: State | None = None


class TextBatch(NamedTuple):
    """One step's words, int64 [time, columns]; each target is the word behind its input."""

    inputs: Tensor
    targets: Tensor
    carried: Carried


class LanguageTask(Task):
    """Next words of a text. "loss" is the mean cross-entropy of a word, in nats.

    `training` is the text, int32 [N]. `validation` and `test` are columns, int64 [columns, time],
    with what the sum of a column's losses is multiplied by; they are scored from a zero state.
    Each word of the text but its first is a target once.
    """

    hyperparameters: ClassVar[Mapping[str, Drawn]] = {
        "dropout_embedding": Range(0.05, 0.2),
        "dropout_input": Range(0.1, 0.65),
        "dropout_output": Range(0.1, 0.65),
        "dropout_weight": Range(0.1, 0.65),
        "dropout_model": Choice(OBJECTIVES),
    }
    """Table 5; its one range of hidden dropout serves the LSTM's input and output, drawn apart."""

    def __init__(
        self,
        *,
        training: Data,
        validation: Data,
        test: Data,
        words: int,
        size: int,
        tied: bool,
        bptt: int,
        training_tokens: int,
    ) -> None:
        """Take the data; the first `training_tokens` train, where 0 is all."""
        super().__init__(training=training, validation=validation, test=test)
        self._words, self._size, self._tied = words, size, tied
        self._bptt, self._training_tokens = bptt, training_tokens

    def model(self) -> nn.Module:
        return LanguageModel(self._words, self._size, tied=self._tied)

    def configure(
        self, model: nn.Module, hyperparameters: Mapping[str, HyperparameterValue]
    ) -> None:
        assert isinstance(model, LanguageModel)
        rates = model.dropout._asdict()
        for name, value in hyperparameters.items():
            if name == "dropout_model":
                if value not in OBJECTIVES:
                    raise InputError(
                        f"hyper-parameter {name} = {value!r}: expected {', '.join(OBJECTIVES)}"
                    )
                model.objective = str(value)
                continue
            if isinstance(value, bool | str) or not 0.0 <= value < 1.0:
                raise InputError(
                    f"hyper-parameter {name} = {value!r}: expected a number of at least 0 and below"
                    " 1"
                )
            rates[name.removeprefix("dropout_")] = float(value)
        model.dropout = DropoutRates(**rates)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, LanguageModel)
        inputs, targets, carried = batch
        loss, state = objective(model, inputs, targets, carried.state)
        carried.state = (state[0].detach(), state[1].detach())
        return loss

    def score(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        if len(batch) != 2:
            raise InputError(
                'fitness.data = "training": a language model is scored on columns of validation'
                ' text only; use "validation"'
            )
        columns, weights = batch
        words = columns.T
        at_once = max(1, _LOGITS_AT_ONCE // (len(columns) * self._words))
        total = torch.zeros((), dtype=torch.float64, device=columns.device)
        state = None
        for start in range(0, len(words) - 1, at_once):
            part = words[start : start + at_once + 1]
            logits, state = model(part[:-1], state)
            total += cross_entropy(
                logits.flatten(0, 1),
                part[1:].flatten(),
                ignore_index=_IGNORED,
                reduction="sum",
            )
        return {"loss": total * weights.mean() / len(columns)}

    def summary(self, means: Mapping[str, float]) -> Mapping[str, float]:
        return {"perplexity": math.exp(min(means["loss"], 700.0))}

    def training_steps(
        self, batch_size: int, stream: np.random.Generator, rank: int, size: int
    ) -> Sequence[Step]:
        """Return the windows of an epoch, the state of which is carried from one to the next.

        The text makes min(batch_size, N - 1) columns of equal length, which ranks share out in
        consecutive parts; fewer words than columns are left over at its end.
        """
        num_targets = (self._training_tokens or length(self.training)) - 1
        num_columns = min(batch_size, num_targets)
        column = num_targets // num_columns
        share, more = divmod(num_columns, size)
        first = rank * share + min(rank, more)
        last = first + share + (rank < more)
        steps = []
        start = 0
        while start < column:
            is_full = stream.random() < _FULL_PROBABILITY
            drawn = round(stream.normal(self._bptt if is_full else self._bptt / 2, _DEVIATION))
            words = min(max(drawn, _FEWEST), self._bptt + _MORE, column - start)
            window = Window(first, last, column, start, words)
            steps.append(Step(window, (last - first) / num_columns, words / self._bptt))
            start += words
        return steps

    def training_batches(
        self, data: Data, steps: Sequence[Step], device: torch.device
    ) -> Iterator[Batch | None]:
        assert isinstance(data, Sequence)
        (text,) = data
        carried = Carried()
        for step in steps:
            window: Window = step.samples
            if step.share == 0.0:
                yield None
                continue
            first, last = window.first * window.column, window.last * window.column
            yield TextBatch(
                self._cut(text[first:last], window, device),
                self._cut(text[first + 1 : last + 1], window, device),
                carried,
            )

    def _cut(self, text: Tensor, window: Window, device: torch.device) -> Tensor:
        """Return the window of consecutive columns, int64 [time, columns]."""
        columns = text.view(-1, window.column)
        words = columns[:, window.start : window.start + window.words].T
        words = words.to(device, torch.int64, copy=True, memory_format=torch.contiguous_format)
        return words.masked_fill_(words >= self._words, _UNKNOWN)


def objective(
    model: LanguageModel, inputs: Tensor, targets: Tensor, state: State | None
) -> tuple[Tensor, State]:
    """Return the training loss that the model's `objective` names, and the state to go on from.

    With logits z1 and z2 of two passes from the same state under masks of their own, cross-entropy
    CE and mean squared difference MSE (Zolna et al., section 2 and their code):

        standard            CE(z1)
        fraternal           (CE(z1) + CE(z2)) / 2 + 0.15 MSE(z1, z2)
        expectation-linear  CE(z1) + 0.25 MSE(z1, z without dropout)
        pi                  CE(z1) + 0.15 MSE(z1, z2)

    Gradients flow through both passes, there as here. The state is that of the first.
    """
    logits, new_state = model(inputs, state)
    loss = cross_entropy(logits.flatten(0, 1), targets.flatten())
    if model.objective != "standard":
        other, _ = model(inputs, state, dropout=model.objective != "expectation-linear")
        if model.objective == "fraternal":
            loss = (loss + cross_entropy(other.flatten(0, 1), targets.flatten())) / 2
        loss = loss + KAPPA[model.objective] * mse_loss(logits, other)
    return loss, new_state


def language_task(
    name: str,
    *,
    path: str = "",
    size: int = 655,
    tied: bool = True,
    vocabulary: int = 0,
    bptt: int = 35,
    training_tokens: int = 0,
    validation_tokens: int = 0,
    test_tokens: int = 0,
    validation_columns: int = 10,
    test_columns: int = 1,
) -> LanguageTask:
    """Return the task of a prepared text, "ptb" or "kjv".

    `path` is the prepared file or its folder; `size` that of embedding and hidden state;
    `vocabulary` keeps the most frequent words, the others become <unk>; `bptt` is the usual number
    of words of a step; `training_tokens`, `validation_tokens` and `test_tokens` take the first
    words of each text, where 0 is all. Validation and test text are cut into columns, which are
    scored side by side.

    Raises InputError where an option is out of bounds or the file is not such a text.
    """
    check_whole_number("size", size, 1, 2**16)
    check_one_of("tied", tied, (True, False))
    check_whole_number("bptt", bptt, 1, 10**6)
    check_whole_number("training_tokens", training_tokens, 0)
    check_whole_number("validation_tokens", validation_tokens, 0)
    check_whole_number("test_tokens", test_tokens, 0)
    check_whole_number("validation_columns", validation_columns, 1)
    check_whole_number("test_columns", test_columns, 1)
    store = open_store(name, path)
    num_types = _num_types(store)
    if vocabulary != 0:
        check_whole_number("vocabulary", vocabulary, 2, num_types)
    words = vocabulary or num_types
    training = store["train/tokens"]
    if training.shape is not None and training_tokens != 0:
        check_whole_number("training_tokens", training_tokens, 2, training.shape[0])

    def evaluated(part: str, num_tokens: int, num_columns: int) -> Data:
        stored = store[f"{part}/tokens"]
        if store.is_missing:
            return (stored,)
        if num_tokens != 0 and stored.shape is not None:
            check_whole_number(f"{part}_tokens", num_tokens, 2, stored.shape[0])
        # Each rank reads these few words itself: it needs them in columns.
        text = read(stored)[: num_tokens or None]
        check_whole_number(f"{part}_columns", num_columns, 1, len(text) - 1)
        text[text >= words] = _UNKNOWN
        return columns_of(text, num_columns)

    return LanguageTask(
        training=(training,),
        validation=evaluated("validation", validation_tokens, validation_columns),
        test=evaluated("test", test_tokens, test_columns),
        words=words,
        size=size,
        tied=tied,
        bptt=bptt,
        training_tokens=training_tokens,
    )


ptb = partial(language_task, "ptb")
kjv = partial(language_task, "kjv")


def columns_of(text: npt.NDArray[np.int32], num_columns: int) -> tuple[Tensor, Tensor]:
    """Return the text, [N], as columns int64 [columns, time], and their weights float64 [columns].

    Each word but the first is a target in one column: a column begins with the word that the one
    before ends with. Lengths differ by at most one; a shorter column ends with `_IGNORED`. A weight
    times the sum of a column's losses has the mean loss of a target as its mean over the columns.
    """
    places = np.array_split(np.arange(1, len(text)), num_columns)
    columns = np.full((num_columns, len(places[0]) + 1), _IGNORED, dtype=np.int64)
    for column, targets in zip(columns, places, strict=True):
        column[: len(targets) + 1] = text[targets[0] - 1 : targets[-1] + 1]
    weights = np.full(num_columns, num_columns / (len(text) - 1))
    return torch.from_numpy(columns), torch.from_numpy(weights)


def _num_types(store: Store) -> int:
    """Return the number of types of a prepared text; checks that it is one."""
    if store.is_missing:
        return _WORDS_WITHOUT_FILE
    num_types: Any = store.attributes.get("vocabulary_size")
    texts = [store[f"{part}/tokens"] for part in ("train", "validation", "test")]
    fits = isinstance(num_types, int) and num_types >= 2
    if not fits or not all(
        t.shape is not None and len(t.shape) == 1 and t.shape[0] >= 2 and t.dtype == np.int32
        for t in texts
    ):
        raise InputError(
            f"{store.file}: holds no numbered words of three texts; prepare it again"
            " (`esgd data prepare`)"
        )
    return int(num_types)
