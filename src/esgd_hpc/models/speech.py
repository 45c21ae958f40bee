"""What the acoustic models of section 4.1 look like: the DNN of BN50 and the LSTM of SWB300."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class DNN(nn.Module):
    """A perceptron, spliced frames [n, inputs] -> logits of states [n, states].

    The lower `num_relu` hidden layers have ReLU units, those above sigmoid units. That of BN50 has
    360 inputs, hidden layers of 1,024 (five) and 512 units, and 5,000 states: 7,657,864 parameters.
    The paper does not say how weights start; here as usual for their units: He's normal
    distribution before ReLU, Glorot's uniform one elsewhere, biases 0.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], num_relu: int, states: int) -> None:
        super().__init__()
        sizes = [inputs, *hidden]
        self.hidden = nn.ModuleList(
            nn.Linear(size, units) for size, units in zip(sizes, hidden, strict=False)
        )
        self.output = nn.Linear(sizes[-1], states)
        self._num_relu = num_relu
        for place, layer in enumerate([*self.hidden, self.output]):
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.bias)
            if place < min(num_relu, len(self.hidden)):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            else:
                nn.init.xavier_uniform_(layer.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        units = inputs
        for place, layer in enumerate(self.hidden):
            sums = layer(units)
            units = torch.relu(sums) if place < self._num_relu else torch.sigmoid(sums)
        logits: Tensor = self.output(units)
        return logits


class BidirectionalLSTM(nn.Module):
    """An LSTM in both directions, frames [n, T, inputs] -> logits of states [n, T, states].

    That of SWB300 has 140 inputs, four layers of 512 cells a direction, a linear bottleneck of 256
    units and 32,000 states: 30,064,128 parameters, where each gate has two biases as in torch.
    Weights start as torch has it.
    """

    def __init__(self, inputs: int, cells: int, layers: int, bottleneck: int, states: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, cells, layers, batch_first=True, bidirectional=True)
        self.bottleneck = nn.Linear(2 * cells, bottleneck)
        self.output = nn.Linear(bottleneck, states)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.output(self.bottleneck(self.lstm(inputs)[0]))
        return logits
