"""How much data gets to disk and is read back from it while more is still being written.

    writer   CRC-32 and write, in the thread that calls
    reader   force to disk, drop from the page cache, read, compare CRC-32, in a thread of its own

Both work in pieces for which Python's lock is free, so that they can run beside training. The
reader is at most a few windows behind: neither dirty pages nor anything else piles up in memory.
"""

import os
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from esgd_hpc import pulse
from esgd_hpc.checkpoint import files
from esgd_hpc.checkpoint.crc32 import joined
from esgd_hpc.errors import RunError

_PIECE = 2**24
"""Bytes of one write and of one read."""
_WINDOW = 2**26
"""Bytes that are forced to disk and read back at once."""
_MAX_WINDOWS_BEHIND = 2


class _Part(NamedTuple):
    offset: int
    size: int
    crc32: int


class CheckedFile:
    """A file that is being written and read back. Make one with `writing_checked`."""

    def __init__(self, path: Path, raw: BinaryIO, reader: ThreadPoolExecutor) -> None:
        self._path, self._descriptor, self._reader = path, raw.fileno(), reader
        self._buffer = memoryview(bytearray(_PIECE))
        self._window: list[_Part] = []
        self._window_bytes = 0
        self._behind: deque[Future[None]] = deque()
        self._checked: list[_Part] = []

    def write(self, offset: int, data: memoryview) -> int:
        """Write bytes to a place of their own, have them read back, and return their CRC-32."""
        crc = 0
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            part = _Part(offset + start, len(piece), zlib.crc32(piece))
            self._put(part.offset, piece)
            pulse.progress()
            self._window.append(part)
            self._window_bytes += part.size
            if self._window_bytes >= _WINDOW:
                self._hand_over()
            crc = joined(crc, part.crc32, part.size)
        return crc

    def complete(self, rest: Iterable[tuple[int, bytes]], size: int) -> files.FileSum:
        """Write what else the file of `size` bytes holds, read it all back, and return its sum.

        The rest is (offset, bytes), of which later ones may replace earlier ones. It is not
        compared: open the file to see whether it makes sense.
        """
        for offset, data in rest:
            self._put(offset, memoryview(data))
        os.ftruncate(self._descriptor, size)
        self._hand_over()
        while self._behind:
            self._behind.popleft().result()
        crc = place = 0
        for part in [*sorted(self._checked), _Part(size, 0, 0)]:
            gap = part.offset - place
            crc = joined(crc, self._crc32_on_disk(place, gap), gap)
            crc = joined(crc, part.crc32, part.size)
            place = part.offset + part.size
        self._forget()
        return files.FileSum(size, crc)

    def _put(self, offset: int, data: memoryview) -> None:
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            data, offset = data[written:], offset + written

    def _hand_over(self) -> None:
        """Let the reader check what was written since the last time, once it is not far behind."""
        window, self._window, self._window_bytes = self._window, [], 0
        self._forget()  # lets the disk begin
        self._behind.append(self._reader.submit(self._check, window))
        self._checked += window
        if len(self._behind) > _MAX_WINDOWS_BEHIND:
            self._behind.popleft().result()

    # In the reader's thread.

    def _check(self, window: list[_Part]) -> None:
        os.fsync(self._descriptor)
        self._forget()
        for part in window:
            if self._crc32_on_disk(part.offset, part.size) != part.crc32:
                raise RunError(
                    f"{self._path}: the disk returns other bytes than were written to it"
                )
        self._forget()

    def _forget(self) -> None:
        """Drop from the page cache what is on disk, so that it is read from there."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def _crc32_on_disk(self, offset: int, size: int) -> int:
        crc, end = 0, offset + size
        while offset < end:
            read = os.preadv(self._descriptor, [self._buffer[: end - offset]], offset)
            if not read:
                raise RunError(f"{self._path}: the disk returns less than was written to it")
            crc = zlib.crc32(self._buffer[:read], crc)
            pulse.progress()
            offset += read
        return crc


@contextmanager
def writing_checked(path: Path) -> Iterator[CheckedFile]:
    """Make a file for the length of a `with` block.

    Raises RunError where the disk refuses, and where it returns other bytes than it was given.
    """
    try:
        with path.open("w+b", buffering=0) as raw, ThreadPoolExecutor(1) as reader:
            yield CheckedFile(path, raw, reader)
    except OSError as error:
        raise files.cannot_write(path, error) from None
