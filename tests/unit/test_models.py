"""The networks have the stated shapes, sizes and starting weights."""

import math

import pytest
import torch
from torch import nn

from esgd_hpc.models.cnn import CNN
from esgd_hpc.models.mlp import MLP
from esgd_hpc.models.resnet import Block, ResNet20


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model", "shape", "classes", "expected"),
    [
        (MLP(inputs=64, hidden=32, classes=10), (64,), 10, 64 * 32 + 32 + 32 * 10 + 10),
        (CNN(), (1, 28, 28), 10, 20_746),
        (CNN(classes=3), (1, 28, 28), 3, 20_746 - 7 * (32 * 49 + 1)),
        (ResNet20(), (3, 32, 32), 10, 269_722),
        (ResNet20(classes=100), (3, 32, 32), 100, 269_722 + 90 * 65),
    ],
    ids=["mlp", "cnn", "cnn of 3", "resnet20", "resnet20 of 100"],
)
def test_shapes_and_sizes(
    model: nn.Module, shape: tuple[int, ...], classes: int, expected: int
) -> None:
    logits = model(torch.rand(2, *shape))
    assert logits.shape == (2, classes)
    assert logits.dtype == torch.float32
    assert num_parameters(model) == expected
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_block_that_adds_nothing_is_its_shortcut() -> None:
    block = Block(16, 32, stride=2).eval()
    nn.init.zeros_(block.norm2.weight)
    inputs = torch.rand(3, 16, 8, 8)
    outputs = block(inputs)
    assert outputs.shape == (3, 32, 4, 4)
    assert torch.equal(outputs[:, :16], inputs[:, :, ::2, ::2])
    assert not outputs[:, 16:].any()


def test_resnet_has_three_stages_of_three_blocks() -> None:
    shapes = []
    model = ResNet20()
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _inputs, out: shapes.append(tuple(out.shape)))
    model(torch.rand(1, 3, 32, 32))
    assert shapes == [(1, 16, 32, 32)] * 3 + [(1, 32, 16, 16)] * 3 + [(1, 64, 8, 8)] * 3


def test_resnet_starts_from_he_initialization() -> None:
    torch.manual_seed(0)
    last = ResNet20().blocks[8]
    assert isinstance(last, Block)
    assert last.conv2.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.02)


@pytest.mark.parametrize(
    "make", [lambda: MLP(64, 8, 10), CNN, ResNet20], ids=["mlp", "cnn", "resnet"]
)
def test_starting_weights_come_from_the_global_generator(make: type[nn.Module]) -> None:
    def flat(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in make().parameters()])

    assert torch.equal(flat(1), flat(1))
    assert not torch.equal(flat(1), flat(2))
