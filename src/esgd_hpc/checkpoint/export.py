"""How one individual's flat vector becomes the tensors of an ordinary weights file, and back.

Reads and makes NumPy arrays; only a .pt file needs torch. What is known of the tensors lies beside
them as plain texts, and comes back with

    safetensors.safe_open("best.safetensors", "np").metadata()
    torch.load("best.pt", weights_only=True)._metadata[".esgd"]

the latter where torch itself keeps the versions of modules. No module can be called ".esgd", for
torch allows no dot in a name, so `load_state_dict` never looks at it.
"""

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from esgd_hpc.checkpoint.reader import Checkpoint
from esgd_hpc.errors import InputError, RunError
from esgd_hpc.layout import Entry, Layout
from esgd_hpc.population import Weights

Arrays = dict[str, npt.NDArray[Any]]
"""State-dict name to array."""

ENDINGS = (".safetensors", ".pt")

METADATA_KEY = ".esgd"
"""Key of a .pt file's `_metadata`, a mapping of module names to mappings."""


# From a vector ------------------------------------------------------------------------------------


def state_dict_arrays(layout: Layout, vector: Weights) -> Arrays:
    """Return every tensor of the network, tied ones under each of their names.

    Integer buffers get their own type back. The arrays are copies; those of tied names are one.
    """
    arrays = {entry.name: _array(entry, vector) for entry in layout.entries}
    return arrays | {alias: arrays[name] for alias, name in layout.aliases.items()}


def _array(entry: Entry, vector: Weights) -> npt.NDArray[Any]:
    places = vector[entry.offset : entry.offset + entry.size]
    if entry.kind != "integer":
        return places.reshape(entry.shape).copy()
    used = int(np.prod(entry.shape, dtype=np.int64)) * np.dtype(entry.dtype).itemsize
    return np.frombuffer(places.tobytes()[:used], entry.dtype).reshape(entry.shape).copy()


def average_weights(checkpoint: Checkpoint, uids: Sequence[int], fittest: int) -> Weights:
    """Return the recombination of these individuals, shape [P], as `evolution.operators` makes it.

    Parameters and floating buffers are the mean, added up in uid order; integer buffers are those
    of `fittest`, one of the uids. Holds two vectors, however many are averaged.
    """
    end = checkpoint.layout.num_floats
    average = np.empty(checkpoint.layout.size, dtype=np.float32)
    for place, uid in enumerate(sorted(uids)):
        weights = checkpoint.read_weights([uid])[uid]
        if place == 0:
            average[:end] = weights[:end]
        else:
            average[:end] += weights[:end]
        if uid == fittest:
            average[end:] = weights[end:]
        del weights  # before the next is read
    if len(uids) > 1:
        average[:end] /= np.float32(len(uids))
    return average


def write_state_dict(path: Path, arrays: Arrays, metadata: Mapping[str, str]) -> None:
    """Write a .safetensors or a .pt file of tensors, with metadata, in one step.

    A .pt file loads with `torch.load(path, weights_only=True)`. An existing file is replaced.
    Raises InputError for another ending or a missing folder, RunError where the disk refuses.
    """
    if path.suffix not in ENDINGS:
        raise InputError(f"{path}: the name must end in {' or '.join(ENDINGS)}")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it first")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file")
    new = path.with_name(path.name + ".tmp")
    try:
        if path.suffix == ".pt":
            _write_torch(new, arrays, metadata)
        else:
            new.write_bytes(safetensors.numpy.save(arrays, dict(metadata)))
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(path)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            new.unlink()
        raise RunError(f"{path}: cannot be written: {error}") from None


def _write_torch(path: Path, arrays: Arrays, metadata: Mapping[str, str]) -> None:
    import torch

    tensors = {id(array): torch.from_numpy(array) for array in arrays.values()}
    state = OrderedDict((name, tensors[id(array)]) for name, array in arrays.items())
    state._metadata = OrderedDict({METADATA_KEY: dict(metadata)})  # type: ignore[attr-defined]
    torch.save(state, path)


# To a vector --------------------------------------------------------------------------------------


def read_state_dict(path: Path) -> Arrays:
    """Return the arrays of a .safetensors file. Raises InputError where it is not one."""
    if path.suffix != ".safetensors":
        raise InputError(
            f"{path}: only .safetensors files are read; `safetensors.torch.save_model` writes one"
        )
    try:
        return safetensors.numpy.load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # safetensors and the types that NumPy lacks raise many kinds
        raise InputError(f"{path}: not a .safetensors file that can be read: {error}") from None


def read_back(path: Path) -> Arrays:
    """Return the arrays of a file that `write_state_dict` has written."""
    if path.suffix != ".pt":
        return read_state_dict(path)
    import torch

    return {name: t.numpy() for name, t in torch.load(path, weights_only=True).items()}


def vector_from(layout: Layout, arrays: Mapping[str, npt.NDArray[Any]], source: str) -> Weights:
    """Return the flat vector, shape [P], of a network given as named arrays.

    Tied tensors may come under any of their names. Missing integer buffers are 0. Raises
    InputError that starts with `source` and names what is missing, unexpected or of another shape.
    """
    found: Arrays = {}
    for name, array in arrays.items():
        first = layout.aliases.get(name, name)
        if first in found and not np.array_equal(found[first], array, equal_nan=True):
            raise InputError(
                f"{source}: {name} and {first} are one tensor of the model, but differ"
            )
        found[first] = array
    names = {entry.name for entry in layout.entries}
    needed = {entry.name for entry in layout.entries if entry.kind != "integer"}
    problems = []
    if needed - found.keys():
        problems.append(f"missing {_listed(needed - found.keys())}")
    if found.keys() - names:
        problems.append(f"unexpected {_listed(found.keys() - names)}")
    if problems:
        raise InputError(f"{source}: not the weights of this model: {'; '.join(problems)}")
    vector = np.zeros(layout.size, dtype=np.float32)
    for entry in layout.entries:
        if entry.name in found:
            vector[entry.offset : entry.offset + entry.size] = _places(
                entry, found[entry.name], source
            )
    return vector


def _places(entry: Entry, array: npt.NDArray[Any], source: str) -> npt.NDArray[np.float32]:
    """Return the float32 places of one entry, shape [size]."""
    if array.shape != entry.shape:
        raise InputError(
            f"{source}: {entry.name} has shape {list(array.shape)},"
            f" the model's has {list(entry.shape)}"
        )
    kinds, what = ("iubc", "whole numbers") if entry.kind == "integer" else ("f", "floating point")
    if array.dtype.kind not in kinds:
        raise InputError(f"{source}: {entry.name} is {array.dtype}, the model's is {what}")
    if entry.kind != "integer":
        return array.astype(np.float32).reshape(-1)
    values = array.astype(entry.dtype)
    if not np.array_equal(values, array):
        raise InputError(f"{source}: {entry.name} has values that {entry.dtype} cannot hold")
    return np.frombuffer(values.tobytes().ljust(4 * entry.size, b"\0"), dtype=np.float32)


def _listed(names: set[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if shown[5:] else "")
