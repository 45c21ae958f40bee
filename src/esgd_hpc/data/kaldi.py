"""Tables of Kaldi: archives of matrices, vectors and labels, in files of one folder and no other.

`kaldi-native-io` reads and writes them. It would run what an scp line or a name asks it to, and
make room for whatever size a header declares. So lines and headers are read here, and checked
against the files; the library gets nothing but an absolute path and a place in that file.
"""

import re
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from esgd_hpc.errors import InputError, RunError

Matrix = npt.NDArray[np.float32]

_MATRICES = ("FM", "DM", "CM", "CM2", "CM3")
_LONGEST_KEY = 4096
_BINARY = b"\0B"
_ITEM_BYTES = {"FM": 4, "DM": 8, "FV": 4, "DV": 8, "CM": 1, "CM2": 2, "CM3": 1}
_COLUMN_BYTES = 8
"""CM has four numbers of two bytes for each column as well."""
_LABEL = np.dtype([("size", "i1"), ("value", "<i4")])
"""A label, after the byte that tells its size; the first one of an entry counts the others."""
_TEXT_BYTES = 2**20
"""Of a line that are read at once."""
_SPARE_BYTES = 2**26
"""Free space that a disk keeps."""


class Entry(NamedTuple):
    """Where one utterance's (or speaker's) matrix, vector or labels are."""

    key: str
    file: Path
    """Absolute, in the folder, without symbolic links."""
    offset: int
    """Of what follows the key."""

    def __str__(self) -> str:
        return f"{self.file}: {self.key}"


class _Header(NamedTuple):
    kind: str
    """FM, DM, CM, CM2, CM3, FV, DV; labels; text."""
    end: int
    """Where it ends in the file."""


# Which entries there are --------------------------------------------------------------------------


def table(root: Path, folder: Path, name: str) -> dict[str, Entry] | None:
    """Return the entries of NAME.scp in a folder, else of NAME.ark and NAME.*.ark; None without.

    Archives must lie in the folder `root`, which holds `folder`; a path that is not absolute
    starts at the scp file, or else at `root`. Raises InputError for files that are damaged, lines
    that name a command, a range or a file elsewhere, and keys that are there twice.
    """
    script = folder / f"{name}.scp"
    if script.exists():
        entries = _entries_of_script(root, inside(root, script))
    else:
        archives = sorted([*folder.glob(f"{name}.ark"), *folder.glob(f"{name}.*.ark")])
        if not archives:
            return None
        entries = (e for file in archives for e in _entries_of_archive(inside(root, file)))
    found: dict[str, Entry] = {}
    for entry in entries:
        if entry.key in found:
            raise InputError(f"{entry}: there twice, also in {found[entry.key].file}; remove one")
        found[entry.key] = entry
    return found


def inside(root: Path, file: Path) -> Path:
    """Return the file's absolute path. Raises InputError where it is none, or not in `root`."""
    found = file.resolve()
    if not found.is_relative_to(root.resolve()):
        raise InputError(
            f"{file}: leads to {found}, which is not in {root}; only files of that folder are read:"
            " name a folder that holds both, or copy it there"
        )
    if not found.is_file():
        raise InputError(f"{file}: no such file")
    return found


def text_lines(root: Path, file: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not blank."""
    try:
        with open(inside(root, file), encoding="utf-8") as opened:
            for number, line in enumerate(opened, 1):
                if line.strip():
                    yield number, line.strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as text: {error}") from None


def _entries_of_script(root: Path, script: Path) -> Iterator[Entry]:
    for number, line in text_lines(root, script):
        at = f"{script}:{number}"
        key, _, place = line.partition(" ") if " " in line else line.partition("\t")
        place = place.strip()
        if not place or place == "-":
            raise InputError(f"{at}: {line!r}: expected a name and a file")
        if "|" in place:
            raise InputError(
                f"{at}: {line!r}: names a command, and none is ever run; write its output to an"
                " archive, such as with `copy-feats scp:feats.scp ark:feats.ark`, and give that"
            )
        if place.endswith("]"):
            raise InputError(
                f"{at}: {line!r}: names a part of a matrix; write an archive of the parts with"
                " `copy-feats`"
            )
        path, offset = _split_offset(place)
        file = script.parent / path
        yield Entry(key, inside(root, file if file.exists() else root / path), offset)


def _split_offset(place: str) -> tuple[str, int]:
    path, colon, digits = place.rpartition(":")
    if colon and digits.isascii() and digits.isdecimal() and len(digits) < 19:
        return path, int(digits)
    return place, 0


def _entries_of_archive(file: Path) -> Iterator[Entry]:
    size = file.stat().st_size
    with open(file, "rb") as opened:
        start = 0
        while start < size:
            opened.seek(start)
            head = opened.read(_LONGEST_KEY)
            key, space, _ = head.partition(b" ")
            if not space or not key or b"\0" in key:
                raise InputError(
                    f"{file}: no name of an utterance at byte {start}; it is damaged, or no archive"
                    " of Kaldi"
                )
            entry = Entry(key.decode("utf-8", "replace"), file, start + len(key) + 1)
            yield entry
            start = _header(entry, opened, size).end


# What is in them ----------------------------------------------------------------------------------


def read_matrix(entry: Entry) -> Matrix:
    """Return a matrix of any type, compressed or not, float32 [rows, columns].

    Raises InputError where it is something else, truncated or damaged.
    """
    _checked(entry, "a matrix", (*_MATRICES, "text"))
    return _read(entry, "FloatMatrix")


def read_vector(entry: Entry) -> Matrix:
    """Return a vector, float32 [n], or the mean over the rows of a matrix, for online i-vectors.

    Raises InputError where it is something else, truncated or damaged.
    """
    kind = _checked(entry, "a vector", ("FV", "DV", *_MATRICES, "text")).kind
    is_matrix = kind in _MATRICES
    if kind == "text":
        with open(entry.file, "rb") as opened:
            opened.seek(entry.offset)
            is_matrix = b"\n" in opened.read(_LONGEST_KEY).partition(b"[")[2].lstrip(b" \t")[:1]
    if not is_matrix:
        return _read(entry, "FloatVector")
    rows = _read(entry, "FloatMatrix")
    with np.errstate(invalid="ignore"):  # NaN is for the caller to refuse
        mean: Matrix = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def read_labels(entry: Entry) -> npt.NDArray[np.int32]:
    """Return a vector of whole numbers, int32 [n].

    Raises InputError where it is something else, truncated or damaged.
    """
    header = _checked(entry, "labels", ("labels", "text"))
    with open(entry.file, "rb") as opened:
        opened.seek(entry.offset)
        content = opened.read(header.end - entry.offset)
    if header.kind == "labels":
        numbers = np.frombuffer(content[len(_BINARY) :], dtype=_LABEL)
        if (numbers["size"] != 4).any():
            raise InputError(f"{entry}: expected whole numbers of four bytes; it is damaged")
        return numbers["value"][1:].astype(np.int32)
    words = content.strip(b"[] \t\r\n").split()
    try:
        return np.array([int(word) for word in words], dtype=np.int32)
    except (ValueError, OverflowError):
        raise InputError(f"{entry}: expected whole numbers on one line") from None


def library() -> Any:
    """Return `kaldi_native_io`. Raises InputError where it is not installed."""
    try:
        return import_module("kaldi_native_io")
    except ImportError as error:
        raise InputError(
            f"Kaldi archives need the package kaldi-native-io ({error}); install it with"
            ' pip install "esgd-hpc[data]"'
        ) from None


def _read(entry: Entry, reader: str) -> Matrix:
    try:
        found = getattr(library(), reader).read(f"{entry.file}:{entry.offset}")
        return np.array(found.numpy(), dtype=np.float32)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{entry}: damaged: {' '.join(str(error).split())}") from None


def _checked(entry: Entry, wanted: str, kinds: tuple[str, ...]) -> _Header:
    """Return what an entry declares, having seen that the file holds all of it."""
    with open(entry.file, "rb") as opened:
        header = _header(entry, opened, entry.file.stat().st_size)
    if header.kind not in kinds:
        raise InputError(f"{entry}: expected {wanted}, found {header.kind}")
    return header


def _header(entry: Entry, opened: BinaryIO, size: int) -> _Header:
    """Return what an entry declares. Raises InputError where the file is too short for it."""
    opened.seek(entry.offset)
    head = opened.read(32)
    if not head:
        raise InputError(f"{entry}: begins at byte {entry.offset}, where the file has ended")
    if head[:2] != _BINARY:
        return _Header("text", _end_of_text(entry, opened, head))
    try:
        kind, num_bytes = _declared(head[2:])
    except (struct.error, ValueError):
        raise InputError(
            f"{entry}: no matrix, vector or labels of Kaldi at byte {entry.offset} (it begins with"
            f" {head[:8]!r})"
        ) from None
    end = entry.offset + 2 + num_bytes
    if end > size:
        raise InputError(
            f"{entry}: declares {num_bytes} bytes ({kind}), {end - size} more than the file has; it"
            " is truncated or damaged"
        )
    return _Header(kind, end)


def _declared(head: bytes) -> tuple[str, int]:
    """Return the kind and the number of bytes, header included, of what follows the mark."""
    if head[:1] == b"\4":  # the size of the int32 that counts the labels
        (count,) = struct.unpack_from("<i", head, 1)
        return "labels", _LABEL.itemsize * (1 + _not_negative(count))
    token, space, rest = head.partition(b" ")
    kind = token.decode("ascii")
    before = len(token) + len(space)
    if kind in ("CM", "CM2", "CM3"):
        rows, columns = map(_not_negative, struct.unpack_from("<8xii", rest))
        before += 16
        if kind == "CM":
            before += columns * _COLUMN_BYTES
    elif kind in ("FM", "DM"):
        rows, columns = map(_not_negative, struct.unpack_from("<xixi", rest))
        before += 10
    elif kind in ("FV", "DV"):
        (rows,) = map(_not_negative, struct.unpack_from("<xi", rest))
        columns = min(rows, 1)
        before += 5
    else:
        raise ValueError(kind)
    if (rows == 0) != (columns == 0) or rows * columns >= 2**31:
        raise ValueError(rows, columns)  # the library would not stand it
    return kind, before + rows * columns * _ITEM_BYTES[kind]


def _not_negative(number: int) -> int:
    if number < 0:
        raise ValueError(number)
    return number


def _end_of_text(entry: Entry, opened: BinaryIO, head: bytes) -> int:
    """Return where an entry in text ends: after the line with its `]`, or after its one line."""
    opened.seek(entry.offset)
    is_bracketed = head.lstrip(b" \t").startswith(b"[")
    is_closed = not is_bracketed
    while part := opened.readline(_TEXT_BYTES):
        is_closed = is_closed or b"]" in part
        if is_closed and part.endswith(b"\n"):
            break
    if not is_closed:
        raise InputError(f"{entry}: has no closing bracket; it is truncated")
    return opened.tell()


# Writing ------------------------------------------------------------------------------------------


def write_matrices(
    folder: Path, name: str, matrices: Iterable[tuple[str, Matrix]], num_bytes: int
) -> Path:
    """Write NAME.ark and NAME.scp, binary, and return the latter; they appear whole or not at all.

    `num_bytes` is what the matrices have together. Raises InputError where the folder's path has
    characters that mean something else to Kaldi, RunError where the disk refuses.
    """
    folder = folder.resolve()
    if re.search(r"[\s|,]", str(folder)):
        raise InputError(
            f"{folder}: Kaldi reads spaces, commas and | in a path as something else; choose a path"
            " without them"
        )
    archive, script = folder / f"{name}.ark", folder / f"{name}.scp"
    new_archive, new_script = (file.with_name(f".{file.name}.tmp") for file in (archive, script))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < num_bytes + _SPARE_BYTES:
            raise RunError(
                f"{archive}: needs {num_bytes >> 20} MiB and the disk has {free >> 20} free"
            )
        writer = _done(library().FloatMatrixWriter, f"ark,scp:{new_archive},{new_script}")
        for key, matrix in matrices:
            _done(writer.write, key, matrix)
        _done(writer.close)
        lines = new_script.read_text("utf-8")
        new_script.write_text(lines.replace(f" {new_archive}:", f" {archive}:"), "utf-8")
        new_archive.replace(archive)
        new_script.replace(script)
    except OSError as error:
        raise RunError(f"{archive}: cannot be written: {error}") from None
    finally:
        for file in (new_archive, new_script):
            with suppress(OSError):
                file.unlink()
    return script


def _done(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call the library; its errors, all of them RuntimeErrors, become one of the disk."""
    try:
        return call(*arguments)
    except RuntimeError as error:
        raise OSError(" ".join(str(error).split())) from None
