"""What the image network of section 4.2 looks like: ResNet-20 for CIFAR, 269,722 parameters.

K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", CVPR 2016,
section 4.2: n = 3, shortcuts of option A (identity, padded with zero channels).
"""

import torch
from torch import Tensor, nn


def _convolution(channels_in: int, channels_out: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters.

    [n, channels_in, s, s] -> [n, channels_out, s / stride, s / stride].
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(channels_in, channels_out, stride)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = _convolution(channels_out, channels_out, 1)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self._stride = stride
        self._new_channels = channels_out - channels_in

    def forward(self, inputs: Tensor) -> Tensor:
        features = torch.relu(self.norm1(self.conv1(inputs)))
        features = self.norm2(self.conv2(features))
        shortcut = inputs[:, :, :: self._stride, :: self._stride]
        shortcut = nn.functional.pad(shortcut, (0, 0, 0, 0, 0, self._new_channels))
        return torch.relu(features + shortcut)


class ResNet20(nn.Module):
    """Images [n, 3, 32, 32] -> logits [n, classes]."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv = _convolution(3, 16, 1)
        self.norm = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(
            *(Block(16, 16, 1) for _ in range(3)),
            *(Block(16 if i == 0 else 32, 32, 2 if i == 0 else 1) for i in range(3)),
            *(Block(32 if i == 0 else 64, 64, 2 if i == 0 else 1) for i in range(3)),
        )
        self.output = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(self.output.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        features = torch.relu(self.norm(self.conv(inputs)))
        features = self.blocks(features)
        logits: Tensor = self.output(features.mean(dim=(2, 3)))
        return logits
