"""What is written is what was given, wherever pieces end, and what the disk spoils is told."""

import os
import resource
import threading
import time
import tracemalloc
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esgd_hpc.checkpoint import checked_file, files
from esgd_hpc.checkpoint.crc32 import joined
from esgd_hpc.checkpoint.weights_file import CHUNK_PLACES, open_weights_file, write_weights_file
from esgd_hpc.errors import RunError
from esgd_hpc.population import Weights


def make_rows(num_rows: int, size: int) -> dict[int, Weights]:
    random = np.random.default_rng(size)
    return {3 * n + 2: random.standard_normal(size, dtype=np.float32) for n in range(num_rows)}


def check(path: Path, rows: dict[int, Weights], size: int) -> None:
    """Write the rows and compare what plain h5py, our reader and a plain read find."""
    found = write_weights_file(path, dict(rows), size)
    assert found == files.file_sum(path)
    with h5py.File(path) as file:
        assert file["uid"][...].tolist() == list(rows)
        assert file["weights"].shape == (len(rows), size)
        for row, vector in enumerate(rows.values()):
            assert file["weights"][row].tobytes() == vector.tobytes()
    with open_weights_file(path, size) as saved:
        assert saved.crcs == [zlib.crc32(vector.tobytes()) for vector in rows.values()]
        assert [saved.row_crc(row) for row in range(len(rows))] == saved.crcs


@given(first=st.binary(max_size=40), second=st.binary(max_size=3000))
def test_sums_of_parts_join_to_the_sum_of_the_whole(first: bytes, second: bytes) -> None:
    whole = zlib.crc32(first + second)
    assert joined(zlib.crc32(first), zlib.crc32(second), len(second)) == whole


def test_sums_of_long_parts_join_too() -> None:
    zeros = bytes(2**24 + 3)
    crc = zlib.crc32(b"first")
    assert joined(crc, zlib.crc32(zeros), len(zeros)) == zlib.crc32(zeros, crc)


@pytest.mark.parametrize(
    ("num_rows", "size"),
    [
        (0, 10),
        (3, 0),
        (1, 1),
        (7, 2410),
        (1, CHUNK_PLACES),
        (2, CHUNK_PLACES + 1),
        (3, 2 * CHUNK_PLACES - 1),
    ],
)
def test_rows_come_back_bit_for_bit(tmp_path: Path, num_rows: int, size: int) -> None:
    check(tmp_path / "x.h5", make_rows(num_rows, size), size)


@given(
    num_rows=st.integers(1, 9),
    size=st.integers(1, 300),
    piece=st.integers(1, 700),
    window=st.integers(1, 3000),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_come_back_wherever_pieces_and_windows_end(
    tmp_path: Path, num_rows: int, size: int, piece: int, window: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checked_file, "_PIECE", piece)
        patch.setattr(checked_file, "_WINDOW", window)
        check(tmp_path / "x.h5", make_rows(num_rows, size), size)


def test_rows_of_any_stride_type_and_content(tmp_path: Path) -> None:
    strided = np.arange(20, dtype=np.float32)[::2]
    big_endian = np.arange(10, dtype=">f4")
    special = np.array([np.nan, -np.nan, np.inf, -0.0, 1e-45, 0, 1, 2, 3, 4], dtype=np.float32)
    special[1:2].view(np.uint32)[:] = 0x7FC12345  # a NaN with a message
    write_weights_file(tmp_path / "x.h5", {1: strided, 2: big_endian, 3: special}, 10)
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["weights"][0].tolist() == strided.tolist()
        assert file["weights"][1].tolist() == big_endian.tolist()
        assert file["weights"][2].tobytes() == special.tobytes()


def test_the_same_rows_make_the_same_bytes(tmp_path: Path) -> None:
    first = write_weights_file(tmp_path / "x.h5", make_rows(3, 10), 10)
    time.sleep(1.1)  # HDF5 would note the second
    assert write_weights_file(tmp_path / "y.h5", make_rows(3, 10), 10) == first


def test_long_rows_begin_at_a_page_of_the_disk(tmp_path: Path) -> None:
    size = CHUNK_PLACES + 1
    write_weights_file(tmp_path / "x.h5", make_rows(2, size), size)
    with open_weights_file(tmp_path / "x.h5", size) as saved:
        assert [place % 4096 for place in saved.places()] == [0, 0]


def test_a_vector_is_let_go_once_it_is_written(tmp_path: Path) -> None:
    rows = make_rows(5, 1000)
    alive = {uid: weakref.ref(vector) for uid, vector in rows.items()}
    counts = []

    class Watched(dict[int, Weights]):
        def pop(self, uid: int) -> Weights:  # type: ignore[override]
            counts.append(sum(vector() is not None for vector in alive.values()))
            return super().pop(uid)

    watched = Watched(rows)
    rows.clear()
    write_weights_file(tmp_path / "x.h5", watched, 1000)
    assert counts == [5, 4, 3, 2, 1]
    assert not watched
    assert not any(vector() is not None for vector in alive.values())


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    size = 6 * CHUNK_PLACES
    rows = make_rows(4, size)
    tracemalloc.start()
    try:
        write_weights_file(tmp_path / "x.h5", rows, size)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 18 * 2**20  # one piece to read into; a row has 24 MiB


# ---------------------------------------------------------------- a disk that fails


@contextmanager
def disk_spoils(change: Callable[[int], None]) -> Iterator[None]:
    """Change each file, given its descriptor, right after it was forced to disk."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        change(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


def flip(offset: int) -> Callable[[int], None]:
    """Return what inverts one byte, counted from the end if negative."""

    def change(descriptor: int) -> None:
        place = offset if offset >= 0 else os.fstat(descriptor).st_size + offset
        (byte,) = os.pread(descriptor, 1, place)
        os.pwrite(descriptor, bytes([byte ^ 0x10]), place)

    return change


def offset_of(path: Path, name: str) -> int:
    """Return where a dataset begins in a file of the same shape."""
    with h5py.File(path) as file:
        dataset = file[name]
        if dataset.chunks:
            return int(dataset.id.get_chunk_info(0).byte_offset)
        return int(dataset.id.get_offset())


@pytest.mark.parametrize("name", ["weights", "uid", "crc32"])
@pytest.mark.parametrize("size", [10, CHUNK_PLACES + 1])
def test_bytes_that_come_back_changed_are_told(tmp_path: Path, name: str, size: int) -> None:
    write_weights_file(tmp_path / "good.h5", make_rows(3, size), size)
    place = offset_of(tmp_path / "good.h5", name)
    with disk_spoils(flip(place + 5)), pytest.raises(RunError, match=r"x\.h5.* other bytes"):
        write_weights_file(tmp_path / "x.h5", make_rows(3, size), size)


@pytest.mark.parametrize("place", [2, 60])
def test_a_structure_that_comes_back_changed_is_told(tmp_path: Path, place: int) -> None:
    with disk_spoils(flip(place)), pytest.raises(RunError, match=r"cannot be read back: .*x\.h5"):
        write_weights_file(tmp_path / "x.h5", make_rows(3, 10), 10)


def test_a_file_that_comes_back_short_is_told(tmp_path: Path) -> None:
    def cut(descriptor: int) -> None:
        os.ftruncate(descriptor, 1500)

    with disk_spoils(cut), pytest.raises(RunError, match=r"x\.h5: the disk returns less"):
        write_weights_file(tmp_path / "x.h5", make_rows(3, 1000), 1000)


def test_a_disk_that_refuses_when_it_is_forced_is_one_error(tmp_path: Path) -> None:
    """As NFS does where the quota is used up."""

    def refuse(descriptor: int) -> None:
        raise OSError(122, "Disk quota exceeded")

    with disk_spoils(refuse), pytest.raises(RunError, match="cannot be written: Disk quota"):
        write_weights_file(tmp_path / "x.h5", make_rows(3, 1000), 1000)


@pytest.mark.parametrize("limit", [0, 1000, 5_000_000, 3 * 4 * CHUNK_PLACES])
def test_a_full_disk_is_one_error_and_leaves_no_thread(tmp_path: Path, limit: int) -> None:
    size = CHUNK_PLACES + 100
    threads = set(threading.enumerate())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(RunError, match=r"x\.h5: cannot be written: File too large"):
            write_weights_file(tmp_path / "x.h5", make_rows(3, size), size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert set(threading.enumerate()) == threads
    check(tmp_path / "x.h5", make_rows(3, size), size)


def test_a_folder_that_is_gone_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be written: No such file"):
        write_weights_file(tmp_path / "gone" / "x.h5", make_rows(1, 5), 5)
