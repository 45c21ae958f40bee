"""How HDF5 files are made so that a full disk is an error, and read so that nothing is trusted.

Files have the format of HDF5 1.10, which every reader in use knows. They hold no filters and no
half floats, and are never locked: a published file does not change. What is read back has a fixed
length, also texts: HDF5 can loop for ever in a damaged heap of strings.
"""

import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from esgd_hpc.checkpoint import files
from esgd_hpc.errors import EsgdError, InputError

_VERSIONS = ("v110", "v110")
_NEW_FILE = {"libver": _VERSIONS, "locking": False}
_LARGE, _PAGE = 2**20, 2**12
"""Bytes from which an object begins at a page, and of a page."""


# Writing ------------------------------------------------------------------------------------------


@contextmanager
def creating(path: Path) -> Iterator[h5py.File]:
    """Make a file of moderate size for the length of a `with` block, then force it to disk.

    It is made in memory, so that HDF5 never meets an error of the disk, and then written. Raises
    RunError where the disk refuses.
    """
    content = io.BytesIO()
    with h5py.File(content, "w", **_NEW_FILE) as file:
        yield file
    files.write_file(path, content.getbuffer())


@contextmanager
def outlining(outline: "Outline") -> Iterator[h5py.File]:
    """Make a file for the length of a `with` block of which nothing is kept but the outline.

    Large datasets begin at a page of the disk. Nothing of it may be read in the block.
    """
    with h5py.File(
        outline, "w", **_NEW_FILE, alignment_threshold=_LARGE, alignment_interval=_PAGE
    ) as file:
        yield file


class Outline:
    """Which bytes HDF5 writes of a file, and where.

    Space that it only allocates costs nothing. HDF5 meets no disk here: it crashes the process when
    one of its writes fails (no space left, quota).
    """

    def __init__(self) -> None:
        self.parts: list[tuple[int, bytes]] = []
        """(offset, bytes) in the order written; a later part may replace an earlier one."""
        self.size = 0
        self._place = 0

    def write(self, data: Any) -> int:
        part = bytes(data)
        self.parts.append((self._place, part))
        self._place += len(part)
        self.size = max(self.size, self._place)
        return len(part)

    def truncate(self, size: int) -> int:
        self.size = size
        return size

    def read(self, size: int = -1) -> bytes:
        raise io.UnsupportedOperation("an outline cannot be read")

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = (
            offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.size}[whence]
        )
        return self._place

    def tell(self) -> int:
        return self._place

    def flush(self) -> None:
        """Do nothing: there is no buffer."""


def write_text(group: h5py.Group, name: str, text: str) -> None:
    """Write one text as a scalar dataset, which may be longer than an attribute."""
    _write_fixed_length(group, name, _fixed_length(text))


def write_texts(group: h5py.Group, name: str, texts: Sequence[str]) -> None:
    """Write a column of texts."""
    _write_fixed_length(group, name, _fixed_length(*texts).reshape(len(texts)))


def _write_fixed_length(group: h5py.Group, name: str, texts: npt.NDArray[np.bytes_]) -> None:
    dataset = group.create_dataset(name, data=texts)
    dataset.attrs["_Encoding"] = "utf-8"  # lets xarray show texts, not bytes


def write_text_attributes(group: h5py.Group, texts: Mapping[str, str]) -> None:
    """Write texts as attributes."""
    for name, text in texts.items():
        group.attrs[name] = _fixed_length(text)


def _fixed_length(*texts: str) -> npt.NDArray[np.bytes_]:
    """Return texts as UTF-8 of one length, of shape [] if there is one, [n] otherwise.

    What UTF-8 cannot hold, such as a command line in another encoding, is spelled out.
    """
    encoded = [text.encode(errors="backslashreplace") for text in texts]
    dtype = h5py.string_dtype("utf-8", max([1, *map(len, encoded)]))
    return np.array(encoded[0] if len(encoded) == 1 else encoded, dtype=dtype)


def write_flags(
    group: h5py.Group, name: str, values: npt.ArrayLike, meanings: Sequence[str]
) -> h5py.Dataset:
    """Write categories as int8 and say what they mean."""
    dataset = group.create_dataset(name, data=np.asarray(values, dtype="i1"))
    describe_flags(dataset, meanings)
    return dataset


def describe_flags(dataset: h5py.Dataset, meanings: Sequence[str], first: int = 0) -> None:
    """Say by the flag attributes of the CF conventions what `first` and the numbers after it mean.

    Meanings are single words.
    """
    dataset.attrs["flag_values"] = np.arange(first, first + len(meanings), dtype="i1")
    dataset.attrs["flag_meanings"] = " ".join(meanings)


# Reading ------------------------------------------------------------------------------------------


@contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """Open a file for the length of a `with` block.

    Whatever HDF5 or the block trips over becomes an InputError that names the file.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except EsgdError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0][:200]
        raise InputError(f"{path}: damaged, or not a file of esgd: {reason}") from None


def read_dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    """Return a dataset that lies in this very file and can be no larger than it.

    Raises InputError for what is missing, linked, virtual, external, filtered or oversized.
    """
    where = f"{group.file.filename}: {name}"
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise InputError(f"{where}: missing")
    dataset = group[name]
    if not isinstance(dataset, h5py.Dataset):
        raise InputError(f"{where}: not a dataset")
    elsewhere = dataset.is_virtual or dataset.external is not None
    if elsewhere or dataset.id.get_create_plist().get_nfilters():
        raise InputError(f"{where}: stored in another way than esgd stores it")
    claimed = math.prod(dataset.shape) * dataset.dtype.itemsize  # nbytes overflows
    if claimed > os.path.getsize(group.file.filename):
        raise InputError(f"{where}: claims {claimed} bytes, more than the file has")
    return dataset


def read_group(group: h5py.Group, name: str) -> h5py.Group:
    """Return a group that lies in this very file."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise InputError(f"{group.file.filename}: {name}: missing")
    found = group[name]
    if not isinstance(found, h5py.Group):
        raise InputError(f"{group.file.filename}: {name}: not a group")
    return found


def read_array(
    group: h5py.Group, name: str, dtype: str, shape: tuple[int, ...] | None = None
) -> npt.NDArray[Any]:
    """Return a dataset of numbers, which must have this type and this shape (None: any length)."""
    dataset = read_dataset(group, name)
    fits = dataset.ndim == 1 if shape is None else dataset.shape == shape
    if dataset.dtype != np.dtype(dtype) or not fits:
        raise InputError(
            f"{group.file.filename}: {name}: {dataset.dtype} of shape {dataset.shape},"
            f" expected {np.dtype(dtype)} of shape {shape if shape is not None else '[any]'}"
        )
    array: npt.NDArray[Any] = dataset[...]
    return array


def read_flags(group: h5py.Group, name: str, length: int, meanings: Sequence[str]) -> list[str]:
    """Return the meaning of each flag of a column from `write_flags`."""
    flags = read_array(group, name, "i1", (length,)).tolist()
    if any(not 0 <= flag < len(meanings) for flag in flags):
        raise InputError(f"{group.file.filename}: {name}: a flag without a meaning")
    return [meanings[flag] for flag in flags]


def read_text(group: h5py.Group, name: str) -> str:
    """Return a text from `write_text`."""
    return _texts(group, name, ())[0]


def read_texts(group: h5py.Group, name: str, length: int) -> list[str]:
    """Return a column from `write_texts`."""
    return _texts(group, name, (length,))


def _texts(group: h5py.Group, name: str, shape: tuple[int, ...]) -> list[str]:
    dataset = read_dataset(group, name)
    if dataset.dtype.kind != "S" or dataset.shape != shape:
        raise InputError(f"{group.file.filename}: {name}: not texts of shape {shape}")
    return [bytes(text).decode() for text in np.atleast_1d(dataset[()])]


def read_text_attributes(group: h5py.Group) -> dict[str, str]:
    """Return all attributes of a group that are from `write_text_attributes`."""
    return {
        name: bytes(group.attrs[name]).decode()
        for name in group.attrs
        if _has_kind(group, name, "S")
    }


def read_number(group: h5py.Group, name: str) -> int:
    """Return a whole number of at least 0 from an attribute."""
    if name not in group.attrs or not _has_kind(group, name, "iu") or group.attrs[name] < 0:
        raise InputError(f"{group.file.filename}: attribute {name}: not a whole number from 0")
    return int(group.attrs[name])


def read_seconds(group: h5py.Group, name: str) -> float:
    """Return a time from an attribute; 0 where it is missing or makes no sense."""
    if name not in group.attrs or not _has_kind(group, name, "f"):
        return 0.0
    seconds = float(group.attrs[name])
    return seconds if 0.0 <= seconds < math.inf else 0.0


def _has_kind(group: h5py.Group, name: str, kinds: str) -> bool:
    """Tell whether an attribute is one value of a kind, without reading it."""
    attribute = group.attrs.get_id(name)
    return attribute.shape == () and attribute.dtype.kind in kinds
