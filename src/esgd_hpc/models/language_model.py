"""The language model of the paper's section 4.3: one LSTM layer, decoder tied to the embedding.

Zolna, Arpit, Suhubdy, Bengio, "Fraternal dropout", ICLR 2018, with the dropout of Merity, Keskar,
Socher, "Regularizing and optimizing LSTM language models", ICLR 2018: of words, of what goes into
and out of the LSTM, and of its recurrent weights.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

State = tuple[Tensor, Tensor]
"""Hidden and cell state of the LSTM, float32 [1, columns, size] each."""


class DropoutRates(NamedTuple):
    """What share of numbers dropout sets to zero, each at least 0 and below 1."""

    embedding: float = 0.0
    """Words: all places of a dropped word are zero."""
    input: float = 0.0
    """Numbers that go into the LSTM; one mask a sequence, the same at all times (variational)."""
    weight: float = 0.0
    """Recurrent weights of the LSTM (DropConnect)."""
    output: float = 0.0
    """Numbers that come out of the LSTM, as for `input`."""


_NONE = DropoutRates()
_EMBEDDING_BOUND = 0.1
"""Of the uniform distribution that embeddings come from, as in the code of Zolna et al."""


class LanguageModel(nn.Module):
    """Logits of the next word from the words so far.

    10,000 words of size 655 make 9,997,440 parameters. `dropout` acts in training mode alone.
    """

    def __init__(self, words: int, size: int, *, tied: bool = True) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(size)

        def uniform(bound: float, *shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

        self.embedding = uniform(_EMBEDDING_BOUND, words, size)
        # In the order of torch.lstm: the four gates one below the other, two biases.
        self.input_weight = uniform(bound, 4 * size, size)
        self.recurrent_weight = uniform(bound, 4 * size, size)
        self.input_bias = uniform(bound, 4 * size)
        self.recurrent_bias = uniform(bound, 4 * size)
        self.decoder = None if tied else uniform(_EMBEDDING_BOUND, words, size)
        self.bias = nn.Parameter(torch.zeros(words))
        self.dropout = DropoutRates()
        self.objective = "standard"

    def forward(
        self, words: Tensor, state: State | None = None, *, dropout: bool = True
    ) -> tuple[Tensor, State]:
        """Return logits float32 [time, columns, words], and the state behind the last word.

        `words` are int64 [time, columns]. Each call draws its own masks from torch's global
        generator; in evaluation mode, or without `dropout`, there are none.
        """
        rates = self.dropout if self.training and dropout else _NONE
        num_columns, size = words.shape[1], self.embedding.shape[1]
        inputs = functional.embedding(words, self.embedding)
        if rates.embedding:
            inputs = inputs * self._mask(rates.embedding, len(self.embedding), 1)[words]
        if rates.input:
            inputs = inputs * self._mask(rates.input, num_columns, size)
        recurrent: Tensor = self.recurrent_weight
        if rates.weight:
            recurrent = recurrent * self._mask(rates.weight, *recurrent.shape)
        if state is None:
            zeros = inputs.new_zeros(1, num_columns, size)
            state = (zeros, zeros)
        # nn.LSTM would keep a list of its own weights; the kernel below it takes any.
        outputs, hidden, cell = torch.lstm(
            inputs,
            state,
            [self.input_weight, recurrent, self.input_bias, self.recurrent_bias],
            has_biases=True,
            num_layers=1,
            dropout=0.0,
            train=self.training,
            bidirectional=False,
            batch_first=False,
        )
        if rates.output:
            outputs = outputs * self._mask(rates.output, num_columns, size)
        decoder = self.embedding if self.decoder is None else self.decoder
        return functional.linear(outputs, decoder, self.bias), (hidden, cell)

    def _mask(self, rate: float, *shape: int) -> Tensor:
        """Return zeros with probability `rate`, else 1 / (1 - rate): the mean stays."""
        kept = 1.0 - rate
        return self.embedding.new_empty(shape).bernoulli_(kept).div_(kept)
