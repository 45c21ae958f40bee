"""Who writes to a run's folder: one job at a time, kept by a lock that ends with its process."""

import errno
import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path

from esgd_hpc.errors import InputError

NAME = "lock"
JOB_VARIABLES = ("SLURM_JOB_ID", "LSB_JOBID", "PBS_JOBID")


class FolderLock:
    """The lock of a run's folder; only rank 0 takes it.

    A POSIX lock on a file that is there as long as the lock is held, or its process died. The
    process that holds it must not open the file again: closing it would give the lock away.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / NAME
        self._file: int | None = None
        self._made: list[Path] = []

    def acquire(self) -> list[str]:
        """Make the folder, take its lock, and return what there is to say about it.

        Raises InputError if another process has it, naming that, or if the folder cannot be
        written.
        """
        refuse_file(self._folder)
        try:
            self._made = [p for p in (self._folder, *self._folder.parents) if not p.exists()]
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise InputError(
                f"--output {self._folder}: cannot be written: {error.strerror}; name another folder"
            ) from None
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return [
                    f"{self._folder}: this file system has no locks ({error.strerror});"
                    " see to it that no other job writes there"
                ]
            holder = os.read(self._file, 200).decode(errors="replace").strip()
            os.close(self._file)
            self._file = None
            raise InputError(
                f"--output {self._folder} is in use by another run ({holder}); wait for it or end"
                " it, or name another --output"
            ) from None
        if not self._is_in_folder(self._file):  # its last holder removed it between our two steps
            os.close(self._file)
            return self.acquire()
        job = next((f", job {os.environ[n]}" for n in JOB_VARIABLES if n in os.environ), "")
        holder = f"host {socket.gethostname()}, process {os.getpid()}{job}\n"
        try:
            os.truncate(self._file, 0)
            os.write(self._file, holder.encode())
        except OSError as error:
            raise InputError(
                f"--output {self._folder}: cannot be written: {error.strerror}; make room, or name"
                " another folder"
            ) from None
        return []

    def _is_in_folder(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.stat(self._path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let go of the lock, if it was taken, and of the folder, if nothing was written to it."""
        if self._file is None:
            return
        if self._is_in_folder(self._file):  # not another's, in a folder that was made again
            with suppress(OSError):
                self._path.unlink()
        os.close(self._file)
        self._file = None
        for folder in self._made:
            with suppress(OSError):
                folder.rmdir()


def refuse_file(folder: Path) -> None:
    """Raise InputError if the folder, or one that it lies in, is a file."""
    for place in (folder, *folder.parents):
        if os.path.lexists(place) and not os.path.isdir(place):
            raise InputError(f"--output {folder}: {place} is a file; name a folder")
