"""Our optimizers take the very steps that torch's own do, without importing its compiler."""

import subprocess
import sys
from collections.abc import Callable

import msgspec
import pytest
import torch
from torch import Tensor, nn

from esgd_hpc.learner.optimizer import Optimizer
from esgd_hpc.population import Draw

# The first optimizer of a process imports much of torch, which sets environment variables.
torch.optim.SGD([torch.zeros(1)], lr=0.0)

SGD = Draw(
    optimizer="sgd",
    learning_rate=0.1,
    momentum=0.0,
    nesterov=False,
    weight_decay=0.0,
    batch_size=8,
)
DRAWS = {
    "sgd": SGD,
    "decay": msgspec.structs.replace(SGD, weight_decay=0.1),
    "momentum": msgspec.structs.replace(SGD, momentum=0.9, weight_decay=0.1),
    "nesterov": msgspec.structs.replace(SGD, momentum=0.9, nesterov=True),
    "adam": msgspec.structs.replace(SGD, optimizer="adam", learning_rate=0.01),
    "adam_decay": msgspec.structs.replace(SGD, optimizer="adam", weight_decay=0.1),
}


def parameters() -> list[Tensor]:
    """Return some, the same at each call."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(7, 5), (5,), (3, 2, 4), ()]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def give_gradients(values: list[Tensor], step: int) -> None:
    """Set the gradients of a step; one parameter has none at first, another one later on."""
    generator = torch.Generator().manual_seed(step)
    for place, value in enumerate(values):
        gradient = torch.randn(value.shape, generator=generator)
        without = (place == 1 and step < 2) or (place == 2 and step > 2)
        value.grad = None if without else gradient


def torchs(draw: Draw, values: list[Tensor]) -> Callable[[float], None]:
    """Return what takes a step of a learning rate with torch's own optimizer."""
    optimizer: torch.optim.Optimizer
    if draw.optimizer == "adam":
        optimizer = torch.optim.Adam(values, weight_decay=draw.weight_decay)
    else:
        optimizer = torch.optim.SGD(
            values,
            momentum=draw.momentum,
            nesterov=draw.nesterov,
            weight_decay=draw.weight_decay,
        )

    def step(learning_rate: float) -> None:
        optimizer.param_groups[0]["lr"] = learning_rate
        optimizer.step()

    return step


def bits(values: list[Tensor]) -> list[bytes]:
    return [value.detach().numpy().tobytes() for value in values]


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_steps_are_those_of_torch_to_the_bit(draw: Draw) -> None:
    ours, theirs = parameters(), parameters()
    optimizer, step = Optimizer(ours, draw), torchs(draw, theirs)
    for number in range(5):
        rate = draw.learning_rate / (number + 1)
        for values in (ours, theirs):
            give_gradients(values, number)
        optimizer.step(rate)
        step(rate)
        assert bits(ours) == bits(theirs)
    assert bits(ours) != bits(parameters())


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_restored_state_goes_on_as_before(draw: Draw) -> None:
    values = parameters()
    optimizer = Optimizer(values, draw)
    give_gradients(values, 0)
    optimizer.step(0.1)
    state, kept = optimizer.state(), [value.detach().clone() for value in values]
    ends = []
    for _ in range(3):
        optimizer.restore(state)
        for value, start in zip(values, kept, strict=True):
            value.data.copy_(start)
        for number in (1, 2, 3):
            give_gradients(values, number)
            optimizer.step(0.1)
        ends.append(bits(values))
    assert ends[0] == ends[1] == ends[2]


def test_nothing_happens_without_gradients() -> None:
    values = parameters()
    for draw in (SGD, DRAWS["adam"]):
        Optimizer(values, draw).step(0.1)
    assert bits(values) == bits(parameters())


def sparse_gradient(table: nn.Embedding) -> None:
    table.weight.grad = None
    table(torch.tensor([1, 3, 1])).square().sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad.is_sparse


def test_sgd_takes_sparse_gradients_and_adam_says_that_it_cannot() -> None:
    tables = [nn.Embedding(5, 2, sparse=True, _weight=torch.ones(5, 2)) for _ in range(2)]
    optimizer, step = Optimizer([tables[0].weight], SGD), torchs(SGD, [tables[1].weight])
    for table in tables:
        sparse_gradient(table)
    optimizer.step(0.1)
    step(0.1)
    assert bits([tables[0].weight]) == bits([tables[1].weight])
    assert not torch.equal(tables[0].weight, torch.ones(5, 2))
    with pytest.raises(RuntimeError, match="sparse=False"):
        Optimizer([tables[0].weight], DRAWS["adam"]).step(0.1)


def test_training_does_not_import_torchs_compiler() -> None:
    script = """
import sys
from mpi4py import MPI
import esgd_hpc
recipe = esgd_hpc.load_recipe("digits", ["generations=1", "method='sgd-only'"])
result = esgd_hpc.run(recipe, MPI.COMM_SELF)
drawn = {individual.draw.optimizer for individual in result.population.individuals}
print(*sorted(drawn), "torch" in sys.modules, "torch._dynamo" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split()[-2:] == ["True", "False"], done.stdout + done.stderr
    assert "adam" in done.stdout
