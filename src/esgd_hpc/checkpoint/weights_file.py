"""How the weights of one group lie in its leader file, and how each row is checked.

    weights [k, P]  float32, one individual a row, chunks of at most 4 MiB, no compression
    uid     [k]     int64
    crc32   [k]     uint32, zlib.crc32 of the bytes of each row

HDF5 says, in memory, what the file looks like and where its rows belong; they go there straight
from where they lie in memory. Rows are read in pieces, so that no second one is ever held.
"""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from esgd_hpc import pulse
from esgd_hpc.checkpoint import files, hdf5
from esgd_hpc.checkpoint.checked_file import writing_checked
from esgd_hpc.errors import InputError, RunError
from esgd_hpc.population import Weights

CHUNK_PLACES = 2**20
"""float32 places of a chunk: 4 MiB."""


# Writing ------------------------------------------------------------------------------------------


def write_weights_file(path: Path, weights: dict[int, Weights], size: int) -> files.FileSum:
    """Write the rows in the order given, read them back from disk, and return the file's sum.

    `weights` is uid to vector of shape [size]; each is taken out once it is written. Raises
    RunError where the disk refuses, and where it returns other bytes than it was given.
    """
    uids = list(weights)
    for uid in uids:
        shape = weights[uid].shape
        if shape != (size,):
            raise ValueError(f"individual {uid}: weights of shape {shape}, not ({size},)")
    _, places = _outline(uids, [0] * len(uids), size)
    with writing_checked(path) as file:
        crcs = [
            file.write(place, _bytes(weights.pop(uid)))
            for uid, place in zip(uids, places, strict=True)
        ]
        outline, _ = _outline(uids, crcs, size)
        sums = file.complete(outline.parts, outline.size)
    try:
        with open_weights_file(path, size) as saved:
            intact = (saved.uids, saved.crcs, saved.places()) == (uids, crcs, places)
    except InputError as error:
        raise RunError(f"written, but cannot be read back: {error}") from None
    if not intact:
        raise RunError(f"{path}: the disk returns other bytes than were written to it")
    return sums


def _outline(uids: Sequence[int], crcs: Sequence[int], size: int) -> tuple[hdf5.Outline, list[int]]:
    """Return the file without its rows, and at which of its bytes each row begins."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)
    if uids and size:
        properties.set_chunk((1, min(size, CHUNK_PLACES)))
    space = h5py.h5s.create_simple((len(uids), size))
    outline = hdf5.Outline()
    with hdf5.outlining(outline) as file:
        file.attrs["format"] = files.FORMAT_VERSION
        file.create_dataset("uid", data=np.asarray(uids, dtype="<i8"))
        file.create_dataset("crc32", data=np.asarray(crcs, dtype="<u4"))
        # file.create_dataset of some versions of h5py fills with zeros whatever it is told.
        h5py.h5d.create(file.id, b"weights", h5py.h5t.IEEE_F32LE, space, properties)
        return outline, _places(file["weights"])


def _places(weights: h5py.Dataset) -> list[int]:
    """Return at which byte of the file each row begins, 0 for rows of no bytes.

    Chunks that are allocated before anything is written lie one behind the other, in order.
    """
    num_rows, size = weights.shape
    if not (num_rows and size):
        return [0] * num_rows
    chunk, chunks = weights.chunks[1], -(-size // weights.chunks[1])
    chunk_bytes = chunk * weights.dtype.itemsize
    first = weights.id.get_chunk_info_by_coord((0, 0)).byte_offset
    last = weights.id.get_chunk_info_by_coord((num_rows - 1, (chunks - 1) * chunk)).byte_offset
    assert last == first + (num_rows * chunks - 1) * chunk_bytes
    return [first + row * chunks * chunk_bytes for row in range(num_rows)]


def _bytes(vector: Weights) -> memoryview:
    return np.ascontiguousarray(vector, dtype="<f4").view(np.uint8).data


# Reading ------------------------------------------------------------------------------------------


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
            pulse.progress()
            yield self._weights[row, start : min(start + CHUNK_PLACES, size)]

    def row_crc(self, row: int) -> int:
        """Return the CRC-32 of one row as it is on disk."""
        crc = 0
        for piece in self.pieces(row):
            crc = zlib.crc32(piece.data, crc)
        return crc

    def places(self) -> list[int]:
        """Return at which byte of a file that we have just written each row begins."""
        return _places(self._weights)


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
