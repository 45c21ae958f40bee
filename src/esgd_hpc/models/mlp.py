"""What the multilayer perceptron looks like: one hidden layer, for small flat inputs."""

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """A perceptron [n, inputs] -> ReLU [n, hidden] -> logits [n, classes]."""

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden)
        self.output = nn.Linear(hidden, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.output(torch.relu(self.hidden(inputs)))
        return logits
