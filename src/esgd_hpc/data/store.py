"""The file that `esgd data prepare` leaves: one HDF5 file a data set, whatever its origin.

    attributes     esgd_data (the version), name, and what else the preparation knows
    train/...      datasets of numbers, each with the CRC-32 of its bytes; samples come first
    validation/... test/...

A task names datasets of such a file (`Stored`); a run then reads each once per node.
"""

import errno
import json
import math
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

from esgd_hpc import pulse
from esgd_hpc.errors import InputError, RunError

FOLDER_VARIABLE = "ESGD_DATA"
_DEFAULT_FOLDER = "data"
_VERSION = 1
_MARK = "esgd_data"
_CHUNK_BYTES = 2**20
_WINDOW_BYTES = 2**26
_SPARE_BYTES = 2**26
"""Free space that a disk keeps: HDF5 ends the process when a disk refuses."""

Array = npt.NDArray[Any]


class Stored(NamedTuple):
    """One dataset of a prepared file, or some of its rows, not read yet."""

    file: Path
    name: str
    """Such as train/images."""
    shape: tuple[int, ...] | None
    """None where the file is missing."""
    dtype: np.dtype[Any] | None
    first: int = 0
    """Its first row's place in the dataset of the file."""
    data_set: str = ""
    """What `esgd data prepare` calls the whole file."""

    @property
    def num_bytes(self) -> int:
        """Its size in memory, 0 where the file is missing."""
        if self.shape is None or self.dtype is None:
            return 0
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> "Stored":
        """Return rows [start, stop) of these; they must be there. Itself where it is missing."""
        if self.shape is None:
            return self
        assert 0 <= start <= stop <= self.shape[0]
        return self._replace(shape=(stop - start, *self.shape[1:]), first=self.first + start)


@dataclass(frozen=True)
class Store:
    """What a prepared file says of itself. Make one with `open_store`."""

    file: Path
    data_set: str
    is_missing: bool
    attributes: Mapping[str, Any]
    datasets: Mapping[str, Stored]

    def __getitem__(self, name: str) -> Stored:
        """Return a dataset by its name; any name where the file is missing."""
        if self.is_missing:
            return Stored(self.file, name, None, None, data_set=self.data_set)
        if name not in self.datasets:
            raise InputError(
                f"{self.file}: has no {name}; it has {', '.join(sorted(self.datasets))};"
                " prepare it again with this version (`esgd data prepare`)"
            )
        return self.datasets[name]

    def has(self, name: str) -> bool:
        """Whether the file is there and has the dataset."""
        return name in self.datasets


# Where --------------------------------------------------------------------------------------------


def default_folder() -> Path:
    """Return the folder of prepared files: $ESGD_DATA, else `data` in the current folder."""
    return Path(os.environ.get(FOLDER_VARIABLE) or _DEFAULT_FOLDER)


def data_file(name: str, path: str = "") -> Path:
    """Return where the prepared file of a data set is: `path`, else NAME.h5 in the default folder.

    A `path` that is a folder stands for NAME.h5 in it.
    """
    place = Path(path) if path else default_folder()
    return place if place.suffix == ".h5" else place / f"{name}.h5"


def missing_data(stored: Stored) -> InputError:
    """Return the error for a file that is not there."""
    return InputError(
        f"{stored.file}: no such file; prepare the data with `esgd data prepare {stored.data_set}`"
        " (`esgd data list` says from what), or name its place in task_options.path or"
        f" {FOLDER_VARIABLE}"
    )


# Reading ------------------------------------------------------------------------------------------


def open_store(name: str, path: str = "") -> Store:
    """Return what the prepared file of a data set holds, without reading its numbers.

    See `data_file` for `path`. A missing file is no error yet: networks can be built without data.
    Raises InputError for a file that is none of ours, or of another data set.
    """
    if not isinstance(path, str):
        raise InputError(f"task_options.path = {path!r}: expected a file or folder in quotes")
    file = data_file(name, path)
    try:
        with h5py.File(file, "r", locking=False) as opened:
            attributes = {key: _plain(value) for key, value in opened.attrs.items()}
            if attributes.get(_MARK) != _VERSION or attributes.get("name") != name:
                raise InputError(
                    f'{file}: is no prepared data set "{name}" of version {_VERSION}, but'
                    f" {attributes.get('name', 'some other file')!r} of version"
                    f" {attributes.get(_MARK, 'unknown')}; run `esgd data prepare {name}`"
                )
            datasets: dict[str, Stored] = {}

            def visit(key: str, thing: Any) -> None:
                if isinstance(thing, h5py.Dataset):
                    datasets[key] = _checked(file, key, thing)._replace(data_set=name)

            opened.visititems(visit)
    except FileNotFoundError:
        return Store(file, name, True, {}, {})
    except OSError as error:
        raise InputError(
            f"{file}: cannot be read as a prepared data set ({error}); run `esgd data prepare"
            f" {name}` again"
        ) from None
    return Store(file, name, False, attributes, datasets)


def read_into(stored: Stored, out: Array) -> None:
    """Read a dataset into an array of its shape and type, and check its bytes.

    Where only some rows are asked for, all are read and checked, and those are kept. Raises
    InputError where the file is missing or damaged.
    """
    start, stop = stored.first, stored.first + len(out)
    try:
        with h5py.File(stored.file, "r", locking=False) as opened:
            dataset = opened[stored.name]
            fits = dataset.shape[1:] == out.shape[1:] and stop <= dataset.shape[0]
            if not fits or dataset.dtype != out.dtype:
                raise InputError(f"{stored.file}: {stored.name} changed while it was read")
            found = 0
            for window in _windows(dataset):
                pulse.progress()
                rows = dataset[window]
                found = zlib.crc32(_bytes_of(rows), found)
                low, high = max(window.start, start), min(window.stop, stop)
                if low < high:
                    kept = rows[low - window.start : high - window.start]
                    out[low - start : high - start] = kept
            wanted = int(dataset.attrs["crc32"])
    except FileNotFoundError:
        raise missing_data(stored) from None
    except (OSError, KeyError) as error:
        raise InputError(f"{stored.file}: {stored.name} cannot be read: {error}") from None
    if found != wanted:
        raise InputError(
            f"{stored.file}: {stored.name} is damaged: its CRC-32 is {found:08x}, not {wanted:08x};"
            f" run `esgd data prepare {stored.data_set}` again"
        )


def read(stored: Stored) -> Array:
    """Return a dataset. Raises InputError where the file is missing or damaged."""
    if stored.shape is None or stored.dtype is None:
        raise missing_data(stored)
    out = np.empty(stored.shape, stored.dtype)
    read_into(stored, out)
    return out


def _checked(file: Path, name: str, dataset: h5py.Dataset) -> Stored:
    plain = dataset.dtype.kind in "iufb" and not dataset.external and not dataset.is_virtual
    if not plain or "crc32" not in dataset.attrs or not dataset.shape:
        raise InputError(f"{file}: {name} was not written by `esgd data prepare`; prepare it again")
    return Stored(file, name, dataset.shape, dataset.dtype)


def _plain(value: Any) -> Any:
    """Return an attribute as Python's text, number or decoded JSON."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str) and value[:1] in "[{":
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value.item() if isinstance(value, np.generic) else value


# Writing ------------------------------------------------------------------------------------------


class StoreWriter:
    """Writes a prepared file; see `writing`."""

    def __init__(self, opened: h5py.File, path: Path) -> None:
        self._file = opened
        self._path = path
        self._sums: dict[str, int] = {}

    def append(self, name: str, rows: npt.ArrayLike) -> None:
        """Add rows, shape [n, ...], to a dataset, which the first call makes."""
        array = np.ascontiguousarray(rows)
        free = shutil.disk_usage(self._path.parent).free
        if free < array.nbytes + _SPARE_BYTES:
            raise RunError(f"{self._path}: {os.strerror(errno.ENOSPC)}; make room and start again")
        if name not in self._sums:
            row_bytes = max(1, math.prod(array.shape[1:]) * array.itemsize)
            self._file.create_dataset(
                name,
                shape=(0, *array.shape[1:]),
                maxshape=(None, *array.shape[1:]),
                chunks=(max(1, _CHUNK_BYTES // row_bytes), *array.shape[1:]),
                dtype=array.dtype,
            )
            self._sums[name] = 0
        dataset = self._file[name]
        before = dataset.shape[0]
        dataset.resize(before + len(array), axis=0)
        dataset[before:] = array
        self._sums[name] = zlib.crc32(_bytes_of(array), self._sums[name])

    def note(self, **attributes: Any) -> None:
        """Keep texts, numbers, lists or tables of them with the file."""
        for key, value in attributes.items():
            plain = value if isinstance(value, str | int | float) else json.dumps(value)
            self._file.attrs[key] = plain

    def finish(self) -> None:
        """Write the sums."""
        for name, crc in self._sums.items():
            self._file[name].attrs["crc32"] = crc


@contextmanager
def writing(file: Path, name: str) -> Iterator[StoreWriter]:
    """Write the prepared file of a data set for a `with` block; it appears whole or not at all.

    Raises RunError where the disk refuses.
    """
    new = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(new, "w", libver=("v110", "v110")) as opened:
            opened.attrs[_MARK] = _VERSION
            opened.attrs["name"] = name
            writer = StoreWriter(opened, file)
            yield writer
            writer.finish()
        with open(new, "rb") as written:
            os.fsync(written.fileno())
        new.replace(file)
    except OSError as error:
        raise RunError(f"{file}: cannot be written: {error}") from None
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)


def _windows(array: Array) -> Iterator[slice]:
    row_bytes = max(1, array.nbytes // max(1, len(array)))
    step = max(1, _WINDOW_BYTES // row_bytes)
    for start in range(0, len(array), step):
        yield slice(start, min(start + step, len(array)))


def _bytes_of(array: Array) -> bytes:
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))  # type: ignore
