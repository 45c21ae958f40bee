"""A network and its flat vector hold the same bits, whatever kinds of tensors it has."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from esgd_hpc.errors import InputError
from esgd_hpc.genome import Genome, weights_of
from esgd_hpc.population import Weights

# The first optimizer of a process imports much of torch, which sets environment variables.
torch.optim.SGD([torch.zeros(1)], lr=0.0)


class Everything(nn.Module):
    """Has each kind of tensor that a genome treats in a way of its own."""

    mask: Tensor
    steps: Tensor
    bytes_: Tensor
    scratch: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.output = nn.Linear(4, 5)
        self.output.weight = self.embedding.weight
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("steps", torch.tensor(7, dtype=torch.int64))
        self.register_buffer("bytes_", torch.arange(5, dtype=torch.uint8))
        self.register_buffer("scratch", torch.ones(3, dtype=torch.float64), persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        hidden: Tensor = self.norm(self.embedding(numbers)) * self.scale
        return self.output(hidden)  # type: ignore[no-any-return]


def everything() -> Everything:
    torch.manual_seed(3)
    return Everything()


def train_a_little(module: nn.Module) -> None:
    """Change parameters, running statistics and counts as training does."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.tensor([0, 1, 2, 3])).square().mean().backward()
        optimizer.step()


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert tensor.numpy().tobytes() == other[name].numpy().tobytes(), name


def different(weights: Weights) -> Weights:
    """Return a vector of the same length that differs in every bit."""
    return np.bitwise_not(weights.view(np.uint32)).view(np.float32)


# Layout -------------------------------------------------------------------------------------------


def test_the_layout_has_parameters_then_floating_then_integer_buffers() -> None:
    layout = Genome(everything()).layout
    entries = [(e.name, e.kind, e.shape, e.size, e.dtype) for e in layout.entries]
    assert entries == [
        ("scale", "parameter", (), 1, "float32"),
        ("embedding.weight", "parameter", (5, 4), 20, "float32"),
        ("norm.weight", "parameter", (4,), 4, "float32"),
        ("norm.bias", "parameter", (4,), 4, "float32"),
        ("output.bias", "parameter", (5,), 5, "float32"),
        ("norm.running_mean", "buffer", (4,), 4, "float32"),
        ("norm.running_var", "buffer", (4,), 4, "float32"),
        ("mask", "integer", (3,), 1, "bool"),
        ("steps", "integer", (), 2, "int64"),
        ("bytes_", "integer", (5,), 2, "uint8"),
        ("norm.num_batches_tracked", "integer", (), 2, "int64"),
    ]
    ends = np.cumsum([0, *(e.size for e in layout.entries)]).tolist()
    assert [e.offset for e in layout.entries] == ends[:-1]
    assert (layout.num_parameters, layout.num_floats, layout.size) == (34, 42, 49)


def test_other_names_of_tied_tensors_are_aliases() -> None:
    assert Genome(everything()).layout.aliases == {"output.weight": "embedding.weight"}
    shared = nn.Linear(2, 2)
    twice = Genome(nn.Sequential(shared, shared, nn.Linear(2, 2)))
    assert twice.layout.aliases == {"1.weight": "0.weight", "1.bias": "0.bias"}
    assert twice.layout.size == 12


def test_names_and_aliases_are_those_of_the_state_dict() -> None:
    module = everything()
    layout = Genome(module).layout
    assert {e.name for e in layout.entries} | set(layout.aliases) == set(module.state_dict())


def test_tied_buffers_are_kept_once() -> None:
    norm = nn.BatchNorm1d(3)
    layout = Genome(nn.Sequential(norm, norm)).layout
    assert layout.aliases["1.num_batches_tracked"] == "0.num_batches_tracked"
    assert layout.size == 3 * 4 + 2


# Bits ---------------------------------------------------------------------------------------------


def test_making_a_genome_leaves_the_network_as_it_was() -> None:
    module, twin = everything(), everything()
    Genome(module)
    assert_same_bits(state(module), state(twin))
    inputs = torch.tensor([0, 1, 2])
    torch.testing.assert_close(module.eval()(inputs), twin.eval()(inputs), rtol=0, atol=0)


def test_what_is_stored_comes_back_bit_for_bit() -> None:
    genome = Genome(everything())
    train_a_little(genome.module)
    before, weights = state(genome.module), genome.store()
    assert weights.dtype == np.float32
    assert weights.shape == (genome.layout.size,)
    train_a_little(genome.module)
    assert genome.store().tobytes() != weights.tobytes()
    genome.load(weights)
    assert_same_bits(state(genome.module), before)
    assert genome.store().tobytes() == weights.tobytes()
    assert genome.module.get_buffer("norm.num_batches_tracked").item() == 3


@given(st.data())
def test_any_bits_of_integer_buffers_survive(data: st.DataObject) -> None:
    genome = Genome(everything())
    steps = data.draw(st.integers(-(2**63), 2**63 - 1))
    small = data.draw(st.lists(st.integers(0, 255), min_size=5, max_size=5))
    genome.module.get_buffer("steps").fill_(steps)
    genome.module.get_buffer("bytes_").copy_(torch.tensor(small, dtype=torch.uint8))
    weights = genome.store()
    other = Genome(everything())
    other.load(weights)
    assert other.module.get_buffer("steps").item() == steps
    assert other.module.get_buffer("bytes_").tolist() == small
    assert other.store().tobytes() == weights.tobytes()


def test_loading_reads_the_vector_and_keeps_no_hold_of_it() -> None:
    genome = Genome(everything())
    weights = genome.store()
    first = weights.tobytes()
    train_a_little(genome.module)
    assert weights.tobytes() == first, "a stored vector is a copy"
    genome.load(weights)
    weights[:] = 0.0
    assert genome.store().tobytes() == first


def test_loading_also_changes_tied_and_scalar_tensors() -> None:
    genome = Genome(everything())
    weights = genome.store()
    weights[: genome.layout.num_parameters] = 2.0
    genome.load(weights)
    module = genome.module
    assert isinstance(module, Everything)
    assert module.output.weight is module.embedding.weight
    assert module.output.weight.unique().tolist() == [2.0]
    assert module.scale.item() == 2.0


def test_a_buffer_that_is_not_in_the_state_does_not_pass_to_the_next_individual() -> None:
    genome = Genome(everything())
    genome.module.get_buffer("scratch").fill_(5.0)
    genome.load(different(genome.store()) * 0)
    assert genome.module.get_buffer("scratch").tolist() == [1.0, 1.0, 1.0]


def test_weights_of_a_network_are_those_of_its_genome() -> None:
    assert weights_of(everything()).tobytes() == Genome(everything()).store().tobytes()


# Views --------------------------------------------------------------------------------------------


def test_what_is_written_to_flat_is_in_the_network_and_the_other_way_round() -> None:
    genome = Genome(everything())
    scale, mean = (
        genome.module.get_parameter("scale"),
        genome.module.get_buffer("norm.running_mean"),
    )
    genome.flat[0] = 9.0
    assert scale.item() == 9.0
    genome.floating_buffers()[:4] = 3.0
    assert mean.tolist() == [3.0] * 4
    with torch.no_grad():
        scale.fill_(-1.0)
    assert genome.flat[0].item() == -1.0
    train_a_little(genome.module)
    assert genome.flat[0].item() == scale.item() != -1.0


def test_integer_buffers_follow_flat_when_told() -> None:
    source, target = Genome(everything()), Genome(everything())
    source.module.get_buffer("steps").fill_(123)
    source.gather()
    target.flat.copy_(source.flat)
    target._read_integers()
    assert target.module.get_buffer("steps").item() == 123


def test_gather_takes_over_tensors_that_were_given_other_memory() -> None:
    genome = Genome(everything())
    scale = genome.module.get_parameter("scale")
    scale.data = torch.tensor(4.0)
    norm = genome.module.get_submodule("norm")
    norm.running_mean = torch.full((4,), 6.0)  # another buffer object
    genome.module.steps = torch.tensor(8)
    weights = genome.store()
    assert weights[0] == 4.0
    assert weights[34:38].tolist() == [6.0] * 4
    assert weights[43:45].view(np.int64).tolist() == [8]
    genome.flat[0] = 5.0
    genome.floating_buffers()[:4] = 7.0
    assert scale.item() == 5.0
    assert genome.module.get_buffer("norm.running_mean").tolist() == [7.0] * 4


def test_loading_after_tensors_were_given_other_memory_reaches_the_network() -> None:
    genome = Genome(everything())
    weights, before = genome.store(), state(genome.module)
    for tensor in (*genome.module.parameters(), *genome.module.buffers()):
        tensor.data = torch.zeros_like(tensor)
    genome.module.get_submodule("norm").running_var = torch.zeros(4)
    genome.load(weights)
    assert_same_bits(state(genome.module), before)


def test_an_optimizer_made_before_goes_on_with_the_loaded_weights() -> None:
    genome = Genome(everything())
    weights = genome.store()
    optimizer = torch.optim.SGD(genome.parameters.values(), lr=0.5)
    train_a_little(genome.module)
    genome.load(weights)
    optimizer.zero_grad()
    genome.module.get_parameter("scale").grad = torch.tensor(1.0)
    optimizer.step()
    assert genome.store()[0] == weights[0] - 0.5


def test_a_copied_network_has_memory_of_its_own() -> None:
    genome = Genome(everything())
    twin = copy.deepcopy(genome.module)
    genome.flat[0] = 77.0
    assert twin.get_parameter("scale").item() == 1.5


# Refused ------------------------------------------------------------------------------------------


def with_buffer(dtype: torch.dtype) -> nn.Module:
    module = nn.Linear(2, 2)
    module.register_buffer("extra", torch.zeros(2, dtype=dtype))
    return module


@pytest.mark.parametrize(
    ("module", "fragments"),
    [
        (nn.Linear(2, 2).double(), ("weight", "torch.float64", "model.float()")),
        (nn.Linear(2, 2).half(), ("weight", "torch.float16")),
        (nn.Linear(2, 2, dtype=torch.complex64), ("weight", "torch.complex64")),
        (with_buffer(torch.float64), ("extra", "torch.float64")),
        (with_buffer(torch.bfloat16), ("extra", "torch.bfloat16")),
        (nn.ReLU(), ("no parameters",)),
        (nn.BatchNorm1d(3, affine=False), ("no parameters",)),
    ],
    ids=[
        "float64 parameter",
        "float16 parameter",
        "complex parameter",
        "float64 buffer",
        "bfloat16 buffer",
        "no tensors",
        "buffers alone",
    ],
)
def test_networks_that_cannot_be_a_population_are_refused(
    module: nn.Module, fragments: tuple[str, ...]
) -> None:
    with pytest.raises(InputError) as caught:
        Genome(module)
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.mark.parametrize(
    "module",
    [
        nn.LSTM(3, 4, num_layers=2),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.PReLU()),
        nn.ParameterDict(
            {"none": nn.Parameter(torch.empty(0)), "one": nn.Parameter(torch.ones(1))}
        ),
        nn.MultiheadAttention(4, 2),
    ],
    ids=["lstm", "convolution", "empty", "attention"],
)
def test_other_networks_make_the_round_trip(module: Any) -> None:
    genome = Genome(module)
    before, weights = state(module), genome.store()
    genome.load(np.ones_like(weights))
    genome.load(weights)
    assert_same_bits(state(module), before)
