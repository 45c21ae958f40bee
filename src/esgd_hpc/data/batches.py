"""Which samples make up which batch, and how they come out of a task's data.

Which: lists of indices, the same however many ranks share them. How: in-memory tensors by index,
Datasets through torch's DataLoader. Neither draws a random number.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from esgd_hpc.data.store import Stored
from esgd_hpc.errors import InputError

Batch = Any
"""What the data gives: a tuple of tensors for in-memory data, else what the collation returns."""

Data = Sequence[Any] | Dataset[Any]
"""Tensors of equal first dimension, all in memory (fast), or datasets of a prepared file, which
become such tensors before a run begins, or any map-style torch Dataset."""

Indices = npt.NDArray[np.int64]
"""Places of samples in the data, shape [n]."""


class Step(NamedTuple):
    """What one rank does in one optimizer step of an epoch."""

    samples: Any
    """Its part of the global batch; for the usual batching, places of samples in the data."""
    share: float
    """The part's share of the global batch's samples; 0 where the rank has none."""
    learning_rate_scale: float = 1.0


# Which --------------------------------------------------------------------------------------------


def training_shards(
    order: Indices, batch_size: int, rank: int, size: int
) -> list[tuple[Indices, int]]:
    """Return, for each step of an epoch, this rank's samples and the size of the global batch.

    Global batch b is order[b B : (b + 1) B] whatever the size of the group, the last one may be
    smaller. Its ranks take consecutive parts whose sizes differ by at most one; a part may be
    empty, but every rank has the same number of steps.
    """
    shards = []
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        share, more = divmod(len(batch), size)
        first = rank * share + min(rank, more)
        shards.append((batch[first : first + share + (rank < more)], len(batch)))
    return shards


def fixed_batches(num_samples: int, batch_size: int) -> list[Indices]:
    """Return the batches for scoring: all samples in their order, the last batch may be smaller."""
    return [
        np.arange(start, min(start + batch_size, num_samples), dtype=np.int64)
        for start in range(0, num_samples, batch_size)
    ]


# How ----------------------------------------------------------------------------------------------


def length(data: Data, name: str = "data of the task") -> int:
    """Return the number of samples. Raises InputError, with the name, for unusable data."""
    if isinstance(data, Tensor):
        raise InputError(f"{name}: a single tensor; put it into a tuple: (tensor,)")
    if isinstance(data, list | tuple):
        return _common_length(data, name)
    if isinstance(data, IterableDataset) or not hasattr(data, "__getitem__"):
        raise InputError(
            f"{name}: {type(data).__name__} cannot be indexed;"
            " give a tuple of tensors or a Dataset with __len__ and __getitem__"
        )
    try:
        num_samples = len(data)  # type: ignore[arg-type]
    except Exception as error:
        raise InputError(
            f"{name}: {type(data).__name__} does not tell its length"
            f" ({type(error).__name__}: {error}); give it a __len__"
        ) from error
    if num_samples < 1:
        raise InputError(f"{name}: {type(data).__name__} has no samples; give it at least one")
    return num_samples


def _common_length(data: Sequence[Any], name: str) -> int:
    if not data:
        raise InputError(f"{name}: no tensors; give at least one")
    for part in data:
        if not isinstance(part, Tensor | Stored):
            raise InputError(
                f"{name}: {type(part).__name__} among the tensors;"
                " convert it with torch.as_tensor, or give a Dataset"
            )
    lengths = [tensor.shape[0] if tensor.shape else 0 for tensor in data]
    if min(lengths) < 1 or len(set(lengths)) > 1:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in data)
        raise InputError(
            f"{name}: tensors of shapes {shapes}; give them one equal first dimension of at least 1"
        )
    return lengths[0]


def to_device(data: Data, device: torch.device) -> Data:
    """Return in-memory tensors on the device, once and for all; a Dataset as it is."""
    if _in_memory(data):
        return tuple(tensor.to(device) for tensor in data)
    return data


def is_missing(data: Data) -> bool:
    """Whether the data is of a prepared file that is not there."""
    return isinstance(data, list | tuple) and any(
        isinstance(part, Stored) and part.shape is None for part in data
    )


def fetch(
    data: Data, index_lists: Sequence[Indices], device: torch.device
) -> Iterator[Batch | None]:
    """Yield the batch of each index list on the device, None for an empty list.

    In-memory tensors give tuples, always copies, so that a task may change a batch in place;
    Datasets give what torch's default collation makes of their samples.
    """
    if _in_memory(data):
        for indices in index_lists:
            yield _select(data, indices, device) if len(indices) else None
        return
    # With a generator of its own the loader leaves torch's global one alone.
    loader: DataLoader[Any] = DataLoader(
        cast(Dataset[Any], data),
        batch_sampler=[indices.tolist() for indices in index_lists if len(indices)],
        generator=torch.Generator(),
    )
    batches = iter(loader)
    for indices in index_lists:
        yield _moved(next(batches), device) if len(indices) else None


def _in_memory(data: Data) -> TypeGuard[Sequence[Tensor]]:
    return isinstance(data, list | tuple)


def _select(data: Sequence[Tensor], indices: Indices, device: torch.device) -> tuple[Tensor, ...]:
    index = torch.from_numpy(indices).to(data[0].device)
    return tuple(tensor.index_select(0, index).to(device) for tensor in data)


def _moved(batch: Any, device: torch.device) -> Any:
    """Return the batch with all tensors in its tuples, lists and mappings on the device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: _moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_moved(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(_moved(value, device) for value in batch)
    return batch
