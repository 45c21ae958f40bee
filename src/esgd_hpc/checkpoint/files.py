"""What the files of a run are called, and what makes a generation on disk complete.

    RUN/
      gen_000012/            one checkpoint; published by a rename, never changed afterwards
        leader_00000.h5        weights of the individuals of group 0, one file per group
        champion.h5            weights of the fittest state ever seen, where the population lost it
        population.h5          records, layout, recipe, history; a view of all weights for viewers
        COMMIT.json            sizes and CRC-32 of the others, written last
      gen_000013.tmp/        being written, or being deleted, or left by a killed job: ignored
      gen_000012.old/        what gen_000012 was before it was written again; deleted at once
      interrupted/           generation 12 or a later one, with what was done of the next when the
                             run was stopped; goes with the next checkpoint
      latest -> gen_000012   for people; no program decides by it
      history.h5             history of the newest checkpoint, for viewers

Knows no HDF5 and no MPI.
"""

import errno
import os
import re
import stat
import zlib
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from esgd_hpc import pulse
from esgd_hpc.errors import InputError, RunError

FORMAT_VERSION = 2
"""Of COMMIT.json and everything that it lists."""
READ_VERSIONS = (1, FORMAT_VERSION)
"""1 lacks the lineage, the champion and some columns of the history."""

COMMIT = "COMMIT.json"
POPULATION = "population.h5"
CHAMPION = "champion.h5"
HISTORY = "history.h5"
LATEST = "latest"
INTERRUPTED = "interrupted"

TEMPORARY_SUFFIX = ".tmp"
REPLACED_SUFFIX = ".old"

_GENERATION = re.compile(r"gen_([0-9]{6,})(\.old)?")
_TEMPORARY_GENERATION = re.compile(r"(gen_[0-9]{6,}|interrupted)(\.old)?\.tmp")
_LISTED = re.compile(r"population\.h5|champion\.h5|leader_[0-9]{5,}\.h5")
_SEAL = re.compile(r"leader_[0-9]{5,}\.h5\.sum(\.tmp)?")
_MAX_COMMIT_BYTES = 2**26
_READ_BYTES = 2**22


# Names --------------------------------------------------------------------------------------------


def generation_name(generation: int) -> str:
    """Return the folder name of a generation, such as gen_000012."""
    return f"gen_{generation:06d}"


def leader_name(group: int) -> str:
    """Return the name of the weights of one group, such as leader_00003.h5."""
    return f"leader_{group:05d}.h5"


def seal_name(name: str) -> str:
    """Return the name of the file that says that a leader's file is written and verified."""
    return f"{name}.sum"


def is_our_file(name: str) -> bool:
    """Tell whether a file of this name in a generation folder is one of ours."""
    return name == COMMIT or any(pattern.fullmatch(name) for pattern in (_LISTED, _SEAL))


class Generation(NamedTuple):
    """A folder that holds a checkpoint by its name."""

    number: int
    path: Path


def generations(folder: Path) -> list[Generation]:
    """Return the generation folders of a run, newest first; gen_N.old comes after gen_N."""
    found = []
    for path in _folders(folder):
        match = _GENERATION.fullmatch(path.name)
        if match:
            found.append(Generation(int(match[1]), path))
    return sorted(found, key=lambda g: (-g.number, g.path.name))


def interrupted(folder: Path) -> list[Path]:
    """Return the folders of a run's interrupted generation, the newer one first."""
    names = (INTERRUPTED, INTERRUPTED + REPLACED_SUFFIX)
    return [path for name in names for path in _folders(folder) if path.name == name]


def temporary_generations(folder: Path) -> list[Path]:
    """Return the folders that are being written or deleted, or were when their job was killed."""
    return [path for path in _folders(folder) if _TEMPORARY_GENERATION.fullmatch(path.name)]


def is_generation_folder(path: Path) -> bool:
    """Tell whether a folder is one checkpoint rather than a run."""
    return _GENERATION.fullmatch(path.name) is not None or os.path.exists(path / COMMIT)


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed: {error.strerror}") from None


# COMMIT.json --------------------------------------------------------------------------------------


class FileSum(msgspec.Struct, frozen=True):
    """What a file is checked by."""

    size: Annotated[int, msgspec.Meta(ge=0)]
    """Bytes."""
    crc32: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
    """zlib.crc32 of the whole file."""


class Commit(msgspec.Struct, frozen=True):
    """COMMIT.json: its presence says that the checkpoint was complete and verified."""

    format: int
    generation: Annotated[int, msgspec.Meta(ge=0)]
    files: dict[str, FileSum]
    """Plain file name in the same folder to its sum."""


class _Format(msgspec.Struct):
    format: int


def commit_text(commit: Commit) -> bytes:
    """Return the content of COMMIT.json."""
    return msgspec.json.format(msgspec.json.encode(commit)) + b"\n"


def read_commit(folder: Path) -> Commit:
    """Return the checked COMMIT.json of a generation folder.

    Raises InputError where it is missing, damaged, of a newer format, or lists a name that is not
    ours.
    """
    path = folder / COMMIT
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_COMMIT_BYTES:
            raise InputError(f"{path}: not a plain file of at most {_MAX_COMMIT_BYTES} bytes")
        text = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: missing, so the checkpoint is not complete") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        version = msgspec.json.decode(text, type=_Format).format
        if version not in READ_VERSIONS:
            raise InputError(
                f"{path}: format {version}, but this esgd reads formats up to {FORMAT_VERSION};"
                " use the esgd that wrote it, or a newer one"
            )
        commit = msgspec.json.decode(text, type=Commit)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: damaged: {error}") from None
    for name in commit.files:
        if not _LISTED.fullmatch(name):
            raise InputError(f"{path}: lists {name[:60]!r}, which is not a file of a checkpoint")
    if POPULATION not in commit.files:
        raise InputError(f"{path}: does not list {POPULATION}")
    return commit


def size_problems(folder: Path, sums: Mapping[str, FileSum]) -> list[str]:
    """Return what is wrong with the files by a look at their sizes alone."""
    problems = []
    for name, expected in sums.items():
        try:
            found = (folder / name).lstat()
        except FileNotFoundError:
            problems.append(f"{name}: missing")
            continue
        except OSError as error:
            problems.append(f"{name}: cannot be read: {error.strerror}")
            continue
        if not stat.S_ISREG(found.st_mode):
            problems.append(f"{name}: not a plain file")
        elif found.st_size != expected.size:
            problems.append(f"{name}: {found.st_size} bytes instead of {expected.size}")
    return problems


def is_complete(folder: Path) -> bool:
    """Tell whether COMMIT.json and all its files are there with their sizes; reads no weights."""
    try:
        return not size_problems(folder, read_commit(folder).files)
    except InputError:
        return False


def file_sum(path: Path) -> FileSum:
    """Return size and CRC-32 of a file, read in pieces."""
    crc = size = 0
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            pulse.progress()
            crc = zlib.crc32(piece, crc)
            size += len(piece)
    return FileSum(size, crc)


def sum_problems(folder: Path, sums: Mapping[str, FileSum]) -> list[str]:
    """Return which files are not as they were written; reads every byte of them."""
    problems = []
    for name, expected in sums.items():
        try:
            found = file_sum(folder / name)
        except OSError as error:
            problems.append(f"{name}: cannot be read: {error.strerror}")
            continue
        if found != expected:
            problems.append(
                f"{name}: damaged: CRC-32 {found.crc32:08x} instead of {expected.crc32:08x}"
            )
    return problems


# To disk ------------------------------------------------------------------------------------------


def cannot_write(path: Path, error: OSError) -> RunError:
    """Return the error for a user whose disk, quota or permissions refuse a file or folder."""
    return RunError(f"{path}: cannot be written: {error.strerror}")


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file, force it to disk and read it back.

    Raises RunError where the disk refuses, and where it returns other bytes.
    """
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):  # or the page cache would answer
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if file_sum(path) != FileSum(len(content), zlib.crc32(content)):
            raise RunError(f"{path}: the disk returns other bytes than were written to it")
    except OSError as error:
        raise cannot_write(path, error) from None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees all of it or none. Raises RunError."""
    new = path.with_name(path.name + TEMPORARY_SUFFIX)
    write_file(new, content)
    try:
        new.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from None


def fsync_folder(folder: Path) -> None:
    """Force the names in a folder to disk, where its file system can."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def point_latest(folder: Path, target: str) -> None:
    """Let the link `latest` name a generation, in one step."""
    new = folder / (LATEST + TEMPORARY_SUFFIX)
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(folder / LATEST)
    fsync_folder(folder)


def remove_generation(path: Path) -> None:
    """Delete a generation folder: our files in it, and itself where nothing else is in it.

    It is renamed to a temporary one first, so that a job killed meanwhile leaves none that looks
    like a checkpoint. What cannot be deleted yet (open over NFS) goes next time.
    """
    if path.is_symlink() or not path.is_dir():
        return
    doomed = path
    if not path.name.endswith(TEMPORARY_SUFFIX):
        doomed = path.with_name(path.name + TEMPORARY_SUFFIX)
        path.rename(doomed)
    for entry in sorted(doomed.iterdir()):
        if is_our_file(entry.name):
            entry.unlink()
    try:
        doomed.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
            raise


def surplus(
    found: Iterable[Generation], newest: int, keep: int, verified: Container[int]
) -> list[Path]:
    """Return the complete generations up to `newest` beyond the `keep` newest verified ones.

    `found` is from `generations`; `verified` has the numbers of those that were read back whole. No
    others are counted: their sizes alone say little. Folders that are not complete stay.
    """
    kept: set[int] = set()
    doomed = []
    for generation in found:
        if generation.number > newest or not is_complete(generation.path):
            continue
        if len(kept) >= keep or generation.number in kept:
            doomed.append(generation.path)
        elif generation.number in verified:
            kept.add(generation.number)
    return doomed
