"""Batches are composed as promised and alike for both kinds of data; IDX files are read whole."""

import gzip
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from esgd_hpc.data.batches import Indices, fetch, fixed_batches, length, to_device, training_shards
from esgd_hpc.data.idx import read_idx
from esgd_hpc.errors import InputError
from esgd_hpc.tasks.base import Data

CPU = torch.device("cpu")

# Which samples ------------------------------------------------------------------------------------


@given(
    num_samples=st.integers(1, 200),
    batch_size=st.integers(1, 64),
    size=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_ranks_share_each_global_batch(
    num_samples: int, batch_size: int, size: int, seed: int
) -> None:
    order = np.random.default_rng(seed).permutation(num_samples)
    ranks = [training_shards(order, batch_size, rank, size) for rank in range(size)]
    num_steps = -(-num_samples // batch_size)
    assert [len(shards) for shards in ranks] == [num_steps] * size
    for step in range(num_steps):
        batch = order[step * batch_size : (step + 1) * batch_size]
        parts = [shards[step][0] for shards in ranks]
        assert np.array_equal(np.concatenate(parts), batch)
        for part, expected in zip(parts, np.array_split(batch, size), strict=True):
            assert np.array_equal(part, expected)
            assert part.dtype == np.int64
        assert {shards[step][1] for shards in ranks} == {len(batch)}


@given(num_samples=st.integers(0, 300), batch_size=st.integers(1, 350))
def test_scoring_goes_once_through_all_samples_in_order(num_samples: int, batch_size: int) -> None:
    batches = fixed_batches(num_samples, batch_size)
    assert [i for batch in batches for i in batch] == list(range(num_samples))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all(0 < len(batch) <= batch_size and batch.dtype == np.int64 for batch in batches)


# How they come out --------------------------------------------------------------------------------


class Samples(Dataset[tuple[Tensor, int]]):
    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        assert type(index) is int
        return self.inputs[index], int(self.targets[index])


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@pytest.fixture
def tensors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(20, 3, generator=generator), torch.arange(20)


def batches(data: Data, index_lists: Sequence[Indices], device: torch.device = CPU) -> list[Any]:
    return list(fetch(data, index_lists, device))


def lists(*indices: Sequence[int]) -> list[Indices]:
    return [np.array(part, dtype=np.int64) for part in indices]


INDEX_LISTS = lists([3, 1, 19], [], [4, 5, 6, 7], [0], [])


def test_datasets_give_the_batches_that_tensors_give(tensors: tuple[Tensor, Tensor]) -> None:
    from_tensors = batches(tensors, INDEX_LISTS)
    from_dataset = batches(Samples(*tensors), INDEX_LISTS)
    assert [batch is None for batch in from_tensors] == [False, True, False, False, True]
    for indices, one, other in zip(INDEX_LISTS, from_tensors, from_dataset, strict=True):
        if len(indices) == 0:
            assert one is None
            assert other is None
            continue
        expected = [tensor[torch.from_numpy(indices)] for tensor in tensors]
        for batch in (one, other):
            assert len(batch) == 2
            for part, wanted in zip(batch, expected, strict=True):
                assert torch.equal(part, wanted)
                assert part.dtype == wanted.dtype


@pytest.mark.parametrize("kind", [tuple, list])
def test_changing_a_batch_in_place_leaves_the_data_alone(
    tensors: tuple[Tensor, Tensor], kind: Callable[[Any], Any]
) -> None:
    before = tensors[0].clone()
    for inputs, _ in batches(kind(tensors), [*fixed_batches(20, 8), *lists([5])]):
        inputs.zero_()
    assert torch.equal(tensors[0], before)


def test_fetching_draws_no_random_number(tensors: tuple[Tensor, Tensor]) -> None:
    before = torch.get_rng_state()
    for data in (tensors, Samples(*tensors)):
        assert len(batches(data, fixed_batches(20, 6))) == 4
    assert torch.equal(torch.get_rng_state(), before)


def test_only_empty_lists_give_no_batches(tensors: tuple[Tensor, Tensor]) -> None:
    for data in (tensors, Samples(*tensors)):
        assert batches(data, lists([], [])) == [None, None]
        assert batches(data, []) == []


def test_an_error_of_the_dataset_comes_through(tensors: tuple[Tensor, Tensor]) -> None:
    class Broken(Samples):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            raise OSError("no such picture")

    with pytest.raises(OSError, match="no such picture"):
        batches(Broken(*tensors), INDEX_LISTS)


def test_tensors_are_moved_wherever_they_are_in_a_batch() -> None:
    class Nested(Dataset[Any]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Any:
            value = torch.tensor([float(index)])
            return {"pair": Pair(value, -value), "list": [value, (value,)], "name": f"n{index}"}

    (batch,) = batches(Nested(), lists([2, 0]), torch.device("meta"))
    assert isinstance(batch["pair"], Pair)
    moved = [*batch["pair"], batch["list"][0], batch["list"][1][0]]
    assert [(tensor.device.type, tuple(tensor.shape)) for tensor in moved] == [("meta", (2, 1))] * 4
    assert batch["name"] == ["n2", "n0"]


def test_in_memory_tensors_move_once(tensors: tuple[Tensor, Tensor]) -> None:
    same = to_device(tensors, CPU)
    assert isinstance(same, tuple)
    assert same[0] is tensors[0]
    moved = to_device(list(tensors), torch.device("meta"))
    assert isinstance(moved, tuple)
    assert [tensor.device.type for tensor in moved] == ["meta", "meta"]
    dataset = Samples(*tensors)
    assert to_device(dataset, torch.device("meta")) is dataset


# Length -------------------------------------------------------------------------------------------


def test_length_counts_samples(tensors: tuple[Tensor, Tensor]) -> None:
    assert length(tensors) == length(list(tensors)) == length(Samples(*tensors)) == 20


class NoLength(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return index


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([1])


UNUSABLE: dict[str, tuple[Any, str]] = {
    "one tensor": (torch.zeros(3), r"put it into a tuple"),
    "no tensors": ((), r"give at least one"),
    "an array": ((torch.zeros(3), np.zeros(3)), r"ndarray.*torch\.as_tensor"),
    "unequal": ((torch.zeros(3, 2), torch.zeros(4)), r"\[3, 2\], \[4\].*equal first dimension"),
    "scalar": ((torch.tensor(1.0),), r"shapes \[\]"),
    "empty tensors": ((torch.zeros(0, 2),), r"\[0, 2\]"),
    "no length": (NoLength(), r"NoLength does not tell its length .*__len__"),
    "iterable": (Endless(), r"Endless cannot be indexed"),
    "a number": (7, r"int cannot be indexed"),
    "empty dataset": (Samples(torch.zeros(0), torch.zeros(0)), r"Samples has no samples"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_data_are_refused(case: str) -> None:
    data, message = UNUSABLE[case]
    with pytest.raises(InputError, match=f"^training data: .*{message}"):
        length(data, "training data")


# IDX ----------------------------------------------------------------------------------------------


def idx(array: npt.NDArray[np.uint8]) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@given(
    array=st_numpy.arrays(np.uint8, st_numpy.array_shapes(min_dims=1, max_dims=4, max_side=5)),
    packed=st.booleans(),
)
def test_idx_round_trip(
    tmp_path_factory: pytest.TempPathFactory, array: npt.NDArray[np.uint8], packed: bool
) -> None:
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    result = read_idx(path)
    assert result.dtype == np.uint8
    assert np.array_equal(result, array)


WHOLE = idx(np.arange(60, dtype=np.uint8).reshape(3, 4, 5))
WHOLE_GZ = gzip.compress(WHOLE)
MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"starts with ''"),
    "two bytes": (b"\0\0", r"starts with '00 00'"),
    "text": (b"P5 28 28 255", r"not with the 00 00 of IDX"),
    "float32": (b"\0\0\x0d\x01" + bytes(8), r"type 0x0d, not 0x08"),
    "no dimensions": (b"\0\0\x08\0\0", r"0 dimensions"),
    "many dimensions": (b"\0\0\x08\xff" + b"\0\0\0\1" * 255 + b"x", r"255 dimensions"),
    "half a header": (WHOLE[:9], r"ends inside the header"),
    "no data": (struct.pack(">HBBI", 0, 8, 1, 0), r"shape \[0\] is 0 bytes"),
    "absurd": (struct.pack(">HBB3I", 0, 8, 3, *[2**32 - 1] * 3), r"bytes, not from 1 to"),
    "absurd times 0": (struct.pack(">HBB3I", 0, 8, 3, 0, 2**32 - 1, 9), r"0 bytes, not from 1"),
    "truncated": (WHOLE[:-1], r"60 bytes, but only 59 follow"),
    "longer": (WHOLE + b"x", r"60 bytes, but more follow"),
    "truncated gzip": (WHOLE_GZ[:-9], r"gzip stream is damaged"),
    "wrong check sum": (WHOLE_GZ[:-8] + b"\1\2\3\4" + WHOLE_GZ[-4:], r"gzip stream is damaged"),
    "wrong deflate": (WHOLE_GZ[:10] + b"\xff" * 30, r"gzip stream is damaged"),
    "rest after gzip": (WHOLE_GZ + b"rest", r"gzip stream is damaged"),
    "longer gzip": (gzip.compress(WHOLE + b"x"), r"60 bytes, but more follow"),
    "two gzips": (WHOLE_GZ + WHOLE_GZ, r"60 bytes, but more follow"),
    "text in gzip": (gzip.compress(b"some text"), r"not with the 00 00 of IDX"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_idx_is_refused(case: str, tmp_path: Path) -> None:
    content, message = MALFORMED[case]
    path = tmp_path / "train-images"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"train-images: .*{message}.*; get the file again$"):
        read_idx(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone: no such file; check the folder"):
        read_idx(tmp_path / "gone")
    with pytest.raises(InputError, match=r"cannot be read: Is a directory"):
        read_idx(tmp_path)


def test_a_gzip_bomb_is_not_decompressed(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(WHOLE + bytes(100_000_000), compresslevel=1))
    tracemalloc.start()
    with pytest.raises(InputError, match="but more follow"):
        read_idx(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000
