"""What the preparations of texts share: reading text that may be anything, and words as numbers."""

import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from esgd_hpc.data.store import StoreWriter
from esgd_hpc.errors import InputError

UNKNOWN, END = "<unk>", "<eos>"
"""A word outside the vocabulary, and the end of a line; numbers 0 and 1 in every vocabulary."""


def read_bytes(file: Path, limit: int) -> bytes:
    """Return what a file holds. Raises InputError where it cannot be read or is above the limit."""
    try:
        if not file.is_file():
            raise InputError(f"{file}: no such file")
        with open(file, "rb") as opened:
            data = opened.read(limit + 1)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error}") from None
    if len(data) > limit:
        raise InputError(f"{file}: more than {limit:,} bytes, which is not the text looked for")
    return data


def decoded(data: bytes, name: str) -> str:
    """Return UTF-8 text. Raises InputError for other bytes, and for control characters in it.

    Line feeds are the only ones allowed. `name` is for the message.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{name}: line {line}: byte 0x{data[error.start]:02x} is not UTF-8 text; get the file"
            " again"
        ) from None
    for character in sorted(set(text) - {"\n"}):
        if unicodedata.category(character) == "Cc":
            line = text.count("\n", 0, text.index(character)) + 1
            raise InputError(
                f"{name}: line {line}: control character U+{ord(character):04X}; plain text with"
                " single line feeds is expected"
            )
    return text


def tokens_of(lines: Iterable[Sequence[str]]) -> list[str]:
    """Return the words of all lines with the end of each line marked."""
    return list(itertools.chain.from_iterable((*words, END) for words in lines))


def vocabulary_of(tokens: Iterable[str], size: int) -> list[str]:
    """Return the `size` most frequent words, the most frequent first, behind UNKNOWN and END.

    Of words that are as frequent as each other, the first in the alphabet comes first.
    """
    counts = Counter(tokens)
    del counts[UNKNOWN], counts[END]
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    return [UNKNOWN, END, *ordered][:size]


def write_words(
    writer: StoreWriter, parts: Mapping[str, Sequence[str]], vocabulary: Sequence[str]
) -> None:
    """Write the tokens of each part as PART/tokens, int32 [N], and the vocabulary.

    Words outside the vocabulary become UNKNOWN. Datasets are numbers only, so the vocabulary is
    its UTF-8 bytes, words in the order of their numbers, joined by line feeds.
    """
    numbers = {word: number for number, word in enumerate(vocabulary)}
    for part, tokens in parts.items():
        found = np.fromiter(
            (numbers.get(token, 0) for token in tokens), dtype=np.int32, count=len(tokens)
        )
        writer.append(f"{part}/tokens", found)
    writer.append("vocabulary", np.frombuffer("\n".join(vocabulary).encode(), dtype=np.uint8))
    writer.note(vocabulary_size=len(vocabulary))
