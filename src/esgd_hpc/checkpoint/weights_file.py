"""How the weights of one group lie in its leader file, and how each row is checked.

    weights [k, P]  float32, one individual a row, chunks of at most 4 MiB, no compression
    uid     [k]     int64
    crc32   [k]     uint32, zlib.crc32 of the bytes of each row

Rows are written from where they lie in memory and checked in pieces of a chunk, so that no second
row is ever held.
"""

import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from esgd_hpc.checkpoint import files, hdf5
from esgd_hpc.errors import InputError, RunError
from esgd_hpc.population import Weights

CHUNK_PLACES = 2**20
"""float32 places of a chunk: 4 MiB."""


def write_weights_file(path: Path, weights: Mapping[int, Weights], size: int) -> files.FileSum:
    """Write the rows in the order given, read them back from disk, and return the file's sum.

    `weights` is uid to vector of shape [size]. Raises RunError where the disk refuses, and
    where it returns other bytes than it was given.
    """
    rows = {uid: np.ascontiguousarray(vector, dtype="<f4") for uid, vector in weights.items()}
    for uid, vector in rows.items():
        if vector.shape != (size,):
            raise ValueError(f"individual {uid}: weights of shape {vector.shape}, not ({size},)")
    crcs = [zlib.crc32(vector.data) for vector in rows.values()]
    with hdf5.creating_large(path) as file:
        file.attrs["format"] = files.FORMAT_VERSION
        file.create_dataset("uid", data=np.asarray(list(rows), dtype="<i8"))
        file.create_dataset("crc32", data=np.asarray(crcs, dtype="<u4"))
        chunks = (1, min(size, CHUNK_PLACES)) if rows and size else None
        stored = file.create_dataset("weights", (len(rows), size), dtype="<f4", chunks=chunks)
        for row, vector in enumerate(rows.values()):
            stored[row] = vector
    _forget_cached(path)
    try:
        with open_weights_file(path, size) as saved:
            intact = saved.uids == list(rows) and saved.crcs == crcs and not saved.damaged()
    except InputError as error:
        raise RunError(f"written, but cannot be read back: {error}") from None
    if not intact:
        raise RunError(f"{path}: the disk returns other bytes than were written to it")
    return files.file_sum(path)


class WeightsFile:
    """An open leader file. Make one with `open_weights_file`."""

    def __init__(self, uids: list[int], crcs: list[int], weights: h5py.Dataset) -> None:
        self.uids = uids
        self.crcs = crcs
        self._weights = weights

    def pieces(self, row: int) -> Iterator[npt.NDArray[np.float32]]:
        """Yield one row in pieces of at most a chunk."""
        size = self._weights.shape[1]
        for start in range(0, size, CHUNK_PLACES):
            yield self._weights[row, start : min(start + CHUNK_PLACES, size)]

    def row_crc(self, row: int) -> int:
        """Return the CRC-32 of one row as it is on disk."""
        crc = 0
        for piece in self.pieces(row):
            crc = zlib.crc32(piece.data, crc)
        return crc

    def damaged(self) -> list[int]:
        """Return the uids of the rows whose bytes do not match their CRC-32."""
        return [uid for row, uid in enumerate(self.uids) if self.row_crc(row) != self.crcs[row]]


@contextmanager
def open_weights_file(path: Path, size: int) -> Iterator[WeightsFile]:
    """Open a leader file whose rows have `size` places. Raises InputError where it is not one."""
    with hdf5.reading(path) as file:
        uids = hdf5.read_array(file, "uid", "<i8").tolist()
        crcs = hdf5.read_array(file, "crc32", "<u4", (len(uids),)).tolist()
        weights = hdf5.read_dataset(file, "weights")
        if weights.shape != (len(uids), size) or weights.dtype != np.dtype("<f4"):
            raise InputError(
                f"{path}: weights: {weights.dtype} of shape {weights.shape}, expected float32 of"
                f" shape ({len(uids)}, {size})"
            )
        yield WeightsFile(uids, crcs, weights)


def _forget_cached(path: Path) -> None:
    """Let the next read come from the disk rather than from the page cache."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
