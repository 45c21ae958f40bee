"""What the small convolutional network looks like: 20,746 parameters for 28x28 images.

Strides take the place of pooling: a generation scores every child, and on one CPU core this network
scores several times as many images a second as one that pools.
"""

import torch
from torch import Tensor, nn


class CNN(nn.Module):
    """Two strided convolutions and a linear layer: [n, 1, 28, 28] -> logits [n, classes]."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, kernel_size=5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=3, stride=2, padding=1)
        self.output = nn.Linear(32 * 7 * 7, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        features = torch.relu(self.conv1(inputs))
        features = torch.relu(self.conv2(features))
        logits: Tensor = self.output(features.flatten(1))
        return logits
