"""One job at a time writes to a run's folder, and nothing of the lock stays behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from esgd_hpc.checkpoint.lock import NAME, FolderLock
from esgd_hpc.errors import InputError

TRY = """
import sys
from pathlib import Path
from esgd_hpc.checkpoint.lock import FolderLock
from esgd_hpc.errors import InputError
try:
    FolderLock(Path(sys.argv[1])).acquire()
    print("taken")
except InputError as error:
    print(error)
"""


def tried_by_another_process(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", TRY, str(folder)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_another_process_is_refused_while_the_lock_is_held_and_not_after(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    lock = FolderLock(folder)
    assert lock.acquire() == []
    assert f"process {os.getpid()}" in tried_by_another_process(folder)
    lock.release()
    assert tried_by_another_process(folder) == "taken"


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "new" / "run")
    lock.acquire()
    lock.release()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_what_was_written_stays(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "run")
    lock.acquire()
    (tmp_path / "run" / "history.h5").touch()
    lock.release()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["history.h5"]


def test_the_lock_of_a_process_that_died_can_be_taken(tmp_path: Path) -> None:
    assert tried_by_another_process(tmp_path) == "taken"
    assert (tmp_path / NAME).exists()  # it ended without a release
    lock = FolderLock(tmp_path)
    assert lock.acquire() == []
    lock.release()


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another job's release and a third one's start come between our opening and our locking."""
    real_open = os.open
    replaced: list[Path] = []

    def open_and_replace(path: Path, *arguments: int) -> int:
        file = real_open(path, *arguments)
        if not replaced:
            replaced.append(path)
            Path(path).unlink()
            Path(path).touch()
        return file

    monkeypatch.setattr(os, "open", open_and_replace)
    lock = FolderLock(tmp_path)
    lock.acquire()
    assert f"process {os.getpid()}" in tried_by_another_process(tmp_path)
    lock.release()


def test_a_file_for_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        FolderLock(tmp_path / "file" / "run").acquire()
