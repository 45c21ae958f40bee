"""Whether the output folder can hold a run: writing, locks, other nodes, speed and room."""

import errno
import fcntl
import os
import shutil
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from esgd_hpc.checkpoint.lock import refuse_file
from esgd_hpc.errors import EsgdError, InputError
from esgd_hpc.parallel.agreement import on_root, together
from esgd_hpc.plan_text import size_text
from esgd_hpc.preflight.facts import Facts
from esgd_hpc.preflight.rows import Row, failed

if TYPE_CHECKING:
    from mpi4py import MPI

_WRITTEN_BYTES = 1 << 26
_PIECE_BYTES = 1 << 22
_SECONDS_TO_APPEAR = 5.0
"""Network file systems may show a new file a little later."""


class _Probe:
    """A file of rank 0 in the folder, locked, and removed with all folders made for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / f"esgd-check-{socket.gethostname()}-{os.getpid()}.tmp"
        self._file: int | None = None
        self._made: list[Path] = []

    def make(self) -> tuple[Path, str]:
        """Write the file and lock it; return its path and what keeps it from being locked."""
        refuse_file(self.folder)
        try:
            self._made = [p for p in (self.folder, *self.folder.parents) if not p.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(self._file, self.path.name.encode())
            os.fsync(self._file)
        except OSError as error:
            raise InputError(
                f"--output {self.folder}: cannot be written: {error.strerror}; name another folder"
            ) from None
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return self.path, error.strerror or "refused"
        return self.path, ""

    def write_seconds(self) -> float:
        """Return how long it takes to write `_WRITTEN_BYTES` to the disk."""
        assert self._file is not None
        piece = os.urandom(_PIECE_BYTES)  # which no file system can make smaller
        begin = time.perf_counter()
        try:
            for _ in range(_WRITTEN_BYTES // _PIECE_BYTES):
                os.write(self._file, piece)
            os.fsync(self._file)
        except OSError as error:
            raise InputError(
                f"--output {self.folder}: cannot be written: {error.strerror}; make room, or name"
                " another folder"
            ) from None
        return time.perf_counter() - begin

    def remove(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self.path.unlink()
            os.close(self._file)
        for folder in self._made:
            with suppress(OSError):
                folder.rmdir()


def folder_rows(
    world: "MPI.Comm", facts: Sequence[Facts], folder: Path, checkpoint_bytes: int, kept: int
) -> list[Row]:
    """Judge the folder, for checkpoints of so many bytes of which so many are kept. Collective.

    `checkpoint_bytes` is 0 where no recipe is known. Leaves nothing behind. The rows are the same
    on every rank.
    """
    probe = _Probe(folder)
    try:
        path, no_lock = on_root(world, f"writing in {folder}", probe.make)
        # Rank 0 would give its lock away by opening the file again; one rank of a node is enough.
        looks = world.rank == facts[world.rank].node != 0
        seen = world.allgather(
            together(world, f"looking into {folder}", lambda: not looks or _appears(path))
        )
        blind = list(dict.fromkeys(f.host for f, sees in zip(facts, seen, strict=True) if not sees))
        if blind:
            return [
                Row(
                    *("output", "folder", "failed"),
                    f"{folder}: {facts[0].host} wrote a file that {', '.join(blind[:4])} cannot"
                    " see",
                    "name a folder on a file system that all nodes share",
                )
            ]
        others = [f.rank for f in facts if f.node != facts[0].node]
        tester = others[0] if others else min(1, world.size - 1)
        mine = _tries_lock(path) if world.rank == tester > 0 and not no_lock else ""
        tried = world.bcast(mine, root=tester)
        room = on_root(
            world, f"writing in {folder}", lambda: _room_rows(probe, checkpoint_bytes, kept)
        )
        return [
            Row("output", "folder", "ok", f"{folder}: can be written, all nodes see it"),
            _lock_row(no_lock, tried, facts, tester),
            *room,
        ]
    except EsgdError as error:
        return [failed("output", "folder", error)]
    finally:
        if world.rank == 0:
            probe.remove()


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + _SECONDS_TO_APPEAR
    while time.monotonic() < deadline:
        with suppress(OSError):
            os.listdir(path.parent)  # lets a network file system look again
            if path.read_bytes().startswith(path.name.encode()):
                return True
        time.sleep(0.05)
    return False


def _tries_lock(path: Path) -> str:
    """Return "held" where another process is seen to hold the lock, else what happened."""
    try:
        file = os.open(path, os.O_RDWR)
    except OSError as error:
        return error.strerror or "cannot be opened"
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return "held" if error.errno in (errno.EACCES, errno.EAGAIN) else str(error.strerror)
    finally:
        os.close(file)
    return "free"


def _lock_row(no_lock: str, tried: str, facts: Sequence[Facts], tester: int) -> Row:
    remedy = (
        "see to it that only one job at a time writes there, or name a folder on a file system with"
        " locks over all nodes (Lustre: mounted with -o flock)"
    )
    if no_lock:
        return Row("output", "lock", "warning", f"the file system has no locks ({no_lock})", remedy)
    if len(facts) == 1:
        return Row("output", "lock", "ok", "can be locked (one rank: nobody else tried)")
    where = f"rank {tester} on {facts[tester].host}"
    if tried == "held":
        return Row("output", "lock", "ok", f"a lock of rank 0 is seen by {where}")
    return Row(
        "output", "lock", "warning", f"a lock of rank 0 is not seen by {where} ({tried})", remedy
    )


def _room_rows(probe: _Probe, checkpoint_bytes: int, kept: int) -> list[Row]:
    free = shutil.disk_usage(probe.folder).free
    rows = []
    if free > 4 * _WRITTEN_BYTES:
        rate = _WRITTEN_BYTES / probe.write_seconds()
        told = f"rank 0 writes {size_text(rate)}/s"
        if checkpoint_bytes:
            told += (
                f"; a checkpoint of {size_text(checkpoint_bytes)} takes"
                f" {checkpoint_bytes / rate:.2g} s or less (leaders write at the same time)"
            )
        rows.append(Row("output", "speed", "ok", told))
    needed = (kept + 1) * checkpoint_bytes
    room = Row("output", "room", "ok", f"{size_text(free)} free")
    if checkpoint_bytes:
        room = room._replace(
            finding=f"{size_text(free)} free, {size_text(needed)} needed for"
            f" {kept} checkpoints and the one that is written; a quota may leave less"
        )
    if free < needed:
        room = room._replace(
            status="failed", remedy="make room, name another folder, or lower checkpoint.keep"
        )
    return [*rows, room]
