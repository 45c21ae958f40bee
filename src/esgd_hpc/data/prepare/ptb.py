"""The Penn Treebank in Mikolov's preparation: ptb.train.txt, ptb.valid.txt and ptb.test.txt.

One sentence a line, words between spaces, rare words already `<unk>`, numbers `N`.
"""

from pathlib import Path

from esgd_hpc.data.prepare import Say, StoreWriter
from esgd_hpc.data.prepare.words import (
    END,
    UNKNOWN,
    decoded,
    read_bytes,
    tokens_of,
    vocabulary_of,
    write_words,
)
from esgd_hpc.errors import InputError

_FILES = {"train": "ptb.train.txt", "validation": "ptb.valid.txt", "test": "ptb.test.txt"}
NUM_TOKENS = {"train": 929_589, "validation": 73_760, "test": 82_430}
"""With one end of sentence a line."""
NUM_TYPES = 10_000
"""Different words of the training text, the end of a sentence among them."""
_LARGEST = 2**24
"""Bytes of a file; the training text has 5.1 million."""


def prepare(name: str, source: Path | None, writer: StoreWriter, say: Say) -> None:
    """Check the three files in the folder `source` and write their words as numbers.

    Raises InputError for a file that is missing, no text, or has other counts than the original.
    """
    if source is None:
        raise InputError(
            f"data set {name}: its licence lets no package carry it; give the folder that has"
            f" {', '.join(_FILES.values())} with --source"
        )
    parts = {}
    for part, file_name in _FILES.items():
        file = source / file_name
        text = decoded(read_bytes(file, _LARGEST), str(file))
        lines = text.removesuffix("\n").split("\n")
        tokens = tokens_of(line.split() for line in lines)
        if len(tokens) != NUM_TOKENS[part]:
            raise InputError(
                f"{file}: expected {NUM_TOKENS[part]:,} tokens with {END} at each line's end, found"
                f" {len(tokens):,}; get the original file again (Mikolov's simple-examples)"
            )
        say(f"{file}: {len(tokens):,} tokens in {len(lines):,} lines")
        parts[part] = tokens
    vocabulary = vocabulary_of(parts["train"], NUM_TYPES + 1)
    if len(vocabulary) != NUM_TYPES or UNKNOWN not in parts["train"]:
        more = "more than " if len(vocabulary) > NUM_TYPES else ""
        shown = f"{more}{min(len(vocabulary), NUM_TYPES):,}"
        raise InputError(
            f"{source / _FILES['train']}: expected {NUM_TYPES:,} different words with {UNKNOWN} and"
            f" {END}, found {shown}; get the original file again"
        )
    known = set(vocabulary)
    for part in ("validation", "test"):
        strange = next((word for word in parts[part] if word not in known), None)
        if strange is not None:
            raise InputError(
                f"{source / _FILES[part]}: the word {strange[:40]!r} is not in"
                f" {_FILES['train']}; get the original files again"
            )
    write_words(writer, parts, vocabulary)
