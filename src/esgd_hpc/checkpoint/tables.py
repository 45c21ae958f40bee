"""How a list of records becomes columns of an HDF5 group, one row a record, and back.

The types of the fields say how each is stored: numbers as they are, truth and words of a known set
as int8 flags, texts with a fixed length, lists of uids padded with -1, mappings as JSON. A record
in a record lies flat beside its other fields. All columns share one dimension scale, so that xarray
opens the group.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin

import h5py
import msgspec
import numpy as np

from esgd_hpc.checkpoint import hdf5
from esgd_hpc.errors import InputError

TRUTH = ("false", "true")
PARENT = "parent"
"""Dimension of lists of uids."""
NO_UID = "-1 where there is none"
"""What viewers say of -1 among uids."""

R = TypeVar("R", bound=msgspec.Struct)


def write_table(
    group: h5py.Group, dimension: str, kind: type[R], records: Sequence[R], num_parents: int = 1
) -> None:
    """Write the records into an empty group. Lists of uids get `num_parents` places or more."""
    rows = group.create_dataset(dimension, data=np.arange(len(records), dtype="<i8"))
    rows.make_scale(dimension)
    for name, field, path in _columns(kind):
        values = [_get(record, path) for record in records]
        column = _write_column(group, name, field, values, num_parents)
        column.dims[0].attach_scale(rows)


def read_table(group: h5py.Group, dimension: str, kind: type[R]) -> list[R]:
    """Return the records of a group from `write_table`. Raises InputError for anything else."""
    length = len(hdf5.read_array(group, dimension, "<i8"))
    columns = {name: _read_column(group, name, field, length) for name, field, _ in _columns(kind)}
    return [
        _record(kind, {n: values[row] for n, values in columns.items()}) for row in range(length)
    ]


def padded(lists: Sequence[Sequence[int]], at_least: int = 1) -> Any:
    """Return lists of uids as int64, shape [n, longest or `at_least`], padded with -1."""
    width = max([at_least, *map(len, lists)])
    rows = [[*uids, *[-1] * (width - len(uids))] for uids in lists]
    return np.asarray(rows, dtype="<i8").reshape(len(rows), width)


def describe_parents(column: h5py.Dataset, axis: int) -> None:
    """Name the axis of lists of uids in a column of a group, and say what the padding means."""
    group = column.parent
    if PARENT not in group:
        places = np.arange(column.shape[axis], dtype="<i8")
        group.create_dataset(PARENT, data=places).make_scale(PARENT)
    column.dims[axis].attach_scale(group[PARENT])
    column.attrs["comment"] = NO_UID


def _columns(kind: type, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    """Yield (name, type, path of attributes) of every stored field."""
    for field in msgspec.structs.fields(kind):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from _columns(field.type, (*path, field.name))
        else:
            yield field.name, field.type, (*path, field.name)


def _get(record: Any, path: Sequence[str]) -> Any:
    for name in path:
        record = getattr(record, name)
    return record


def _record(kind: type[R], values: dict[str, Any]) -> R:
    fields = {
        field.name: _record(field.type, values)
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)
        else values[field.name]
        for field in msgspec.structs.fields(kind)
    }
    return msgspec.convert(fields, kind)


def _write_column(
    group: h5py.Group, name: str, field: Any, values: list[Any], num_parents: int
) -> h5py.Dataset:
    if field is bool:
        return hdf5.write_flags(group, name, [int(value) for value in values], TRUTH)
    if get_origin(field) is Literal:
        words = get_args(field)
        return hdf5.write_flags(group, name, [words.index(value) for value in values], words)
    if field is int or field is float:
        dtype = "<i8" if field is int else "<f8"
        return group.create_dataset(name, data=np.asarray(values, dtype=dtype))
    if get_origin(field) is tuple:
        column = group.create_dataset(name, data=padded(values, num_parents))
        describe_parents(column, 1)
        return column
    if field is not str:
        values = [json.dumps(value) for value in values]
    hdf5.write_texts(group, name, values)
    return group[name]


def _read_column(group: h5py.Group, name: str, field: Any, length: int) -> list[Any]:
    if field is bool:
        return [word == "true" for word in hdf5.read_flags(group, name, length, TRUTH)]
    if get_origin(field) is Literal:
        return list(hdf5.read_flags(group, name, length, get_args(field)))
    if field is int or field is float:
        dtype = "<i8" if field is int else "<f8"
        return list(hdf5.read_array(group, name, dtype, (length,)).tolist())
    if get_origin(field) is tuple:
        width = len(hdf5.read_array(group, PARENT, "<i8"))
        rows = hdf5.read_array(group, name, "<i8", (length, width)).tolist()
        return [tuple(uid for uid in row if uid != -1) for row in rows]
    texts = hdf5.read_texts(group, name, length)
    return texts if field is str else [_from_json(group, name, text) for text in texts]


def _from_json(group: h5py.Group, name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{group.file.filename}: {name}: not JSON: {error}") from None
